"""The list of a run's keys is what its configuration reads, with the words that stand behind the fields."""

import dataclasses
import tomllib
from pathlib import Path

import pytest

from griffinlm.train.config import OptimizerConfig, StageConfig
from griffinlm.train.keys import KINDS, field_docstrings, keys_of
from griffinlm.train.tuning_config import TuningOptimizerConfig

RECIPES = Path(__file__).parents[2] / "recipes"


def leaves(table, prefix=""):
    """Dotted names of a TOML file's entries."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for one in value:
                yield from leaves(one, f"{prefix}{name}.N.")
        else:
            yield prefix + name


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_listed_once_and_says_what_it_may_be(kind):
    found = list(keys_of(KINDS[kind]))
    names = [key.name for key in found]
    assert len(set(names)) == len(names)
    assert {name.split(".")[0] for name in names} == {field.name for field in dataclasses.fields(KINDS[kind])}
    assert all(key.allowed and key.default for key in found)
    required = {key.name for key in found if key.default == "required"}
    assert {"output", "batch_rows", "optimizer.learning_rate"} <= required


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("pretrain", "pretrain"),
        ("sft", "eyas_sft"),
        ("reward", "eyas_reward"),
        ("rloo", "eyas_rloo"),
        ("dpo", "eyas_dpo"),
    ],
)
def test_what_the_recipes_say_is_listed(kind, recipe):
    listed = {key.name for key in keys_of(KINDS[kind])}
    tables = {name.removesuffix(".NAME") for name in listed if name.endswith(".NAME")}
    free = {key.name for key in keys_of(KINDS[kind]) if key.allowed.startswith("a table") and key.name not in tables}
    said = tomllib.loads((RECIPES / f"{recipe}.toml").read_text(encoding="utf-8"))
    for name in leaves(said):
        table, _, rest = name.partition(".")
        general = f"{table}.NAME.{rest.partition('.')[2]}" if table in tables else name
        assert general in listed or any(name.startswith(f"{one}.") for one in free), name


def test_words_behind_a_field_are_those_of_the_class_that_has_it():
    assert field_docstrings(StageConfig)["mixture"].startswith("Weight of every source; shares")
    assert field_docstrings(TuningOptimizerConfig) == field_docstrings(OptimizerConfig)
    weight_decay = {key.name: key.default for key in keys_of(KINDS["sft"])}["optimizer.weight_decay"]
    assert weight_decay == "0.0"
