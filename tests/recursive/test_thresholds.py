"""Thresholds keep the promised quality on what they were found from, and no lower ones do."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.recursive import RecursiveError
from griffinlm.recursive.exits import calibrated_thresholds

records = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), st.booleans()), min_size=1, max_size=30)


@given(records, st.sampled_from([0.0, 0.5, 0.75, 1.0]))
def test_a_threshold_is_the_lowest_confidence_whose_tokens_are_right_often_enough(record, quality):
    sure, right = (np.asarray(values) for values in zip(*record, strict=True))
    (found,) = calibrated_thresholds(sure[:, None], right[:, None], quality)
    good = [float(one) for one in sorted(set(sure)) if right[sure >= one].mean() >= quality]
    assert found == min(good, default=math.inf)


def test_every_loop_has_its_own():
    sure, right = np.asarray([[0.3, 0.8], [0.6, 0.2]]), np.asarray([[False, True], [True, True]])
    assert calibrated_thresholds(sure, right, 1.0) == [0.6, 0.2]


@pytest.mark.parametrize("quality", [-0.1, 1.1, math.nan])
def test_a_quality_that_is_no_share_is_refused(quality):
    with pytest.raises(RecursiveError, match="quality is"):
        calibrated_thresholds(np.ones((1, 1)), np.ones((1, 1), bool), quality)
