"""bfloat16 stays near float32 however long the document, and a decay of one breaks nothing."""

from typing import get_args

import numpy as np
import pytest
import torch

from griffinlm.config import DecayRange
from griffinlm.model.blocks import AttentionState, RecurrentState

from .drift import drifts
from .models import HAWK, RECURRENTGEMMA, griffin, random_tensors

BOUND = 1.5e-2
"""Of the relative L2 error, for h and for logits, at every length alike."""


@pytest.mark.parametrize("initial_decay_range", get_args(DecayRange))
def test_bfloat16_drift_does_not_grow_with_length(initial_decay_range: DecayRange):
    for drift in drifts(initial_decay_range):
        assert drift.hidden < BOUND, drift.num_tokens
        assert drift.logits < BOUND, drift.num_tokens


def test_recurrent_state_is_float32_and_window_bfloat16_at_every_boundary_of_a_bfloat16_model():
    model = griffin(RECURRENTGEMMA, random_tensors(RECURRENTGEMMA, seed=5)).bfloat16()
    state = None
    for num_tokens in (1, 1, 3, 12, 1, 30):
        logits, state = model(torch.zeros(2, num_tokens, dtype=torch.int64), state)
        assert logits is not None
        assert logits.dtype == torch.float32
        for block in state.blocks:
            if isinstance(block, RecurrentState):
                assert block.hidden.dtype == torch.float32
                assert block.convolution.dtype == torch.bfloat16
            else:
                assert isinstance(block, AttentionState)
                assert block.keys.dtype == block.values.dtype == torch.bfloat16


@pytest.mark.parametrize("a_param", [-20.0, -100.0, -1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decay_of_one_keeps_the_first_input_and_gives_finite_gradients(dtype: torch.dtype, a_param: float):
    tensors = dict(random_tensors(HAWK, seed=6))
    decays = {name: np.full_like(values, a_param) for name, values in tensors.items() if name.endswith("a_param")}
    model = griffin(HAWK, {**tensors, **decays}.items()).to(dtype)
    tokens = torch.arange(40)[None] % HAWK.vocab_size
    _, first = model(tokens[:, :1])
    logits, state = model(tokens)
    assert logits is not None
    logits.logsumexp(-1).sum().backward()
    assert torch.isfinite(logits).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if a_param <= -100.0:
        # 1 - a^2 is 0: nothing enters after the unscaled first token, and nothing fades.
        torch.testing.assert_close(state.blocks[0].hidden, first.blocks[0].hidden)
