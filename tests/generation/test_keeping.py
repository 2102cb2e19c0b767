"""Where states are kept: at the end, at boundaries, now and then, and never close together."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from griffinlm.generation.keeping import LEAST_GAP_TOKENS, Chain, places_to_keep


@given(
    num_tokens=st.integers(1, 600),
    num_read=st.integers(0, 600),
    boundaries=st.lists(st.integers(0, 700), max_size=20),
    boundary_tokens=st.integers(1, 200),
    has_last=st.booleans(),
)
def test_every_place_worth_keeping_is_kept_or_close_to_one(num_tokens, num_read, boundaries, boundary_tokens, has_last):
    kept = places_to_keep(num_tokens, num_read, boundaries, boundary_tokens, has_last)
    last = num_tokens - 1
    assert kept == sorted(set(kept))
    assert (last in kept) == (has_last and last >= num_read)
    worth = {
        place for place in {*boundaries, *range(boundary_tokens, last, boundary_tokens)} if num_read < place < last
    }
    assert set(kept) - {last} <= worth
    assert all(any(abs(place - other) < LEAST_GAP_TOKENS for other in kept) for place in worth)
    assert all(later - earlier >= LEAST_GAP_TOKENS for earlier, later in itertools.pairwise(kept))


def test_a_branch_stands_on_what_it_branches_off_from_until_it_has_kept_something():
    trunk = Chain(state_id="t")
    branch = Chain(trunk)
    assert branch.latest() == "t"
    trunk.state_id = "u"
    assert branch.latest() == "u"
    branch.state_id = "b"
    assert (branch.latest(), trunk.latest()) == ("b", "u")
