"""The measure of agreement measures, and the page of numbers shows the table that the tests use."""

from pathlib import Path

import numpy as np
import pytest
from tolerances import TOLERANCES, assert_agree, disagreement

PAGE = Path(__file__).resolve().parents[1] / "docs" / "numerics.md"


def table() -> str:
    """The tolerances as the page shows them."""
    lines = ["| operator | type | computed by | tolerance |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {operator} | {dtype} | {backend} | {value:.1e} |"
        for (operator, dtype, backend), value in TOLERANCES.items()
    ]
    return "\n".join(lines)


def test_page_of_numbers_shows_this_table():
    page = PAGE.read_text(encoding="utf-8")
    assert page.split("<!-- tolerances: begin -->\n")[1].split("\n<!-- tolerances: end -->")[0] == table()


def test_measure_is_absolute_below_one_and_relative_above():
    assert disagreement(np.array([0.1, 0.5]), np.array([0.1, 0.25])) == 0.25
    assert disagreement(np.array([100.0, 5.0]), np.array([100.0, 10.0])) == 0.05
    assert disagreement(np.zeros((2, 0)), np.zeros((2, 0))) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_never_agree_not_even_with_themselves(bad):
    values = np.array([1.0, bad])
    assert (
        disagreement(values, np.ones(2)) == disagreement(np.ones(2), values) == disagreement(values, values) == np.inf
    )


def test_another_shape_is_no_agreement():
    with pytest.raises(AssertionError, match="shape"):
        disagreement(np.zeros((2, 1)), np.zeros(2))


def test_what_lies_past_the_tolerance_fails_and_what_is_not_in_the_table_too():
    one = np.ones(3)
    assert_agree(one + 1.9e-5, one, "model", "float32", "torch")
    with pytest.raises(AssertionError, match="logits in float32, torch"):
        assert_agree(one + 2.1e-5, one, "model", "float32", "torch", "logits")
    with pytest.raises(KeyError):
        assert_agree(one, one, "model", "float8", "torch")
