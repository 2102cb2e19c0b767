"""Slots of the torch engine whose tokens skip the loops behind the one where they leave."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from griffinlm.executor import ExecutorError, SettledSlots, check_tokens, require_capacity
from griffinlm.model.blocks import Layout, ResidualBlock
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.loops import ExitRule
from griffinlm.model.low_rank import RowTerms
from griffinlm.model.stacked_block import Change, Rows, StackedBlock

if TYPE_CHECKING:
    from griffinlm.model.engine import TorchEngine


class TorchSkippingExecutor(SettledSlots, TorchExecutor):
    """A `griffinlm.executor.LoopExecutor` of a model that skips: a loop is one call of one token a row.

    The states of a shared layer lie together, loop by loop, so that rows at all depths read and write them by their
    numbers. A token on its way is read by all loops before anything else looks at the slot's state.

    Args:
        exit_rule: asked behind every loop but the last; None lets no token leave early.

    Raises:
        ExecutorError: the model does not skip.
    """

    def __init__(
        self, engine: "TorchEngine", num_slots: int, capacity: int | None = None, exit_rule: ExitRule | None = None
    ) -> None:
        super().__init__(engine, num_slots, capacity)
        config, recursion = engine.config, engine.config.recursion
        if recursion is None or not config.skips:
            raise ExecutorError("the model does not skip: it was not trained to do without the tokens that left early")
        self.num_loops, self._exit_rule = recursion.num_loops, exit_rule
        self._stack_states()
        self._x = torch.zeros(num_slots, config.width, dtype=engine.model.embedding.weight.dtype, device=engine.device)
        """[slots, D], the tokens on their way."""
        self._depth: dict[int, int] = {}
        """Loops that the token on its way has been through, by slot."""
        self._changes: dict[int, list[tuple[list[Change], int]]] = {}
        """By slot, what these loops have changed, and the slot's row among it."""

    def _stack_states(self) -> None:
        """Puts the states of the loops of every shared layer behind each other; the state becomes views of them."""
        config, layers = self.engine.config, list(self.engine.model.layers)
        width, blocks = config.num_shared_layers, list(self.state.blocks)
        assert all(isinstance(layer, ResidualBlock) for layer in layers)
        self._looped: list[StackedBlock] = []
        for first in range(width):
            of_loops = range(first, config.num_looped_layers, width)
            kind = type(blocks[first])
            stacked = kind(*(torch.cat(tensors) for tensors in zip(*(blocks[i] for i in of_loops), strict=True)))
            self._looped.append(StackedBlock([layers[i] for i in of_loops], stacked))  # pyright: ignore[reportArgumentType]
            for loop, i in enumerate(of_loops):
                rows = slice(loop * self.num_slots, (loop + 1) * self.num_slots)
                blocks[i] = kind(*(tensor[rows] for tensor in stacked))
        self._behind = [
            StackedBlock([layers[i]], blocks[i])  # pyright: ignore[reportArgumentType]
            for i in range(config.num_looped_layers, config.num_layers)
        ]
        self._ranks = {rank for block in self._looped for rank in block.ranks}
        self.state = self.state._replace(blocks=tuple(blocks))

    @torch.inference_mode()
    def enter(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        ids, index = np.asarray(tokens, np.int64), self._index(slots)
        check_tokens(self.engine.config, ids)
        num_tokens = self.state.num_tokens[index] + 1
        if self.capacity is not None:
            require_capacity(int(num_tokens.max()), self.capacity)
        self.state.num_tokens[index] = num_tokens
        self._x[index] = self.engine.model.embedding(self._move(ids)) * self.engine.config.embedding_scale
        self._depth |= dict.fromkeys(slots, 0)
        self._changes |= {slot: [] for slot in slots}

    @torch.inference_mode()
    def run_loop(self, slots: Sequence[int]) -> list[bool]:
        x = self._run(slots)
        may_leave = [False] * len(slots)
        asked = [row for row, slot in enumerate(slots) if self._depth[slot] < self.num_loops]
        if self._exit_rule is not None and asked:
            depth = self._index([self._depth[slots[row]] for row in asked])
            answers = self._exit_rule(x if len(asked) == len(slots) else x[asked], depth).tolist()
            for row, may in zip(asked, answers, strict=True):
                may_leave[row] = may
        return may_leave

    @torch.inference_mode()
    def leave(self, slots: Sequence[int]) -> np.ndarray:
        index, depth = self._index(slots), self._index([self._forget(slot) for slot in slots])
        assert self.state.num_skipped is not None
        behind = torch.arange(1, self.num_loops, device=index.device) >= depth[:, None]
        self.state.num_skipped.index_add_(0, index, behind.long())
        return self.engine.model.logits(self._x[index][:, None])[:, 0].cpu().numpy()

    @torch.inference_mode()
    def withdraw(self, slot: int) -> None:
        if self._depth.get(slot) is None:
            return
        for changes, row in self._changes[slot]:
            for change in changes:
                change.take_back(row)
        self.state.num_tokens[slot] -= 1
        self._forget(slot)

    @torch.inference_mode()
    def _settle(self, slots: Sequence[int]) -> None:
        """Ends the way of the slots' tokens through all loops."""
        while going := [slot for slot in slots if self._depth.get(slot, self.num_loops) < self.num_loops]:
            self._run(going)
        for slot in slots:
            self._forget(slot)

    def _forget(self, slot: int) -> int:
        """Of a token on its way; the loops that it has been through."""
        self._changes.pop(slot, None)
        return self._depth.pop(slot, 0)

    def _run(self, slots: Sequence[int]) -> Tensor:
        """The next loop of each slot's token; what comes out [B, D]."""
        depths, index = [self._depth[slot] for slot in slots], self._index(slots)
        depth = self._index(depths)
        x, rows = self._x[index], self._rows(slots, depths, index, depth)
        for block in self._looped:
            x = block(x, rows)
        last = [row for row, loop in enumerate(depths) if loop == self.num_loops - 1]
        if last and self._behind:
            x[last] = self._run_behind(x[last], [slots[row] for row in last], rows, last)
        self._x[index] = x
        for row, slot in enumerate(slots):
            self._depth[slot] += 1
            self._changes[slot].append((rows.changes, row))
        return x

    def _run_behind(self, x: Tensor, slots: Sequence[int], rows: Rows, last: list[int]) -> Tensor:
        """The layers behind the last loop, which share nothing, for the rows that have come to them."""
        layout = rows.layout
        own = Layout(layout.positions[last], layout.reset[last], layout.num_before[last], None)
        terms = [(0, one) for one in self._low_rank(slots)]
        index = self._index(slots)
        there = Rows(torch.zeros_like(index), index, own, rows.num_used, {}, terms, [])
        for block in self._behind:
            x = block(x, there)
        for row, slot in enumerate(slots):
            self._changes[slot].append((there.changes, row))
        return x

    def _rows(self, slots: Sequence[int], depths: Sequence[int], index: Tensor, depth: Tensor) -> Rows:
        assert self.state.num_skipped is not None
        skipped = torch.nn.functional.pad(self.state.num_skipped[index], (1, 0)).gather(1, depth[:, None])
        positions = self.state.num_tokens[index][:, None] - 1 - skipped
        layout = Layout(positions, positions == 0, positions[:, 0], None)
        shares, dtype = {}, self._x.dtype
        for rank in self._ranks:
            loop_of = torch.arange(self.num_loops * rank, device=depth.device) // rank
            shares[rank] = (loop_of == depth[:, None]).to(dtype)
        # Asking costs a wait for a GPU.
        num_used = 0 if self.engine.config.attention is None else int(positions.max())
        return Rows(depth, depth * self.num_slots + index, layout, num_used, shares, self._terms(slots, depths), [])

    def _terms(self, slots: Sequence[int], depths: Sequence[int]) -> list[tuple[int, RowTerms]]:
        """Terms of adapters by the loop of their rows."""
        found = []
        for rows, terms in self._low_rank(slots):
            for loop in sorted({depths[row] for row in rows.tolist()}):
                own = [row for row in rows.tolist() if depths[row] == loop]
                found.append((loop, RowTerms(self._index(own), terms)))
        return found
