"""The order of rows: a permutation of every source, shares to within a row, the same from any place on."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.train.data.mixture import BLOCK_ROWS, Mixture, TrainingRows, permuted
from griffinlm.train.data.token_file import Row


class Numbered:
    """A source whose row is its own number."""

    def __init__(self, first: int, size: int) -> None:
        self.first, self.size = first, size

    def num_rows(self, row_tokens: int) -> int:
        return self.size

    def row(self, index: int, row_tokens: int) -> Row:
        return Row(*(np.array([self.first + index]),) * 3)


def rows_of(source: TrainingRows, indices) -> list[int]:
    return [int(source[index]["tokens"][0]) for index in indices]


@given(size=st.integers(1, 300), key=st.binary(min_size=1, max_size=8))
def test_a_permutation_hits_every_place_once(size, key):
    assert sorted(permuted(index, size, key) for index in range(size)) == list(range(size))


def test_permutations_of_two_keys_differ_and_neither_is_the_order_itself():
    one, two = ([permuted(index, 1000, key) for index in range(1000)] for key in (b"one", b"two"))
    for order in (one, two):
        assert sum(a == b for a, b in zip(order, range(1000), strict=True)) < 10
        assert sum(b == a + 1 for a, b in pairwise(order)) < 10
    assert sum(a == b for a, b in zip(one, two, strict=True)) < 10


@given(
    weights=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.001, 1.0), min_size=1),
    seed=st.integers(0, 9),
    blocks=st.integers(1, 5),
)
def test_every_share_is_met_at_the_end_of_each_block(weights, seed, blocks):
    mixture = Mixture({}, weights, 8, seed)
    counts = mixture.counts(blocks * BLOCK_ROWS)
    assert sum(counts.values()) == blocks * BLOCK_ROWS
    for name, weight in weights.items():
        expected = blocks * BLOCK_ROWS * weight / sum(weights.values())
        assert abs(counts[name] - expected) <= len(weights)


@given(weights=st.dictionaries(st.sampled_from("abc"), st.floats(0.01, 1.0), min_size=1), seed=st.integers(0, 9))
def test_counts_are_those_of_the_rows_and_each_source_counts_on_by_one(weights, seed):
    mixture = Mixture({}, weights, 8, seed)
    seen: Counter[str] = Counter()
    for index in range(BLOCK_ROWS + 100):
        if index % 97 == 0:
            assert mixture.counts(index) == {name: seen[name] for name in weights}
        name, before = mixture.source_of(index)
        assert before == seen[name]
        seen[name] += 1


def test_a_source_gives_each_row_once_before_any_comes_again():
    files = {"a": Numbered(0, 50), "b": Numbered(1000, 30)}
    rows = TrainingRows([(Mixture(files, {"a": 1.0, "b": 1.0}, 8, 0), 300)])  # pyright: ignore[reportArgumentType]
    found = rows_of(rows, range(300))
    ours = [row for row in found if row < 1000]
    assert sorted(ours[:50]) == sorted(ours[50:100]) == list(range(50))
    assert ours[:50] != ours[50:100]


def test_the_second_stage_goes_on_where_the_first_one_ended():
    files = {"a": Numbered(0, 50), "b": Numbered(1000, 100)}
    first, second = ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 0.0})
    stages = [(Mixture(files, weights, 8, 3, stage), 40) for stage, weights in enumerate((first, second))]
    found = rows_of(TrainingRows(stages), range(80))  # pyright: ignore[reportArgumentType]
    ours = [row for row in found if row < 1000]
    assert all(row < 1000 for row in found[40:])
    assert sorted(ours[:50]) == list(range(50))


def test_any_place_gives_the_row_that_the_whole_order_has_there():
    files = {"a": Numbered(0, 50), "b": Numbered(1000, 30)}

    def made() -> TrainingRows:
        stages = [(Mixture(files, {"a": 2.0, "b": 1.0}, 8, 5, stage), 1500) for stage in (0, 1)]
        return TrainingRows(stages)  # pyright: ignore[reportArgumentType]

    whole = rows_of(made(), range(3000))
    assert len(made()) == 3000
    for place in (2999, 1501, 1500, 1499, 1024, 1023, 7, 0):
        assert rows_of(made(), [place]) == [whole[place]]


def test_another_seed_is_another_order():
    files = {"a": Numbered(0, 500)}
    orders = [
        rows_of(TrainingRows([(Mixture(files, {"a": 1.0}, 8, seed), 500)]), range(500))  # pyright: ignore[reportArgumentType]
        for seed in (0, 1)
    ]
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 10


@pytest.mark.parametrize("num_sources", [33, 100])
def test_many_sources_have_blocks_that_hold_them_all(num_sources):
    mixture = Mixture({}, {str(number): 1.0 for number in range(num_sources)}, 8, 0)
    counts = mixture.counts(num_sources**2)
    assert max(counts.values()) - min(counts.values()) <= num_sources
