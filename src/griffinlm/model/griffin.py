"""Griffin: the one model class. Hawk, RecurrentGemma and Gemma are values of its configuration."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from griffinlm.config import ModelConfig
from griffinlm.executor import LogitsChoice
from griffinlm.model.blocks import BlockState, Layout, ResidualBlock
from griffinlm.model.layers import RMSNorm


class GriffinState(NamedTuple):
    """Everything the model remembers of its rows. Passed in, returned anew, never changed in place."""

    num_tokens: Tensor
    """[B] int64, tokens read of each row's current document."""
    blocks: tuple[BlockState, ...]
    """One a depth, as in `ModelConfig.plan()`."""


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
        self.gradient_checkpointing = False
        """Recompute each block in the backward pass instead of keeping its activations."""

    def forward(
        self,
        tokens: Tensor,
        state: GriffinState | None = None,
        positions: Tensor | None = None,
        logits: LogitsChoice = "all",
    ) -> tuple[Tensor | None, GriffinState]:
        """Reads tokens on from a state.

        Args:
            tokens: [B, T] ids.
            state: what was read before; None is nothing.
            positions: [B, T], place of each token in its document: 0 starts a document, -1 is padding (anywhere in a
                row), any other value continues the one before it by one. None continues every row without padding.
            logits: for which tokens: all [B, T, V], the last real one of each row [B, 1, V], or none (None).

        Returns:
            float32 logits, and the state after the tokens.

        Raises:
            ValueError: a position lies past the capacity of a global attention block's state.
        """
        num_rows, num_tokens = tokens.shape
        if state is None:
            num_before = torch.zeros(num_rows, dtype=torch.int64, device=tokens.device)
        else:
            num_before = state.num_tokens
        lengths = order = None
        if positions is None:
            positions = num_before[:, None] + torch.arange(num_tokens, device=tokens.device)
        else:
            padding = positions < 0
            if bool(padding.any()):
                # Padding moves to the end of its row, where causality already hides it from every real token.
                order = torch.argsort(padding.to(torch.uint8), dim=1, stable=True)
                tokens, positions = tokens.gather(1, order), positions.gather(1, order)
                lengths = num_tokens - padding.sum(dim=1)
        if state is not None:
            self._check_capacity(state, positions)
        layout = Layout(positions, positions == 0, num_before, lengths)
        x = self.embedding(tokens.masked_fill(positions < 0, 0)) * self.config.embedding_scale
        blocks = []
        for step, block in zip(self.config.plan(), self.layers, strict=True):
            before = None if state is None else state.blocks[step.depth]
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x, after = checkpoint(block, x, layout, before, use_reentrant=False)
            else:
                x, after = block(x, layout, before)
            blocks.append(after)
        last = (torch.full_like(num_before, num_tokens) if lengths is None else lengths) - 1
        newest = positions.gather(1, last.clamp(min=0)[:, None])[:, 0]
        num_after = torch.where(last >= 0, newest + 1, num_before)
        return self._logits(x, logits, last, order), GriffinState(num_after, tuple(blocks))

    def _logits(self, x: Tensor, choice: LogitsChoice, last: Tensor, order: Tensor | None) -> Tensor | None:
        if choice == "none":
            return None
        if choice == "last":
            x = x.gather(1, last.clamp(min=0)[:, None, None].expand(-1, -1, x.shape[2]))
        elif order is not None:
            x = torch.empty_like(x).scatter(1, order[..., None].expand_as(x), x)
        out = nn.functional.linear(self.final_norm(x), self.embedding.weight).float()
        cap = self.config.logit_soft_cap
        return out if cap is None else torch.tanh(out / cap) * cap

    def _check_capacity(self, state: GriffinState, positions: Tensor) -> None:
        if not self.config.needs_capacity:
            return
        for step, block in zip(self.config.plan(), state.blocks, strict=True):
            if step.kind == "global_attention":
                capacity = block[0].shape[1]
                newest = int(positions.max())
                if newest >= capacity:
                    raise ValueError(f"position {newest} lies past the state's capacity of {capacity} tokens")
                return
