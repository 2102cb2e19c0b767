"""Slots of the torch engine whose tokens go through a recursive model loop by loop."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from griffinlm.executor import ExecutorError, SettledSlots, check_prefill
from griffinlm.model.blocks import Layout, ResidualBlock
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.low_rank import RowTerms
from griffinlm.model.shared_block import Segment, Segments, run_together

if TYPE_CHECKING:
    from griffinlm.model.engine import TorchEngine

ExitRule = Callable[[Tensor, Tensor], Tensor]
"""Whether tokens may leave, [B] bool, of their hidden states x [B, D] behind a loop and how many loops they have been
through [B]."""

MAX_OWED_TOKENS = 32
"""In front of a loop. A token that finds so many may not leave there, which bounds what a later one must wait for."""


class TorchLoopExecutor(SettledSlots, TorchExecutor):
    """The torch form of `griffinlm.executor.LoopExecutor`. Layers behind the loops belong to the last one.

    In front of every loop of every slot stand the tokens that it has not read, oldest first: those that are owed to
    it and, last, the one on its way. A loop reads all that stands in front of it as one chunk, so a token that goes
    deeper takes those that left before it along.

    Args:
        exit_rule: asked behind every loop but the last; None lets no token leave early.

    Raises:
        ExecutorError: the model's layers do not loop.
    """

    def __init__(
        self, engine: "TorchEngine", num_slots: int, capacity: int | None = None, exit_rule: ExitRule | None = None
    ) -> None:
        super().__init__(engine, num_slots, capacity)
        recursion = engine.config.recursion
        if recursion is None:
            raise ExecutorError("the model has no loops", hint="griffin recursive makes a model that has")
        self.num_loops, self._exit_rule = recursion.num_loops, exit_rule
        self._width = engine.config.num_shared_layers
        nothing = torch.empty(0, engine.config.width, dtype=engine.model.embedding.weight.dtype, device=engine.device)
        self._nothing = nothing
        self._unread = [[nothing] * self.num_loops for _ in range(num_slots)]
        """By slot and loop, [n, D] in front of it."""
        self._newest = [nothing] * num_slots
        """By slot, [1, D] of its token on the way, behind the last loop that it has been through."""
        self._depth = [0] * num_slots

    @torch.inference_mode()
    def enter(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        ids, index = np.asarray(tokens, np.int64)[:, None], self._index(slots)
        num_tokens = self.state.num_tokens[index]
        check_prefill(self.engine.config, ids, None, num_tokens.cpu().numpy(), self.capacity)
        model = self.engine.model
        x = model.embedding(self._move(ids)) * self.engine.config.embedding_scale
        self.state.num_tokens.index_copy_(0, index, num_tokens + 1)
        for slot, row in zip(slots, x, strict=True):
            self._depth[slot] = 0
            self._append(slot, 0, row)

    @torch.inference_mode()
    def run_loop(self, slots: Sequence[int]) -> list[bool]:
        depths = [self._depth[slot] for slot in slots]
        self._run(slots, depths)
        for slot in slots:
            self._depth[slot] += 1
        if self._exit_rule is None or all(depth == self.num_loops - 1 for depth in depths):
            return [False] * len(slots)
        x = torch.cat([self._newest[slot] for slot in slots])
        may_leave = self._exit_rule(x, self._index([depth + 1 for depth in depths])).tolist()
        return [
            may and depth < self.num_loops - 1 and len(self._unread[slot][depth + 1]) <= MAX_OWED_TOKENS
            for slot, depth, may in zip(slots, depths, may_leave, strict=True)
        ]

    @torch.inference_mode()
    def leave(self, slots: Sequence[int]) -> np.ndarray:
        x = torch.cat([self._newest[slot] for slot in slots])
        for slot in slots:
            self._newest[slot] = self._nothing
        return self.engine.model.logits(x[:, None])[:, 0].cpu().numpy()

    def num_owed(self, slot: int) -> int:
        """Tokens, counted once for every loop that has not read them."""
        return sum(len(unread) for unread in self._unread[slot])

    def _forget(self, slot: int) -> None:
        self._unread[slot] = [self._nothing] * self.num_loops
        self._newest[slot], self._depth[slot] = self._nothing, 0

    @torch.inference_mode()
    def _settle(self, slots: Sequence[int]) -> None:
        """Reads what is owed, so that the state is that of full depth."""
        for loop in range(self.num_loops):
            owing = [slot for slot in slots if len(self._unread[slot][loop])]
            if owing:
                self._run(owing, [loop] * len(owing))

    def _append(self, slot: int, loop: int, x: Tensor) -> None:
        before = self._unread[slot][loop]
        self._unread[slot][loop] = torch.cat([before, x]) if len(before) else x

    def _run(self, slots: Sequence[int], loops: Sequence[int]) -> None:
        """Runs a loop of each slot over all that stands in front of it, one call for every shared layer."""
        order = sorted(range(len(slots)), key=loops.__getitem__)
        slots, loops = [slots[i] for i in order], [loops[i] for i in order]
        chunks = [self._unread[slot][loop] for slot, loop in zip(slots, loops, strict=True)]
        segments = self._segments(slots, loops)
        x, present = segments.pack(pad_sequence(chunks, batch_first=True)), sorted(set(loops))
        for layer in range(self._width):
            x = self._run_layer([loop * self._width + layer for loop in present], x, segments, slots, loops)
        num_in_last = loops.count(self.num_loops - 1)
        if num_in_last and self.engine.config.num_looped_layers < self.engine.config.num_layers:
            first = len(slots) - num_in_last
            lengths = [len(chunk) for chunk in chunks]
            done, last = x.split([sum(lengths[:first]), sum(lengths[first:])])
            behind = self._segments(slots[first:], loops[first:])
            for layer in range(self.engine.config.num_looped_layers, self.engine.config.num_layers):
                last = self._run_layer([layer], last, behind, slots[first:], loops[first:])
            x = torch.cat([done, last])
        for slot, loop, out in zip(slots, loops, x.split([len(chunk) for chunk in chunks]), strict=True):
            self._unread[slot][loop], self._newest[slot] = self._nothing, out[-1:]
            if loop + 1 < self.num_loops:
                self._append(slot, loop + 1, out)

    def _run_layer(
        self, layers: Sequence[int], x: Tensor, segments: Segments, slots: Sequence[int], loops: Sequence[int]
    ) -> Tensor:
        """One layer of each segment over its packed tokens, the states of whose slots it brings forward."""
        present = sorted(set(loops))
        indices = [self._index([slot for slot, at in zip(slots, loops, strict=True) if at == loop]) for loop in present]
        kept = [self.state.blocks[layer] for layer in layers]
        parts = [[t.index_select(0, index) for t in block] for block, index in zip(kept, indices, strict=True)]
        before = type(kept[0])(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
        blocks = [self.engine.model.layers[layer] for layer in layers]
        assert all(isinstance(block, ResidualBlock) for block in blocks)
        x, after = run_together(blocks, x, segments, before)  # pyright: ignore[reportArgumentType]
        for tensors in zip(after, *kept, strict=True):
            new, *old = tensors
            for target, index, part in zip(old, indices, new.split([len(i) for i in indices]), strict=True):
                target.index_copy_(0, index, part)
        return x

    def _segments(self, slots: Sequence[int], loops: Sequence[int]) -> Segments:
        """Where the tokens stand that each slot's loop has not read; the loops ascend."""
        lengths = [len(self._unread[slot][loop]) for slot, loop in zip(slots, loops, strict=True)]
        not_read = [sum(map(len, self._unread[slot][: loop + 1])) for slot, loop in zip(slots, loops, strict=True)]
        device = self.engine.device
        num_before = self.state.num_tokens[self._index(slots)] - self._index(not_read)
        rank = torch.arange(max(lengths), device=device)
        positions = num_before[:, None] + rank
        places = counts = None
        if min(lengths) < max(lengths):
            counts = self._index(lengths)
            real = rank < counts[:, None]
            positions, places = positions.masked_fill(~real, -1), real.flatten().nonzero()[:, 0]
        layout = Layout(positions, positions == 0, num_before, counts, self._low_rank(slots))
        parts = []
        for loop in sorted(set(loops)):
            rows = slice(loops.index(loop), loops.index(loop) + loops.count(loop))
            here, num_real = positions[rows], None if counts is None else counts[rows]
            own = Layout(here, here == 0, num_before[rows], num_real)
            parts.append(Segment(own, sum(lengths[rows]), self._token_terms(slots[rows], lengths[rows])))
        return Segments(parts, layout, places)

    def _token_terms(self, slots: Sequence[int], lengths: Sequence[int]) -> list[RowTerms]:
        """The terms of rows as those of their packed tokens."""
        row_of = torch.repeat_interleave(self._index(lengths))
        return [RowTerms(torch.isin(row_of, rows).nonzero()[:, 0], terms) for rows, terms in self._low_rank(slots)]
