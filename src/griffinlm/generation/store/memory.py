"""States ready to use, in an exact number of bytes, the least recently used dropped first."""

from collections import OrderedDict

from griffinlm.generation.store.content import StoredState


class MemoryTier:
    """Materialised states by their node in the index. What is given out and taken in belongs to the tier alone."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.num_bytes = 0
        """Bytes of all arrays held, never above the budget."""
        self._states: OrderedDict[int, StoredState] = OrderedDict()

    def get(self, node: int) -> StoredState | None:
        """The state, not copied: not to be written to."""
        if node not in self._states:
            return None
        self._states.move_to_end(node)
        return self._states[node]

    def put(self, node: int, state: StoredState) -> None:
        """Keeps a copy, in the place of states used longer ago; one larger than the whole budget is not kept."""
        self.drop(node)
        if state.nbytes > self.budget_bytes:
            return
        while self.num_bytes + state.nbytes > self.budget_bytes:
            self.drop(next(iter(self._states)))
        self._states[node] = state.copy()
        self.num_bytes += state.nbytes

    def drop(self, node: int) -> None:
        state = self._states.pop(node, None)
        if state is not None:
            self.num_bytes -= state.nbytes
