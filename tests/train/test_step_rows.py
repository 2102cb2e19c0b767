"""The rows of steps: whole steps, every row once in each order, whatever the size of a step."""

import pytest

pytest.importorskip("torch", reason="needs the extra train")

from griffinlm.train.step_rows import StepRows


def read(num_rows: int, step_rows: int, num_passes: int, seed: int = 0) -> list[int]:
    """The rows of so many passes, one behind the other."""
    number = 0
    rows = StepRows(num_rows, step_rows, seed, lambda: number)
    found: list[int] = []
    for number in range(num_passes):  # noqa: B007  (the sampler reads it)
        one = list(rows)
        assert len(one) == len(rows)
        assert len(one) % step_rows == 0
        found += one
    return found


@pytest.mark.parametrize("step_rows", [1, 4, 5, 7, 12])
def test_every_order_has_every_row_once_and_is_the_same_for_steps_of_any_size(step_rows: int):
    found = read(5, step_rows, 5)
    orders = [found[first : first + 5] for first in range(0, 25, 5)]
    assert all(sorted(order) == list(range(5)) for order in orders)
    assert len(set(map(tuple, orders))) > 1
    assert found[:25] == read(5, 1, 5)


def test_the_orders_follow_from_the_seed():
    assert read(20, 4, 2) == read(20, 4, 2)
    assert read(20, 4, 2) != read(20, 4, 2, seed=7)
