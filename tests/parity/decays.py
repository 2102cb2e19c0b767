"""How near a Hawk layer of ours and of DeepMind's is to float64, by decay. Run in `tests`: python -m parity.decays."""

import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from griffinlm.checkpoint import write_checkpoint

from . import models
from .deepmind import original
from .models import griffin, random_tensors

NUM_TOKENS = 200
A_PARAMS = (None, -12.0, -14.0, -16.0, -20.0)
"""None are the decays of a new model."""


def errors(a_param: float | None) -> tuple[float, float]:
    """max|a - b| / max(1, max|b|) of the logits in float32, ours and DeepMind's, b being ours in float64."""
    config = dataclasses.replace(models.HAWK, num_layers=1)
    tensors = [
        (name, values if a_param is None or not name.endswith("a_param") else np.full_like(values, a_param))
        for name, values in random_tensors(config, seed=1)
    ]
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(config, tensors, Path(folder) / "model", "deepmind")
        theirs = original(config)
        theirs.load_state_dict(torch.load(Path(folder) / "model" / "griffin.pt", weights_only=True))
    tokens = torch.randint(config.vocab_size, (1, NUM_TOKENS), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(NUM_TOKENS)[None]
    with torch.no_grad():
        exact, _ = griffin(config, tensors).double()(tokens)
        found = griffin(config, tensors)(tokens)[0], theirs(tokens, positions)[0]
    assert exact is not None
    largest = max(1.0, float(exact.abs().max()))
    ours, other = (float((logits.double() - exact.double()).abs().max()) / largest for logits in found)
    return ours, other


def rows() -> Iterator[str]:
    """The table."""
    yield "| `a_param` | ours | DeepMind's |"
    yield "| --- | --- | --- |"
    for a_param in A_PARAMS:
        ours, other = errors(a_param)
        yield f"| {'as in a new model' if a_param is None else f'{a_param:g}'} | {ours:.1e} | {other:.1e} |"


if __name__ == "__main__":
    print(*rows(), sep="\n")
