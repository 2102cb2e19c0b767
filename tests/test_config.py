"""Configurations: the published counts, the way to JSON and back, and one clear line for everything that cannot be."""

import dataclasses
import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.config import (
    MAX_LAYERS,
    MAX_SIZE,
    RG_LRU_EXPONENT,
    AttentionConfig,
    ConfigError,
    ModelConfig,
    RecurrentConfig,
    RecursionConfig,
)
from griffinlm.presets import PRESETS, bfloat16_sqrt

PUBLISHED_COUNTS = {
    "recurrentgemma-2b": (2_682_862_080, 2_027_502_080),
    "recurrentgemma-9b": (8_579_977_216, 7_531_401_216),
    "griffin-7b": (7_795_144_704, 6_746_568_704),
    "hawk-7b": (8_161_562_624, 7_112_986_624),
}
"""All parameters, and those outside the embedding."""

ENDLESS = pytest.param(10**5000, id="endless")
"""An integer that Python refuses to print."""

PARTS = {"recurrent": RecurrentConfig, "attention": AttentionConfig, "recursion": RecursionConfig}
RECURSION = {"num_loops": 1, "tie": "matrices", "rank": 2, "skips": False}

PAPER_SIZES = [name for name in PRESETS if re.fullmatch(r"(griffin|hawk|mqa)-[\d.]+[mb]", name)]


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    config = ModelConfig.preset(name)
    counts = config.num_parameters, config.num_parameters - config.num_embedding_parameters
    assert counts == PUBLISHED_COUNTS[name]


def test_gemma_has_the_published_count_outside_its_embedding():
    config = ModelConfig.preset("gemma-2b")
    assert config.num_parameters - config.num_embedding_parameters == 1_981_884_416


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_size_of_the_paper_is_within_a_fifth_of_its_name(name):
    number, unit = name.split("-")[1][:-1], name[-1]
    named = float(number) * {"m": 1e6, "b": 1e9}[unit]
    config = ModelConfig.preset(name)
    assert config.num_parameters - config.num_embedding_parameters == pytest.approx(named, rel=0.2)


def test_the_paper_has_griffin_in_seven_sizes_and_hawk_and_the_transformer_in_six():
    assert [sum(name.startswith(family) for name in PAPER_SIZES) for family in ("griffin-", "hawk-", "mqa-")] == [
        7,
        6,
        6,
    ]


@pytest.mark.parametrize(("width", "factor"), [(2560, 50.5), (4096, 64.0), (256, 16.0), (32, 5.65625)])
def test_embedding_factor_is_rounded_to_bfloat16(width, factor):
    assert bfloat16_sqrt(width) == factor


def test_recurrentgemma_has_the_published_sizes():
    config = ModelConfig.preset("recurrentgemma-2b")
    kinds = config.block_kinds
    assert [i for i, kind in enumerate(kinds) if kind == "local_attention"] == list(range(2, 26, 3))
    assert kinds[-2:] == ("recurrent", "recurrent")
    assert config.attention == AttentionConfig(num_heads=10, head_size=256, window_tokens=2048)
    assert config.recurrent == RecurrentConfig(width=2560, num_gate_blocks=10)
    assert (config.mlp_hidden, config.logit_soft_cap, config.norm_epsilon) == (7680, 30.0, 1e-6)
    assert RG_LRU_EXPONENT == 8.0


def test_plan_names_every_block_once_in_order():
    config = ModelConfig.preset("tiny-griffin")
    assert [step.kind for step in config.plan()] == list(config.block_kinds)
    assert [step.depth for step in config.plan()] == list(range(config.num_layers))
    assert len({step.state for step in config.plan()}) == config.num_layers
    assert all(any(name.startswith(step.weights + ".") for name in config.parameter_shapes()) for step in config.plan())


def test_unknown_preset_is_one_line_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"'nothing\\nnamed so'.*tiny-griffin") as error:
        ModelConfig.preset("nothing\nnamed so")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json_gives_an_equal_configuration(name):
    config = PRESETS[name]
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def edited(path: str, value: Any, preset: str = "tiny-griffin") -> dict[str, Any]:
    """A preset as a dict with the field at a dotted path set to a value."""
    values = PRESETS[preset].to_dict()
    *parents, name = path.split(".")
    if parents == ["recursion"]:
        values["recursion"] = dict(RECURSION)
    part = values
    for parent in parents:
        part = part[parent]
    part[name] = value
    return values


def leaf_fields() -> list[str]:
    """Dotted paths of all fields."""
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    for part, cls in PARTS.items():
        names += [f"{part}.{field.name}" for field in dataclasses.fields(cls)]
    return names


def refusal(values: Any) -> str:
    """The message of the ConfigError that `values` raise: one line, not too long."""
    with pytest.raises(ConfigError) as error:
        ModelConfig.from_dict(values)
    message = str(error.value)
    assert message
    assert message.isprintable()
    assert len(message) < 600
    return message


SIZES = [
    "vocab_size",
    "width",
    "num_layers",
    "mlp_hidden",
    "recurrent.width",
    "recurrent.num_gate_blocks",
    "recurrent.num_conv_taps",
    "attention.num_heads",
    "attention.head_size",
    "attention.window_tokens",
]
NUMBERS = ["embedding_scale", "logit_soft_cap", "norm_epsilon", "attention.rope_fraction", "attention.rope_wavelength"]


@pytest.mark.parametrize("path", SIZES)
@pytest.mark.parametrize("value", [0, -1, 10**12, ENDLESS, 1.5, 8.0, math.nan, math.inf, "8", True, [8], {"a": 8}])
def test_size_that_is_no_positive_integer_of_sane_magnitude_is_refused(path, value):
    assert path in refusal(edited(path, value))


@pytest.mark.parametrize("path", NUMBERS)
@pytest.mark.parametrize(
    "value", [-1, -0.5, math.nan, math.inf, -math.inf, 1e300, ENDLESS, 5e-324, "1", False, [1.0], {}]
)
def test_number_that_is_not_finite_and_positive_is_refused(path, value):
    assert path in refusal(edited(path, value))


@pytest.mark.parametrize("path", leaf_fields())
def test_value_of_another_type_is_refused_in_every_field(path):
    assert path in refusal(edited(path, object()))
    assert path in refusal(edited(path, "a long\nstory " * 1000))


def test_largest_sizes_are_taken_without_computing_on_them():
    for path in SIZES:
        largest = MAX_LAYERS if path == "num_layers" else MAX_SIZE
        values = edited(path, largest)
        if path == "recurrent.num_gate_blocks":
            values["recurrent"]["width"] = largest
        assert ModelConfig.from_dict(values).num_parameters > 0
        assert path in refusal(edited(path, largest + 1))


@pytest.mark.parametrize("path", leaf_fields())
def test_missing_field_is_named_or_has_its_default(path):
    values = {**PRESETS["tiny-griffin"].to_dict(), "recursion": dict(RECURSION)}
    *parents, name = path.split(".")
    part = values[parents[0]] if parents else values
    del part[name]
    cls = PARTS[parents[0]] if parents else ModelConfig
    default = cls.__dataclass_fields__[name].default
    if default is dataclasses.MISSING:
        assert f"missing {path}" in refusal(values)
    elif path in ("recurrent", "attention", "attention.window_tokens"):
        assert path in refusal(values)
    else:
        config = ModelConfig.from_dict(values)
        assert getattr(getattr(config, parents[0]) if parents else config, name) == default


def test_all_unknown_and_missing_fields_are_named_at_once():
    values = edited("widht", 32)
    del values["width"], values["vocab_size"]
    message = refusal(values)
    assert all(part in message for part in ("unknown 'widht'", "missing vocab_size", "missing width"))
    assert "unknown attention.'heads'" in refusal(edited("attention.heads", 3))


def test_a_hundred_unknown_fields_are_the_first_few_and_a_count():
    assert "and 95 more" in refusal({**PRESETS["tiny-hawk"].to_dict(), **{f"field_{i}": i for i in range(100)}})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (edited("block_pattern", []), "block_pattern is empty"),
        (edited("block_pattern", ["recurrent", "mamba"]), "block_pattern holds 'mamba'"),
        (edited("block_pattern", [["recurrent"]]), "block_pattern holds ['recurrent']"),
        (edited("block_pattern", "recurrent"), "list of block kinds"),
        (edited("recurrent", None), "recurrent sizes"),
        (edited("attention", None), "attention sizes"),
        (edited("attention", {}, "tiny-hawk"), "missing attention.num_heads"),
        (edited("attention", PRESETS["tiny-gemma"].to_dict()["attention"], "tiny-hawk"), "attention sizes"),
        (edited("attention.window_tokens", None), "window_tokens"),
        (edited("attention.window_tokens", 8, "tiny-gemma"), "window_tokens"),
        (edited("recurrent.num_gate_blocks", 3), "multiple of num_gate_blocks"),
        (edited("recurrent.num_conv_taps", 1), "num_conv_taps is 1"),
        (edited("recurrent.initial_decay_range", "slow"), "initial_decay_range is 'slow'"),
        (edited("attention.rope_fraction", 1.25), "rope_fraction is 1.25"),
        (edited("attention.rope_fraction", 0.2), "even number of channels"),
        (edited("num_layers", 2), "attention sizes"),
        ([], "table of fields"),
        (None, "table of fields"),
        (edited("recurrent", [1]), "table of fields"),
        (edited("recursion", {"num_loops": 2}), "num_loops is 2; 5 layers in a pattern of 3 have room for 1"),
        (edited("recursion", {"num_loops": 0}), "recursion.num_loops is 0; it must lie in 1..2147483648"),
        (edited("recursion.rank", -1), "recursion.rank is -1; it must lie in 0..2147483648"),
        (edited("recursion.tie", "some"), "recursion.tie is 'some'; allowed are matrices, all"),
        (edited("recursion.skips", 1), "recursion.skips is 1; it must be true or false"),
    ],
)
def test_impossible_configuration_says_what_is_wrong(values, words):
    assert words in refusal(values)


def test_constructors_check_what_from_dict_checks():
    with pytest.raises(ConfigError, match=r"recurrent\.width is '8'; it must be an integer"):
        RecurrentConfig(width="8", num_gate_blocks=1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="num_layers is 0"):
        dataclasses.replace(PRESETS["tiny-hawk"], num_layers=0)


keys = st.text(max_size=5) | st.sampled_from([path.split(".")[-1] for path in leaf_fields()])
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-3, 9)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["recurrent", "local_attention", "global_attention", 10**12, 10**400, 2**31, 0.5]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=6),
    max_leaves=8,
)


def assert_config_or_one_line(values: Any) -> None:
    try:
        config = ModelConfig.from_dict(values)
    except ConfigError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 600
    else:
        assert ModelConfig.from_dict(config.to_dict()) == config
        assert len(config.plan()) == config.num_layers


@given(json_values)
def test_any_json_value_is_a_configuration_or_a_config_error_in_one_line(values):
    assert_config_or_one_line(values)


@given(
    st.sampled_from(["tiny-griffin", "tiny-hawk", "tiny-gemma", "recurrentgemma-2b"]),
    st.lists(st.tuples(st.sampled_from(leaf_fields()), json_values), min_size=1, max_size=3),
    st.dictionaries(keys, json_values, max_size=2),
)
def test_any_damage_to_a_configuration_is_taken_or_refused_in_one_line(preset, edits, additions):
    values = PRESETS[preset].to_dict()
    for path, value in edits:
        *parents, name = path.split(".")
        part = values.get(parents[0]) if parents else values
        if isinstance(part, dict):
            part[name] = value
    assert_config_or_one_line({**values, **additions})


def recursive(preset: str, **fields: Any) -> ModelConfig:
    return dataclasses.replace(PRESETS[preset], recursion=RecursionConfig(**fields))


@pytest.mark.parametrize(
    ("preset", "num_loops", "num_shared", "num_own"),
    [
        ("recurrentgemma-2b", 2, 12, 2),
        ("recurrentgemma-2b", 3, 6, 8),
        ("recurrentgemma-2b", 4, 6, 2),
        ("recurrentgemma-2b", 8, 3, 2),
        ("recurrentgemma-9b", 2, 18, 2),
        ("recurrentgemma-9b", 3, 12, 2),
        ("recurrentgemma-9b", 12, 3, 2),
        ("gemma-2b", 2, 9, 0),
        ("gemma-2b", 3, 6, 0),
        ("hawk-100m", 5, 2, 2),
        ("eyas", 2, 3, 0),
        ("tiny-griffin", 1, 3, 2),
    ],
)
def test_loops_share_as_many_whole_patterns_as_there_is_room_for(preset, num_loops, num_shared, num_own):
    config = recursive(preset, num_loops=num_loops)
    assert config.num_shared_layers == num_shared
    assert config.num_layers - config.num_looped_layers == num_own
    for step in config.plan():
        place = f"{step.weights}.mlp.up.weight"
        layer = step.depth % num_shared if step.depth < num_loops * num_shared else step.depth
        assert config.parameter_at(place) == f"layers.{layer}.mlp.up.weight"
        assert config.block_kinds[layer] == step.kind


def test_a_recursive_gemma_has_the_published_counts():
    """Outside the embedding, of two loops; with the terms of ranks 64 and 512 (papers' table: 0.99, 1.07 and 1.60B)."""
    sizes = {
        rank: recursive("gemma-2b", num_loops=2, tie="all", rank=rank).num_parameters - 256_000 * 2048
        for rank in (0, 64, 512)
    }
    assert sizes[0] == (1_981_884_416 - 2048) // 2 + 2048
    assert {rank: round(size / 1e9, 2) for rank, size in sizes.items()} == {0: 0.99, 64: 1.07, 512: 1.6}


def test_matrices_are_shared_and_all_else_is_a_layers_own_or_everything_is_shared():
    matrices, everything = (recursive("eyas", num_loops=2, tie=tie, rank=4) for tie in ("matrices", "all"))
    for config in (matrices, everything):
        own = {
            p for p in config.place_shapes() if p.startswith(("layers.3", "layers.5")) and config.parameter_at(p) == p
        }
        kinds = {place.split(".", 2)[2] for place in own if ".low_rank." not in place}
        assert all(f"layers.3.{name}.low_rank.up" in own for name in ("mlp.down", "recurrent.rg_lru.input_gate"))
        if config is everything:
            assert not kinds
        else:
            assert {"mlp_norm.scale", "mlp.up.bias", "recurrent.conv.weight", "recurrent.rg_lru.a_param"} <= kinds
            assert not any(name.endswith("weight") and ".conv." not in name for name in kinds)
    for config in (matrices, everything):
        assert set(config.parameter_shapes()) == {config.parameter_at(place) for place in config.place_shapes()}
        assert set(PRESETS["eyas"].parameter_shapes()) == {p for p in config.place_shapes() if ".low_rank." not in p}


def test_a_rank_above_that_of_a_matrix_is_cut_to_it():
    shapes = recursive("eyas", num_loops=2, rank=100).parameter_shapes()
    assert shapes["layers.3.mlp.up.low_rank.down"] == (100, 320)
    assert shapes["layers.5.attention.key.low_rank.up"] == (64, 64)
    assert shapes["layers.4.recurrent.rg_lru.input_gate.low_rank.down"] == (4, 80, 80)


def test_the_json_of_a_model_without_recursion_does_not_name_it():
    assert "recursion" not in PRESETS["eyas"].to_dict()
    config = recursive("eyas", num_loops=2, rank=4, tie="all")
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
