"""Gradients do not depend on how the forward pass was cut or recomputed.

States:
- the gradient of a chunked forward with carried state = the gradient of the full forward;
- gradient checkpointing on = off;
- padding and neighbours in a packed row add nothing to a document's gradient.
"""

import torch
from documents import Row, call_positions
from hypothesis import given
from hypothesis import strategies as st
from small_models import Case, cases, cuts, empty_state, read
from tolerances import assert_agree
from torch import Tensor

from griffinlm.model.griffin import Griffin

double = torch.float64


def gradients(model: Griffin, logits: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter for a loss with fixed random weights on the logits [1, T, V]."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0), dtype=double)
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((logits * weights).sum(), parameters), strict=True))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, gradient in expected.items():
        assert_agree(found[name], gradient, "model gradient", "float64", "torch", f"gradient of {name}")


def full(case: Case, tokens: Tensor) -> Tensor:
    return case.model(tokens, empty_state(case.model, len(tokens), tokens.shape[1]))[0].double()


@given(cases(dtype=double), st.data())
def test_gradient_through_carried_state_equals_that_of_the_full_forward(case, data):
    chunked, _ = read(case.model, list(case.tokens.split(data.draw(cuts(case)), dim=1)), case.empty())
    assert_same_gradients(gradients(case.model, chunked.double()), gradients(case.model, full(case, case.tokens)))


@given(cases(dtype=double))
def test_gradient_checkpointing_on_equals_off(case):
    expected_logits = full(case, case.tokens)
    expected = gradients(case.model, expected_logits)
    case.model.gradient_checkpointing = True
    logits = full(case, case.tokens)
    assert torch.equal(logits, expected_logits)
    assert_same_gradients(gradients(case.model, logits), expected)


@given(cases(dtype=double, num_rows=st.just(1)), st.data())
def test_gradient_of_packed_and_padded_documents_equals_that_of_each_alone(case, data):
    lengths, left = [], case.num_tokens
    while left:
        lengths.append(data.draw(st.integers(1, min(left, 5))))
        left -= lengths[-1]
    row = Row(0, tuple(lengths))
    positions, _ = call_positions([row])
    padded = torch.nn.functional.pad(positions, (1, 2), value=-1)
    tokens = torch.nn.functional.pad(case.tokens, (1, 2))
    packed, _ = case.model(tokens, empty_state(case.model, 1, case.num_tokens), padded)
    alone = [full(case, case.tokens[:, first : first + length]) for _, first, length in row.documents()]
    expected = gradients(case.model, torch.cat(alone, dim=1))
    assert_same_gradients(gradients(case.model, packed[:, 1:-2].double()), expected)
