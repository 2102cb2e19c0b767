"""What a call gives a model besides its tokens: the padding mask, the positions, and arguments of other models."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from griffinlm.errors import GriffinError
from griffinlm.executor import check_continuation
from griffinlm.hf.cache import GriffinCache

BORDERS = ("seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
"""Borders of packed documents as collators give them to other models' kernels; position ids say the same."""


class InputError(GriffinError):
    """Inputs that a model cannot read."""


def check_arguments(arguments: Mapping[str, Any], output_attentions: bool | None, position_ids: Tensor | None) -> None:
    """Refuses what would have to be ignored.

    Raises:
        InputError: an argument is unknown, or packed documents come without position ids, or attention's weights are
            asked for.
    """
    given = [name for name, value in arguments.items() if value is not None]
    unknown = [name for name in given if name not in BORDERS]
    if unknown:
        raise InputError(f"unknown arguments: {', '.join(unknown)}")
    if given and position_ids is None:
        raise InputError(
            f"{given[0]} is given without position_ids; packed documents are told apart by positions that begin at 0",
            hint="let the collator return position ids",
        )
    if output_attentions:
        raise InputError("output_attentions is true; attention is computed without forming its weights")


def positions_of(
    embeddings: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None, cache: GriffinCache | None
) -> Tensor | None:
    """[B, T], positions as `Griffin.forward` takes them: -1 for padding; None where every row goes on without any.

    They are explicit where the cache will have to read the tokens again.

    Raises:
        InputError: a shape does not fit.
        ExecutorError: a position neither starts a document nor continues one.
    """
    if embeddings.dim() != 3 or not embeddings.shape[1]:
        raise InputError(
            f"the inputs are {list(embeddings.shape[:-1])}; they must be [rows, tokens], one token at least"
        )
    num_rows, num_new = embeddings.shape[:2]
    num_columns = num_new + (0 if cache is None else cache.num_columns)
    real = None
    if attention_mask is not None:
        if attention_mask.shape != (num_rows, num_columns):
            raise InputError(f"attention_mask is {list(attention_mask.shape)}; it must be [{num_rows}, {num_columns}]")
        real = attention_mask[:, -num_new:] != 0
        real = None if bool(real.all()) else real
    before = None if cache is None else cache.num_tokens
    if before is None:
        before = torch.zeros(num_rows, dtype=torch.int64, device=embeddings.device)
    elif len(before) != num_rows:
        raise InputError(f"the inputs have {num_rows} rows; the cache has {len(before)}")
    if position_ids is not None:
        if position_ids.shape not in ((num_rows, num_new), (1, num_new)):
            raise InputError(f"position_ids is {list(position_ids.shape)}; it must be [{num_rows}, {num_new}]")
        positions = position_ids.long().expand(num_rows, -1)
        positions = positions if real is None else positions.masked_fill(~real, -1)
        check_continuation(positions.cpu().numpy(), before.cpu().numpy())
        return positions
    if real is None and not (cache is not None and cache.is_recording):
        return None
    real = torch.ones(num_rows, num_new, dtype=torch.bool, device=embeddings.device) if real is None else real
    return (before[:, None] + real.cumsum(dim=1) - 1).masked_fill(~real, -1)
