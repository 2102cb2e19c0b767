"""The number of conversations is a division."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.generation.budget import BudgetError, num_slots_within


@given(state_bytes=st.integers(1, 1 << 30), num_states=st.integers(1, 1000), aside=st.integers(0, 3), data=st.data())
def test_slots_and_states_aside_fill_the_budget_to_less_than_one_state(state_bytes, num_states, aside, data):
    budget_bytes = (num_states + aside) * state_bytes + data.draw(st.integers(0, state_bytes - 1))
    assert num_slots_within(budget_bytes, state_bytes, aside) == num_states


def test_a_budget_without_room_for_a_slot_is_refused_with_the_numbers():
    with pytest.raises(
        BudgetError, match="states is 19 bytes; it must be at least 20: one slot and 1 aside, 10 bytes each"
    ):
        num_slots_within(19, 10)
