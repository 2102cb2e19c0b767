"""Griffin: the one model class. Hawk, RecurrentGemma and Gemma are values of its configuration."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from griffinlm.config import ModelConfig
from griffinlm.executor import LogitsChoice
from griffinlm.kernels.soft_cap.operator import soft_cap
from griffinlm.model.blocks import BlockState, Layout, ResidualBlock
from griffinlm.model.layers import RMSNorm
from griffinlm.model.low_rank import RowTerms
from griffinlm.model.recursion import add_low_rank, tie


class GriffinState(NamedTuple):
    """Everything the model remembers of its rows. Passed in, returned anew, never changed in place."""

    num_tokens: Tensor
    """[B] int64, tokens read of each row's current document."""
    blocks: tuple[BlockState, ...]
    """One a depth, as in `ModelConfig.plan()`."""
    num_skipped: Tensor | None = None
    """[B, loops - 1] int64, tokens of the document that each loop behind the first has not read; None where the model
    does not skip."""


class Reading(NamedTuple):
    """What the blocks made of some tokens."""

    x: Tensor
    """[B, T, D], padding at the end of each row."""
    state: GriffinState
    order: Tensor | None
    """[B, T], which token of the call stands where in `x`; None where there is no padding and nothing has moved."""
    last: Tensor
    """[B], place in `x` of each row's last real token; -1 where it has none."""

    def in_order(self, x: Tensor) -> Tensor:
        """[B, T, D] hidden states of the tokens in `x`, in the order in which the call gave the tokens."""
        return x if self.order is None else torch.empty_like(x).scatter(1, self.order[..., None].expand_as(x), x)

    def newest(self) -> Tensor:
        """[B, 1, D], `x` of each row's last real token."""
        return self.x.gather(1, self.last.clamp(min=0)[:, None, None].expand(-1, -1, self.x.shape[2]))


BlockCall = Callable[[nn.Module, Tensor, Layout, BlockState | None], tuple[Tensor, BlockState]]
"""Runs one block."""


def recomputed(block: nn.Module, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, BlockState]:
    """Runs a block whose activations the backward pass computes again instead of finding them kept."""
    return checkpoint(block, x, layout, state, use_reentrant=False)


def read(
    config: ModelConfig,
    layers: Iterable[nn.Module],
    x: Tensor,
    state: GriffinState | None,
    positions: Tensor | None,
    call: BlockCall = nn.Module.__call__,
    low_rank: Sequence[RowTerms] = (),
) -> Reading:
    """Runs the blocks of a model over tokens that are already embedded and scaled.

    Args:
        x: [B, T, D].
        state, positions: as in `Griffin.forward`.
        call: how a block is run.
        low_rank: terms that some rows add to the products of linear layers.

    Raises:
        ValueError: a position lies past the capacity of a global attention block's state.
    """
    num_rows, num_tokens = x.shape[:2]
    num_before = torch.zeros(num_rows, dtype=torch.int64, device=x.device) if state is None else state.num_tokens
    lengths = order = None
    if positions is None:
        positions = num_before[:, None] + torch.arange(num_tokens, device=x.device)
    else:
        padding = positions < 0
        # A compiled call cannot ask: it moves rows without padding too, each token to where it stands.
        if torch.compiler.is_compiling() or bool(padding.any()):
            # Padding moves to the end of its row, where causality already hides it from every real token.
            order = torch.argsort(padding.to(torch.uint8), dim=1, stable=True)
            x, positions = x.gather(1, order[..., None].expand_as(x)), positions.gather(1, order)
            lengths = num_tokens - padding.sum(dim=1)
    if state is not None:
        _check_capacity(config, state, positions)
    layout = Layout(positions, positions == 0, num_before, lengths, low_rank)
    num_skipped = None if state is None else state.num_skipped
    layouts, blocks = loop_layouts(config, layout, num_skipped), []
    for step, block in zip(config.plan(), layers, strict=True):
        own = layouts[config.loop_of(step.depth)]
        x, after = call(block, x, own, None if state is None else state.blocks[step.depth])
        blocks.append(after)
    last = (torch.full_like(num_before, num_tokens) if lengths is None else lengths) - 1
    newest = positions.gather(1, last.clamp(min=0)[:, None])[:, 0]
    num_after = torch.where(last >= 0, newest + 1, num_before)
    if config.skips:
        num_skipped = skipped_after(config, layout, num_skipped)
    return Reading(x, GriffinState(num_after, tuple(blocks), num_skipped), order, last)


def loop_layouts(config: ModelConfig, layout: Layout, num_skipped: Tensor | None) -> list[Layout]:
    """Where each loop sees the tokens of a call: closer to the start of a document by those that it skipped there."""
    if num_skipped is None:
        return [layout] * config.num_loops
    goes_on = (layout.reset.cumsum(dim=1) == 0) & (layout.positions >= 0)
    layouts = [layout]
    for skipped in num_skipped.unbind(1):
        positions = layout.positions - skipped[:, None] * goes_on
        num_before = layout.num_before - skipped
        layouts.append(layout._replace(positions=positions, reset=positions == 0, num_before=num_before))
    return layouts


def skipped_after(config: ModelConfig, layout: Layout, num_skipped: Tensor | None) -> Tensor:
    """`GriffinState.num_skipped` after a call that all loops have read: none in a document that started in it."""
    if num_skipped is None:
        return layout.num_before.new_zeros(len(layout.num_before), config.num_loops - 1)
    return num_skipped.masked_fill(layout.reset.any(dim=1, keepdim=True), 0)


def _check_capacity(config: ModelConfig, state: GriffinState, positions: Tensor) -> None:
    if not config.needs_capacity:
        return
    for step, block in zip(config.plan(), state.blocks, strict=True):
        if step.kind == "global_attention":
            capacity = block[0].shape[1]
            newest = int(positions.max())
            if newest >= capacity:
                raise ValueError(f"position {newest} lies past the state's capacity of {capacity} tokens")
            return


class Griffin(nn.Module):
    """A language model whose blocks mix time by a linear recurrence, by local attention or by global attention.

        x = embedding[tokens] * embedding_scale
        for each block: r = x + temporal(norm(x)); x = r + mlp(norm(r))
        logits = soft_cap(norm(x) @ embedding^T)

    Parameters start at zero; `griffinlm.checkpoint` has initial and published values to load.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(ResidualBlock(config, kind) for kind in config.block_kinds)
        self.final_norm = RMSNorm(config.width, config.norm_epsilon)
        add_low_rank(self, config)
        tie(self, config)
        self.gradient_checkpointing = False
        """Recompute each block in the backward pass instead of keeping its activations."""

    def forward(
        self,
        tokens: Tensor,
        state: GriffinState | None = None,
        positions: Tensor | None = None,
        logits: LogitsChoice = "all",
        low_rank: Sequence[RowTerms] = (),
    ) -> tuple[Tensor | None, GriffinState]:
        """Reads tokens on from a state.

        Args:
            tokens: [B, T] ids.
            state: what was read before; None is nothing.
            positions: [B, T], place of each token in its document: 0 starts a document, -1 is padding (anywhere in a
                row), any other value continues the one before it by one. None continues every row without padding.
            logits: for which tokens: all [B, T, V], the last real one of each row [B, 1, V], or none (None).
            low_rank: terms that some rows add to the products of linear layers; each row may stand in one of them.

        Returns:
            float32 logits, and the state after the tokens.

        Raises:
            ValueError: a position lies past the capacity of a global attention block's state.
        """
        is_recomputed = self.gradient_checkpointing and torch.is_grad_enabled()
        call = recomputed if is_recomputed else nn.Module.__call__
        x = self.embedding(tokens if positions is None else tokens.masked_fill(positions < 0, 0))
        reading = read(self.config, self.layers, x * self.config.embedding_scale, state, positions, call, low_rank)
        return self._logits(reading, logits), reading.state

    def _logits(self, reading: Reading, choice: LogitsChoice) -> Tensor | None:
        if choice == "none":
            return None
        return self.logits(reading.newest() if choice == "last" else reading.in_order(reading.x))

    def logits(self, x: Tensor) -> Tensor:
        """float32 logits [B, T, V] of what the blocks gave [B, T, D]."""
        out = nn.functional.linear(self.final_norm(x), self.embedding.weight)
        cap = self.config.logit_soft_cap
        return (out if cap is None else soft_cap(out, cap)).float()
