"""How many conversations fit: a division, since every state takes the same number of bytes."""

from typing import NamedTuple

from griffinlm.errors import GriffinError
from griffinlm.executor import Extra

DEFAULT_SLOTS_AT_MOST = 32
"""More rows than these hardly make a step worth more; further states are of more use where they are kept ready."""

STATES_BESIDE_PLACES = 2
"""That of a prompt which several answers share, and the one that the store is putting together."""

NO_EXTRA = Extra()


class BudgetError(GriffinError):
    """A budget in which nothing can run."""


class MemoryPlan(NamedTuple):
    """How a budget for states is spent."""

    num_slots: int
    """Conversations that run at a time."""
    num_places: int
    """States on their way between slots and store."""
    store_bytes: int
    """States that the store keeps ready in memory."""
    state_bytes: int
    extra_bytes: int = 0
    """What an executor keeps beside the states of its slots."""

    @property
    def budget_bytes(self) -> int:
        """What is used of the budget at most."""
        num_states = self.num_slots + self.num_places + STATES_BESIDE_PLACES
        return num_states * self.state_bytes + self.extra_bytes + self.store_bytes


class MemoryUse(NamedTuple):
    """Bytes of states, counted exactly."""

    slot_bytes: int
    """Of all slots at their full size, used or not, and of what the executor keeps beside them."""
    aside_bytes: int
    """Between slots and store."""
    store_bytes: int
    """Of the states that the store keeps ready in memory."""


def num_slots_within(budget_bytes: int, state_bytes: int, num_states_aside: int = 1, extra: Extra = NO_EXTRA) -> int:
    """Slots of an executor that a budget pays for.

    Args:
        state_bytes: of the arrays of one row (`state.state_layout`).
        num_states_aside: states held outside the slots. A scheduler holds at most one, of a prompt that several answers
            share; a caller that keeps further states counts them here.
        extra: as the engine says (`Engine.extra`).

    Raises:
        BudgetError: there would be no slot.
    """
    beside = num_states_aside * state_bytes + extra.num_bytes
    num_slots = (budget_bytes - beside) // (state_bytes + extra.num_bytes_a_slot)
    if num_slots < 1:
        least = beside + state_bytes + extra.num_bytes_a_slot
        raise BudgetError(
            f"the budget for states is {budget_bytes} bytes; it must be at least {least}: "
            f"one slot and {num_states_aside} aside, {state_bytes} bytes each{_and_extra(extra.of(1))}"
        )
    return num_slots


def plan_memory(
    budget_bytes: int, state_bytes: int, num_slots: int | None = None, num_places: int = 4, extra: Extra = NO_EXTRA
) -> MemoryPlan:
    """Slots and places of a service and the memory of its store, together within a budget.

    Args:
        state_bytes: of the arrays of one row (`state.state_layout`).
        num_slots: conversations that shall run at a time; None is as many as fit, at most `DEFAULT_SLOTS_AT_MOST`.
            What they leave goes to the store.
        extra: as the engine says (`Engine.extra`).

    Raises:
        BudgetError: they do not fit; it tells the bytes that they need.
    """
    aside = num_places + STATES_BESIDE_PLACES
    fitting = num_slots_within(budget_bytes, state_bytes, aside, extra)
    chosen = min(fitting, DEFAULT_SLOTS_AT_MOST) if num_slots is None else num_slots
    extra_bytes = extra.of(max(chosen, 1))
    least = (max(chosen, 1) + aside) * state_bytes + extra_bytes
    if not 1 <= chosen <= fitting:
        raise BudgetError(
            f"{chosen} conversations at a time do not fit into {budget_bytes} bytes for states: 1 to {fitting} do, and"
            f" {chosen} need {least}, {state_bytes} bytes each and {aside} aside{_and_extra(extra_bytes)}"
        )
    return MemoryPlan(chosen, num_places, budget_bytes - least, state_bytes, extra_bytes)


def _and_extra(num_bytes: int) -> str:
    return f", and {num_bytes} for what the executor keeps beside them" if num_bytes else ""
