"""A recursive model over whole rows, whose deeper loops never read a token that has left: the definition of skips."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from griffinlm.config import ModelConfig
from griffinlm.model.blocks import Layout
from griffinlm.model.griffin import BlockCall

Leaves = Callable[[Tensor, int], Tensor]
"""Which tokens leave, [B, T] bool, of their hidden states [B, T, D] behind so many loops."""


class Passage(NamedTuple):
    """How far each token of some rows has come."""

    behind: Sequence[Tensor]
    """For every loop [B, T, D]: the hidden states of the tokens behind it, and of those that it has not read from where
    they left."""
    depth: Tensor
    """[B, T], loops that have read the token; 0 for padding."""

    @property
    def x(self) -> Tensor:
        """[B, T, D] where each token left."""
        return self.behind[-1]


def read_with_skips(
    config: ModelConfig,
    layers: Sequence[nn.Module],
    x: Tensor,
    positions: Tensor,
    leaves: Leaves,
    call: BlockCall = nn.Module.__call__,
) -> Passage:
    """Runs the loops of a model, each over the tokens that have not left before it, as if the others were not there.

    A token's position in a loop is its place among the tokens of its document that the loop reads. Layers behind the
    loops belong to the last one.

    Args:
        x: [B, T, D], embedded and scaled.
        positions: [B, T], place of each token in its document, which begins in the call; -1 is padding.
        leaves: asked behind every loop but the last.
        call: how a block is run.
    """
    assert config.recursion is not None
    width, num_loops = config.num_shared_layers, config.recursion.num_loops
    reads, depth, behind = positions >= 0, torch.zeros_like(positions), []
    for loop in range(num_loops):
        blocks = layers[loop * width : None if loop == num_loops - 1 else (loop + 1) * width]
        x = _run(blocks, x, positions, reads, call)
        behind.append(x)
        depth = depth + reads
        if loop < num_loops - 1:
            reads = reads & ~leaves(x, loop + 1)
    return Passage(behind, depth)


def _run(blocks: Sequence[nn.Module], x: Tensor, positions: Tensor, reads: Tensor, call: BlockCall) -> Tensor:
    """x [B, T, D] with what the blocks make of the tokens that they read."""
    lengths = reads.sum(dim=1)
    longest = int(lengths.max())
    if not longest:
        return x
    order = torch.argsort((~reads).to(torch.uint8), dim=1, stable=True)[:, :longest]
    index = order[..., None].expand(-1, -1, x.shape[2])
    is_read = reads.gather(1, order)
    places = _places(torch.cumsum(positions == 0, dim=1).gather(1, order)).masked_fill(~is_read, -1)
    counts = None if bool(is_read.all()) else lengths
    layout = Layout(places, places == 0, torch.zeros_like(lengths), counts)
    before = out = x.gather(1, index)
    for block in blocks:
        out, _ = call(block, out, layout, None)
    return x.scatter(1, index, torch.where(is_read[..., None], out, before))


def _places(documents: Tensor) -> Tensor:
    """[B, T], which token of its document each is, of the ascending numbers of their documents."""
    index = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return index - index.masked_fill(~starts, 0).cummax(dim=1).values
