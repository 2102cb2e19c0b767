"""How many conversations fit: a division, since every state takes the same number of bytes."""

from griffinlm.errors import GriffinError


class BudgetError(GriffinError):
    """A budget in which nothing can run."""


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
