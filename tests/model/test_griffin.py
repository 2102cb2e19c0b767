"""The whole model: its parameters, the types in it, and that every field of its configuration counts."""

import dataclasses
from typing import Any

import pytest
import torch
from small_models import random_model
from tolerances import assert_agree

from griffinlm.config import AttentionConfig, ConfigError, ModelConfig, RecurrentConfig
from griffinlm.model.blocks import RecurrentState
from griffinlm.model.griffin import Griffin
from griffinlm.model.state import new_state
from griffinlm.presets import PRESETS

SMALL = ("tiny-griffin", "tiny-hawk", "tiny-gemma")


def some_tokens(config: ModelConfig, num_rows: int = 2, num_tokens: int = 19) -> torch.Tensor:
    return torch.randint(config.vocab_size, (num_rows, num_tokens), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_configuration(name):
    """Names and shapes, for the published sizes too: on the meta device nothing is allocated."""
    with torch.device("meta"):
        model = Griffin(PRESETS[name])
    found = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert found == PRESETS[name].parameter_shapes()
    assert not list(model.buffers())


@pytest.mark.parametrize("preset", SMALL)
def test_logits_equal_the_formula_around_the_blocks(preset):
    """Embedding times its scale, residual blocks, final norm, tied head, soft cap."""
    config = ModelConfig.preset(preset)
    model = random_model(config, seed=1)
    seen = {}
    model.layers[0].register_forward_hook(lambda module, args, out: seen.update(first=args[0]))
    model.layers[-1].register_forward_hook(lambda module, args, out: seen.update(last=out[0]))
    tokens = some_tokens(config)
    logits, _ = model(tokens)
    assert_agree(seen["first"], model.embedding.weight[tokens] * config.embedding_scale, "layer", "float32", "torch")
    x = seen["last"]
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + config.norm_epsilon) * (1 + model.final_norm.scale)
    expected = x @ model.embedding.weight.T
    if config.logit_soft_cap is not None:
        expected = config.logit_soft_cap * torch.tanh(expected / config.logit_soft_cap)
    assert_agree(logits, expected, "model", "float32", "torch")


def test_soft_cap_bounds_the_logits():
    config = dataclasses.replace(PRESETS["tiny-griffin"], logit_soft_cap=0.5)
    model = random_model(config, seed=1)
    model.embedding.weight.data *= 100
    logits, _ = model(some_tokens(config))
    assert 0.4 < logits.abs().max() <= 0.5


@pytest.mark.parametrize("preset", SMALL)
def test_bfloat16_model_keeps_its_recurrent_state_and_logits_in_float32(preset):
    config = ModelConfig.preset(preset)
    model = random_model(config, seed=2, dtype=torch.bfloat16)
    tokens = some_tokens(config)
    capacity = tokens.shape[1] + 1 if config.needs_capacity else None
    state = new_state(config, 2, capacity, window_dtype="bfloat16", activation_dtype="bfloat16")
    for chunk in tokens.split(7, dim=1):
        logits, state = model(chunk, state)
        assert logits.dtype == torch.float32
        assert logits.isfinite().all()
        for block in state.blocks:
            if isinstance(block, RecurrentState):
                assert (block.hidden.dtype, block.convolution.dtype) == (torch.float32, torch.bfloat16)
            else:
                assert {block.keys.dtype, block.values.dtype} == {torch.bfloat16}


@pytest.mark.parametrize("window_dtype", ["bfloat16", "float16"])
def test_narrow_window_is_what_every_token_sees_at_any_chunking(window_dtype):
    """A float32 model with a narrow ring: one call = token by token, since keys are rounded before they are seen."""
    config = ModelConfig.preset("tiny-griffin")
    model = random_model(config, seed=4)
    tokens = some_tokens(config)
    state = new_state(config, 2, window_dtype=window_dtype)
    expected, _ = model(tokens, state)
    parts = []
    for token in tokens.split(1, dim=1):
        logits, state = model(token, state)
        parts.append(logits)
    assert_agree(torch.cat(parts, dim=1), expected, "model, narrow window", "float32", "torch")


@pytest.mark.parametrize("preset", SMALL)
def test_every_parameter_gets_a_gradient(preset):
    config = ModelConfig.preset(preset)
    model = random_model(config, seed=5)
    logits, _ = model(some_tokens(config))
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("preset", SMALL)
def test_loss_falls_by_gradient_descent(preset):
    config = ModelConfig.preset(preset)
    model = random_model(config, seed=6)
    tokens = some_tokens(config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        logits, _ = model(tokens[:, :-1])
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]


OTHER_VALUES: dict[str, tuple[str, Any]] = {
    "vocab_size": ("tiny-griffin", 260),
    "width": ("tiny-griffin", 34),
    "num_layers": ("tiny-griffin", 6),
    "block_pattern": ("tiny-griffin", ("recurrent", "local_attention")),
    "mlp_hidden": ("tiny-griffin", 49),
    "recurrent": ("tiny-griffin", None),
    "attention": ("tiny-griffin", None),
    "use_bias": ("tiny-griffin", False),
    "embedding_scale": ("tiny-griffin", 5.0),
    "logit_soft_cap": ("tiny-griffin", None),
    "norm_epsilon": ("tiny-griffin", 1e-3),
    "recursion": ("tiny-griffin", {"num_loops": 1, "rank": 2}),
    "recurrent.width": ("tiny-griffin", 44),
    "recurrent.num_gate_blocks": ("tiny-griffin", 5),
    "recurrent.num_conv_taps": ("tiny-griffin", 3),
    "recurrent.initial_decay_range": ("tiny-griffin", "decay_to_the_eighth"),
    "attention.num_heads": ("tiny-griffin", 3),
    "attention.head_size": ("tiny-griffin", 20),
    "attention.window_tokens": ("tiny-griffin", 8),
    "attention.rope_fraction": ("tiny-griffin", 1.0),
    "attention.rope_wavelength": ("tiny-griffin", 1000.0),
}
"""A preset and another value for every field."""


def test_every_field_has_another_value_to_try():
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for part, cls in (("recurrent", RecurrentConfig), ("attention", AttentionConfig)):
        fields |= {f"{part}.{field.name}" for field in dataclasses.fields(cls)}
    assert OTHER_VALUES.keys() == fields


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_every_field_changes_parameters_or_output_or_is_refused(path):
    preset, value = OTHER_VALUES[path]
    config = PRESETS[preset]
    values = config.to_dict()
    *parents, name = path.split(".")
    part = values[parents[0]] if parents else values
    assert part.get(name) != value
    part[name] = value
    try:
        other = ModelConfig.from_dict(values)
    except ConfigError as error:
        assert name in str(error)
        return
    if other.parameter_shapes() != config.parameter_shapes():
        return
    tokens = some_tokens(config)
    found, expected = (random_model(c, seed=7)(tokens)[0] for c in (other, config))
    assert (found - expected).abs().max() > 1e-4
