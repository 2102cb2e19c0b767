"""The number of conversations is a division."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.executor import Extra
from griffinlm.generation.budget import BudgetError, num_slots_within, plan_memory


@given(state_bytes=st.integers(1, 1 << 30), num_states=st.integers(1, 1000), aside=st.integers(0, 3), data=st.data())
def test_slots_and_states_aside_fill_the_budget_to_less_than_one_state(state_bytes, num_states, aside, data):
    budget_bytes = (num_states + aside) * state_bytes + data.draw(st.integers(0, state_bytes - 1))
    assert num_slots_within(budget_bytes, state_bytes, aside) == num_states


def test_a_budget_without_room_for_a_slot_is_refused_with_the_numbers():
    with pytest.raises(
        BudgetError, match="states is 19 bytes; it must be at least 20: one slot and 1 aside, 10 bytes each"
    ):
        num_slots_within(19, 10)


@given(
    state_bytes=st.integers(1, 1 << 30),
    num_states=st.integers(5, 1000),
    num_places=st.integers(1, 4),
    extra=st.builds(Extra, st.integers(0, 1 << 30), st.integers(0, 1 << 30)),
    rest=st.integers(0, (1 << 30) - 1),
    data=st.data(),
)
def test_slots_places_and_store_fill_the_budget(state_bytes, num_states, num_places, extra, rest, data):
    slot_bytes = state_bytes + extra.num_bytes_a_slot
    beside = (2 + num_places) * state_bytes + extra.num_bytes
    budget_bytes = (num_states - 2) * slot_bytes + beside + rest % slot_bytes
    num_slots = data.draw(st.sampled_from([None, 1, num_states - 2]))
    plan = plan_memory(budget_bytes, state_bytes, num_slots, num_places, extra)
    assert plan.budget_bytes == budget_bytes
    assert plan.extra_bytes == extra.of(plan.num_slots)
    assert plan.num_slots == (min(32, num_states - 2) if num_slots is None else num_slots)
    assert plan.store_bytes >= 0


@pytest.mark.parametrize("num_slots", [0, 5, 1000])
def test_more_conversations_than_fit_are_refused_with_the_numbers(num_slots):
    with pytest.raises(BudgetError, match=f"{num_slots} conversations at a time do not fit into 100 bytes .* 1 to 4 "):
        plan_memory(100, 10, num_slots)


def test_what_an_executor_keeps_beside_its_slots_is_named_where_nothing_fits():
    with pytest.raises(BudgetError, match="must be at least 29: one slot and 1 aside, 10 bytes each, and 9 for what"):
        num_slots_within(28, 10, extra=Extra(4, 5))
    assert num_slots_within(29 + 15, 10, extra=Extra(4, 5)) == 2
