"""The tree of turns, and the states kept for it within a budget."""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from griffinlm.errors import GriffinError
from griffinlm.state import State

Message = dict[str, str]
"""With `role` and `content`."""


class ConversationError(GriffinError):
    """A turn that is not there, or a file that is no conversation."""


@dataclass(eq=False)
class Turn:
    """What the user said and the model answered behind the turns above. Turn 0 is the beginning and holds nothing."""

    number: int
    parent: "Turn | None"
    messages: list[Message]
    children: "list[Turn]" = field(default_factory=list)

    @property
    def path(self) -> "list[Turn]":
        """The turns from the beginning to this one."""
        turns: list[Turn] = []
        turn: Turn | None = self
        while turn is not None:
            turns.append(turn)
            turn = turn.parent
        return turns[::-1]


class Place:
    """A point to go on from: the tokens read, and what the model remembers of them; no state where none was read."""

    def __init__(self, token_ids: Sequence[int], state: State | None) -> None:
        self.token_ids, self.state = array("i", token_ids), state

    @property
    def nbytes(self) -> int:
        tokens = len(self.token_ids) * self.token_ids.itemsize
        return tokens if self.state is None else tokens + self.state.nbytes

    def is_on_the_way_to(self, token_ids: Sequence[int]) -> bool:
        """Whether `token_ids` begin with what was read here."""
        return array("i", token_ids[: len(self.token_ids)]) == self.token_ids


class Places:
    """The places at the ends of turns. Beyond the budget the one that was used longest ago goes; the newest stays."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._by_turn: OrderedDict[Turn, Place] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_turn)

    @property
    def nbytes(self) -> int:
        return sum(place.nbytes for place in self._by_turn.values())

    def put(self, turn: Turn, place: Place) -> None:
        self._by_turn[turn] = place
        self._by_turn.move_to_end(turn)
        while len(self._by_turn) > 1 and self.nbytes > self._budget_bytes:
            self._by_turn.popitem(last=False)

    def get(self, turn: Turn) -> Place | None:
        """The place at the end of a turn, which counts as used now; None where it was not kept."""
        if turn in self._by_turn:
            self._by_turn.move_to_end(turn)
        return self._by_turn.get(turn)

    def nearest(self, turn: Turn, token_ids: Sequence[int]) -> Place | None:
        """The last place on the path to a turn that lies on the way to these tokens."""
        for passed in reversed(turn.path):
            place = self.get(passed)
            if place is not None and place.is_on_the_way_to(token_ids):
                return place
        return None
