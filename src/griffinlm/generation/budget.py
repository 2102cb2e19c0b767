"""How many conversations fit: a division, since every state takes the same number of bytes."""

from typing import NamedTuple

from griffinlm.errors import GriffinError

DEFAULT_SLOTS_AT_MOST = 32
"""More rows than these hardly make a step worth more; further states are of more use where they are kept ready."""

STATES_BESIDE_PLACES = 2
"""That of a prompt which several answers share, and the one that the store is putting together."""


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
    num_spare_rows: int = 0
    """States that an executor keeps beside those of its slots."""

    @property
    def budget_bytes(self) -> int:
        """What is used of the budget at most."""
        num_states = self.num_slots + self.num_spare_rows + self.num_places + STATES_BESIDE_PLACES
        return num_states * self.state_bytes + self.store_bytes


class MemoryUse(NamedTuple):
    """Bytes of states, counted exactly."""

    slot_bytes: int
    """Of all slots at their full size, used or not, and of what the executor keeps beside them."""
    aside_bytes: int
    """Between slots and store."""
    store_bytes: int
    """Of the states that the store keeps ready in memory."""


def num_slots_within(budget_bytes: int, state_bytes: int, num_states_aside: int = 1) -> int:
    """Slots of an executor that a budget pays for.

    Args:
        state_bytes: of the arrays of one row (`state.state_layout`).
        num_states_aside: states held outside the slots. A scheduler holds at most one, of a prompt that several answers
            share; a caller that keeps further states counts them here.

    Raises:
        BudgetError: there would be no slot.
    """
    num_slots = budget_bytes // state_bytes - num_states_aside
    if num_slots < 1:
        least = (1 + num_states_aside) * state_bytes
        raise BudgetError(
            f"the budget for states is {budget_bytes} bytes; it must be at least {least}: "
            f"one slot and {num_states_aside} aside, {state_bytes} bytes each"
        )
    return num_slots


def plan_memory(
    budget_bytes: int, state_bytes: int, num_slots: int | None = None, num_places: int = 4, num_spare_rows: int = 0
) -> MemoryPlan:
    """Slots and places of a service and the memory of its store, together within a budget.

    Args:
        state_bytes: of the arrays of one row (`state.state_layout`).
        num_slots: conversations that shall run at a time; None is as many as fit, at most `DEFAULT_SLOTS_AT_MOST`.
            What they leave goes to the store.
        num_spare_rows: as the engine says (`Engine.num_spare_rows`).

    Raises:
        BudgetError: they do not fit; it tells the bytes that they need.
    """
    aside = num_places + STATES_BESIDE_PLACES + num_spare_rows
    fitting = num_slots_within(budget_bytes, state_bytes, aside)
    chosen = min(fitting, DEFAULT_SLOTS_AT_MOST) if num_slots is None else num_slots
    if not 1 <= chosen <= fitting:
        least = (max(chosen, 1) + aside) * state_bytes
        raise BudgetError(
            f"{chosen} conversations at a time do not fit into {budget_bytes} bytes for states: 1 to {fitting} do, and"
            f" {chosen} need {least}, {state_bytes} bytes each and {aside} aside"
        )
    return MemoryPlan(chosen, num_places, budget_bytes - (chosen + aside) * state_bytes, state_bytes, num_spare_rows)
