"""Bits per byte of held-out text in the middle of a run, over all processes."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from griffinlm.train.data.token_file import IGNORED, Row
from griffinlm.train.objective import Objective
from griffinlm.train.sharding import rank, world_size


@dataclass(frozen=True)
class HeldOut:
    """Held-out rows of a source, and how many bytes of UTF-8 their labels are."""

    rows: list[Row]
    num_bytes: int


@torch.no_grad()
def bits_per_byte(objective: Objective, held_out: HeldOut, rows_at_once: int, device: torch.device) -> float:
    """sum of -log2 p(token | the tokens of its document before it in its row) / bytes of the texts.

    The tokens are those of `evaluate.bits_per_byte`; a document that a row's end cuts goes on without what came before,
    so this is a little more than that. Processes take turns at the rows, and all must call.
    """
    was_training = objective.training
    objective.eval()
    nats = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(held_out.rows), rows_at_once * world_size()):
        first = start + rank() * rows_at_once
        rows = held_out.rows[first : first + rows_at_once]
        # A process without rows reads one with nothing to predict: the others need it to gather their parameters.
        rows = rows or [held_out.rows[0]._replace(labels=np.full_like(held_out.rows[0].labels, IGNORED))]
        batch = {name: torch.from_numpy(np.stack([getattr(r, name) for r in rows])).to(device) for name in Row._fields}
        nats += objective(**batch)["loss"].double().cpu()
    objective.train(was_training)
    if world_size() > 1:
        nats = nats.to(device)
        dist.all_reduce(nats)
    return nats.item() / math.log(2.0) / held_out.num_bytes
