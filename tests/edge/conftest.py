"""Rings grow by few slots here, so that short conversations meet every growth of them."""

from collections.abc import Iterator

import pytest

from griffinlm.edge import slots


@pytest.fixture(scope="module", autouse=True)
def _rings_grow_by_few_slots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "RING_STEP_SLOTS", 3)
        yield
