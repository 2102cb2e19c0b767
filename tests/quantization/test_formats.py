"""Formats and recipes: names both ways, and which parameter gets which format."""

import json

import pytest

from griffinlm.config import ModelConfig
from griffinlm.presets import PRESETS
from griffinlm.quantization import FLOAT32, RECIPES, Format, QuantizationError, Recipe
from griffinlm.quantization.formats import BLOCK_SIZES, OFFERED_NAMES
from griffinlm.quantization.recipe import matrix_shape

NAMES = ["float32", "int8-channel", *(f"int{bits}-block{size}" for bits in (4, 8) for size in BLOCK_SIZES)]
TINY = ModelConfig.preset("tiny-griffin")


def parsed(name: str) -> Format:
    return Format.parse(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_format_names_it(name: str):
    assert parsed(name).name == name


def test_every_offered_format_exists():
    assert set(OFFERED_NAMES) <= set(NAMES)


@pytest.mark.parametrize(
    "name", ["", "int4", "int4-channel", "int4-block8", "int4-block48", "int8-block512", "int2-block32", "INT4-block32"]
)
def test_an_unknown_format_is_refused_with_those_offered(name: str):
    with pytest.raises(QuantizationError, match="no format is called") as caught:
        parsed(name)
    assert all(offered in str(caught.value) for offered in OFFERED_NAMES)


@pytest.mark.parametrize(("bits", "size"), [(4, None), (4, 48), (3, 32), (32, 32), (16, None)])
def test_a_format_that_no_name_has_cannot_be_made(bits: int, size: int | None):
    with pytest.raises(QuantizationError, match="does not exist"):
        Format(bits, size)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("int4-block32", (("uint8", (5, 3, 16)), ("float32", (5, 3)))),
        ("int8-block32", (("uint8", (5, 3, 32)), ("float32", (5, 3)))),
        ("int8-channel", (("int8", (5, 70)), ("float32", (5,)))),
    ],
)
def test_arrays_of_a_matrix_5_by_70(name: str, shapes: object):
    assert parsed(name).arrays(5, 70) == shapes


@pytest.mark.parametrize(
    ("num_columns", "size"), [(1, 16), (16, 16), (17, 32), (100, 128), (128, 128), (129, 128), (5000, 128)]
)
def test_blocks_are_no_larger_than_a_row_needs(num_columns: int, size: int):
    assert Format(4, 128).fitted(num_columns) == Format(4, size)
    assert Format(8).fitted(num_columns) == Format(8)
    assert FLOAT32.fitted(num_columns) == FLOAT32


@pytest.mark.parametrize("preset", PRESETS)
def test_all_but_vectors_and_convolutions_is_quantized(preset: str):
    config = PRESETS[preset]
    formats = RECIPES["int4"].formats(config)
    kept = config.parameter_shapes().keys() - formats.keys()
    assert all(format.is_quantized for format in formats.values())
    assert all(name.endswith((".bias", ".scale", ".a_param", ".conv.weight")) for name in kept)


def test_the_gates_are_matrices_with_a_row_for_every_output():
    shapes = TINY.parameter_shapes()
    assert shapes["layers.0.recurrent.rg_lru.input_gate.weight"] == (4, 10, 10)
    assert matrix_shape((4, 3, 5)) == (20, 3)
    assert RECIPES["int4"].formats(TINY)["layers.0.recurrent.rg_lru.input_gate.weight"] == Format(4, 16)


def test_gates_are_in_blocks_where_the_rest_is_in_channels():
    formats = RECIPES["int8"].formats(ModelConfig.preset("recurrentgemma-2b"))
    blocks = {name for name, format in formats.items() if format == Format(8, 128)}
    assert {format for name, format in formats.items() if name not in blocks} == {Format(8)}
    assert all("_gate.weight" in name for name in blocks)
    assert len(blocks) == 2 * 18


def test_the_first_pattern_that_matches_decides():
    channels = (("embedding.weight", Format(8)), ("*_gate.weight", Format(8)))
    overrides = (("*.down.weight", FLOAT32), ("layers.0.mlp.*", Format(8, 32)), *channels)
    formats = Recipe(Format(4, 32), overrides).formats(TINY)
    assert formats["layers.0.mlp.down.weight"] == FLOAT32
    assert formats["layers.0.mlp.up.weight"] == Format(8, 32)
    assert formats["layers.1.mlp.up.weight"] == Format(4, 32)
    assert formats["embedding.weight"] == Format(8)
    assert formats["layers.0.recurrent.rg_lru.input_gate.weight"] == Format(8, 16), "blocks, however it is asked for"


@pytest.mark.parametrize("pattern", ["", "layers.9.*", "*.bias", "*.conv.weight", "LAYERS.*", "final_norm.scale"])
def test_a_pattern_that_matches_no_matrix_is_refused(pattern: str):
    with pytest.raises(QuantizationError, match="matches no matrix"):
        Recipe(Format(4, 32), ((pattern, FLOAT32),)).formats(TINY)


@pytest.mark.parametrize(
    "recipe", [*RECIPES.values(), Recipe(FLOAT32, (("a*", Format(8)), ("a*", Format(4, 16)), ("", FLOAT32)))]
)
def test_a_recipe_comes_back_from_json(recipe: Recipe):
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        {"default": "int4-block32"},
        {"default": "int4-block32", "overrides": [], "more": 1},
        {"default": 4, "overrides": []},
        {"default": "int5", "overrides": []},
        {"default": "int4-block32", "overrides": {}},
        {"default": "int4-block32", "overrides": [["a"]]},
        {"default": "int4-block32", "overrides": [["a", 4]]},
        {"default": "int4-block32", "overrides": [["a", "int5"]]},
        {"default": "int4-block32", "overrides": ["ab"]},
    ],
)
def test_a_damaged_recipe_is_refused(values: object):
    with pytest.raises(QuantizationError):
        Recipe.from_dict(values)
