"""A model whose layers share parameters is the plain model of copies, and its gradients are the copies' sums.

States:
- logits and states = those of the plain model with a copy of every shared parameter at each place;
- the gradient of a shared parameter = the sum of the gradients of its copies;
- the gradients of a term = those of the matrix, times the other factor;
- every parameter is there once, under the names of the configuration, and stays one where the type changes.
"""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import PATTERNS, Case, assert_same_logits, assert_same_state, configs, empty_state, random_model
from tolerances import assert_agree

from griffinlm.config import LOW_RANK, ModelConfig, RecursionConfig, is_matrix
from griffinlm.model.griffin import Griffin
from griffinlm.presets import PRESETS

double = torch.float64


@st.composite
def recursive_configs(draw: st.DrawFn) -> ModelConfig:
    config = draw(configs().filter(lambda one: one.recursion is not None and one.recursion.num_loops > 1))
    assert isinstance(config, ModelConfig)
    return config


def unrolled(model: Griffin) -> Griffin:
    """The plain model of copies, W' + up down in the place of every matrix."""
    plain, config = Griffin(dataclasses.replace(model.config, recursion=None)).double(), model.config
    weights = {}
    for place in plain.config.parameter_shapes():
        weights[place] = model.get_parameter(config.parameter_at(place)).detach().clone()
        term = place.removesuffix(".weight") + LOW_RANK
        if is_matrix(place) and f"{term}.down" in config.place_shapes():
            added = model.get_parameter(f"{term}.up") @ model.get_parameter(f"{term}.down")
            weights[place] += (added if added.dim() == 2 else added.transpose(1, 2)).detach()
    plain.load_state_dict(weights)
    return plain


@given(recursive_configs(), st.integers(0, 2**31))
def test_shared_layers_equal_copies_and_their_gradients_are_the_sums_of_the_copies(config, seed):
    model = random_model(config, seed, double)
    plain = unrolled(model)
    tokens = torch.randint(config.vocab_size, (2, 9), generator=torch.Generator().manual_seed(seed))
    case = Case(model, tokens)
    (logits, state), (expected, expected_state) = (one(tokens, case.empty()) for one in (model, plain))
    assert_same_logits(logits, expected)
    assert_same_state(state, expected_state)
    for found in (logits, expected):
        (found.double() * torch.linspace(-1, 1, found.numel(), dtype=double).reshape(found.shape)).sum().backward()
    sums: dict[str, torch.Tensor] = {}
    for place, copy in plain.named_parameters():
        name, gradient = config.parameter_at(place), copy.grad
        assert gradient is not None
        sums[name] = sums.get(name, torch.zeros_like(gradient)) + gradient
        term = place.removesuffix(".weight") + LOW_RANK
        if is_matrix(place) and f"{term}.down" in config.place_shapes():
            matrix = gradient if gradient.dim() == 2 else gradient.transpose(1, 2)
            down, up = (model.get_parameter(f"{term}.{side}").detach() for side in ("down", "up"))
            sums |= {f"{term}.down": up.mT @ matrix, f"{term}.up": matrix @ down.mT}
    for name, parameter in model.named_parameters():
        assert_agree(parameter.grad, sums[name], "model gradient", "float64", "torch", name)


@pytest.mark.parametrize("tie", ["matrices", "all"])
def test_one_layer_in_all_loops_equals_a_plain_model_of_that_layer_again_and_again(tie):
    config = dataclasses.replace(PRESETS["tiny-hawk"], num_layers=4, recursion=RecursionConfig(4, tie))
    model = random_model(dataclasses.replace(config, recursion=RecursionConfig(4, "all")), 0)
    weights = dict(model.named_parameters())
    same = {
        place: weights[f"layers.0.{place.split('.', 2)[2]}"] for place in config.place_shapes() if "layers." in place
    }
    same |= {place: weights[place] for place in ("embedding.weight", "final_norm.scale")}
    tokens = torch.arange(12)[None]
    for other in (config, dataclasses.replace(config, recursion=None)):
        repeated = Griffin(other)
        repeated.load_state_dict(same)
        assert torch.equal(repeated(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tie", ["matrices", "all"])
def test_every_parameter_is_there_once_under_its_name(pattern, tie):
    preset = PRESETS["tiny-griffin" if "local_attention" in PATTERNS[pattern] else "tiny-gemma"]
    kinds = set(PATTERNS[pattern])
    config = dataclasses.replace(
        preset,
        block_pattern=PATTERNS[pattern],
        num_layers=2 * len(PATTERNS[pattern]),
        recurrent=PRESETS["tiny-griffin"].recurrent if "recurrent" in kinds else None,
        attention=preset.attention if kinds - {"recurrent"} else None,
        recursion=RecursionConfig(2, tie, rank=3),
    )
    model = Griffin(config)
    for one in (model, model.to(torch.bfloat16), model.to(torch.float64)):
        found = {name: tuple(parameter.shape) for name, parameter in one.named_parameters()}
        assert found == config.parameter_shapes()
    assert empty_state(model, 1, 8).blocks[0][0].shape[0] == 1
