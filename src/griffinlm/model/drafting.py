"""Slots of the torch engine that read ahead: tokens guessed by the first layers, then read by all."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from griffinlm.config import ModelConfig
from griffinlm.executor import ExecutorError, check_prefill
from griffinlm.model.blocks import Layout, ResidualBlock
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.griffin import GriffinState, loop_layouts
from griffinlm.model.state import tensors
from griffinlm.state import ARRAY_TYPES

if TYPE_CHECKING:
    from griffinlm.model.engine import TorchEngine

NUM_RECURRENT_INPUTS = 4
"""Of the convolution and of the scan, and two gates."""


def bytes_ahead(config: ModelConfig, precision: str) -> int:
    """Bytes kept of a token that was read ahead: the inputs that its state follows from, and its float32 logits."""
    size, num_bytes = ARRAY_TYPES[precision].itemsize, ARRAY_TYPES["float32"].itemsize * config.vocab_size
    for kind in (step.kind for step in config.plan()):
        if kind == "recurrent":
            assert config.recurrent is not None
            num_bytes += size * NUM_RECURRENT_INPUTS * config.recurrent.width
        else:
            assert config.attention is not None
            num_bytes += size * 2 * config.attention.head_size
    return num_bytes


class TorchDraftingExecutor(TorchExecutor):
    """The torch form of `griffinlm.executor.DraftingExecutor`.

    The first layers run token by token, and what comes out is what all others read in one call. For every token the
    inputs of convolutions, scans and rings are kept, from which the state after any number of them follows without
    another product with a matrix.

    Args:
        num_draft_layers: that guess; None is the first loop of a recursive model.

    Raises:
        ExecutorError: there is no first loop, or not one layer stays for checking.
    """

    def __init__(
        self, engine: "TorchEngine", num_slots: int, capacity: int | None = None, num_draft_layers: int | None = None
    ) -> None:
        super().__init__(engine, num_slots, capacity)
        config = engine.config
        if num_draft_layers is None and config.recursion is None:
            raise ExecutorError("the model has no loops, so the number of layers that guess must be given")
        self._num_first = config.num_shared_layers if num_draft_layers is None else num_draft_layers
        if not 1 <= self._num_first < config.num_layers:
            raise ExecutorError(
                f"{self._num_first} of {config.num_layers} layers guess; it must be 1 to {config.num_layers - 1}"
            )
        self._ahead: dict[int, list[tuple[Tensor, ...]]] = {}
        """By slot, of every layer what `ResidualBlock.after` takes, [1, T, ...]."""

    @torch.inference_mode()
    def read_ahead(
        self, slots: Sequence[int], tokens: Sequence[int], num_guesses: int
    ) -> tuple[np.ndarray, np.ndarray]:
        assert not self._ahead.keys() & set(slots)
        config, model, index = self.engine.config, self.engine.model, self._index(slots)
        before = self._gather(index)
        ids, num_before = np.asarray(tokens, np.int64)[:, None], before.num_tokens.cpu().numpy()
        check_prefill(config, ids, None, num_before, self.capacity)
        if self.capacity is not None:
            num_guesses = min(num_guesses, self.capacity - 1 - int(num_before.max()))
        low_rank = self._low_rank(slots)

        def layouts_of(first: int, stop: int) -> list[Layout]:
            places = before.num_tokens[:, None] + torch.arange(first, stop, device=self.engine.device)
            layout = Layout(places, places == 0, places[:, 0], None, low_rank, [])
            return loop_layouts(config, layout, before.num_skipped)

        layers, states = list(model.layers), list(before.blocks)
        newest, steps = self._move(ids), []
        hidden, guesses = [], []
        for place in range(num_guesses + 1):
            layouts = layouts_of(place, place + 1)
            x = model.embedding(newest) * config.embedding_scale
            for depth in range(self._num_first):
                x, states[depth] = layers[depth](x, layouts[config.loop_of(depth)], states[depth])
            hidden.append(x)
            steps.append(layouts[0].inputs)
            if place < num_guesses:
                newest = model.logits(x).argmax(-1)
                guesses.append(newest)
        x, layouts = torch.cat(hidden, dim=1), layouts_of(0, num_guesses + 1)
        for depth in range(self._num_first, len(layers)):
            x, _ = layers[depth](x, layouts[config.loop_of(depth)], states[depth])
        inputs = [_joined(parts) for parts in zip(*steps, strict=True)] + _given(layouts[0].inputs)
        for row, slot in enumerate(slots):
            # Copies, or one slot would keep what was read for all of the call.
            self._ahead[slot] = [tuple(t[row : row + 1].clone() for t in layer) for layer in inputs]
        guessed = torch.cat(guesses, dim=1) if guesses else newest[:, :0]
        return guessed.cpu().numpy(), model.logits(x).cpu().numpy()

    @torch.inference_mode()
    def keep(self, slot: int, num_tokens: int) -> None:
        inputs, index = self._ahead.pop(slot), self._index([slot])
        before = self._gather(index)
        rank = torch.arange(inputs[0][0].shape[1], device=self.engine.device)[None]
        positions = (before.num_tokens[:, None] + rank).masked_fill(rank >= num_tokens, -1)
        lengths = torch.full_like(before.num_tokens, num_tokens)
        config, layers = self.engine.config, self.engine.model.layers
        layout = Layout(positions, positions == 0, before.num_tokens, lengths)
        layouts, blocks = loop_layouts(config, layout, before.num_skipped), []
        for depth, (layer, given, state) in enumerate(zip(layers, inputs, before.blocks, strict=True)):
            assert isinstance(layer, ResidualBlock)
            blocks.append(layer.after(given, layouts[config.loop_of(depth)], state))
        after = GriffinState(before.num_tokens + lengths, tuple(blocks), before.num_skipped)
        for kept, new in zip(tensors(self.state), tensors(after), strict=True):
            kept.index_copy_(0, index, new)

    def rollback(self, slot: int, mark: GriffinState) -> None:
        self._ahead.pop(slot, None)
        super().rollback(slot, mark)

    def release(self, slot: int) -> None:
        self._ahead.pop(slot, None)
        super().release(slot)


def _joined(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What a layer kept token by token, as of one call."""
    return tuple(torch.cat(tokens, dim=1) for tokens in zip(*parts, strict=True))


def _given(inputs: list[tuple[Tensor, ...]] | None) -> list[tuple[Tensor, ...]]:
    assert inputs is not None
    return inputs
