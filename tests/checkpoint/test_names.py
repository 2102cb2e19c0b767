"""The tables of names are bijections, whatever the pattern."""

import numpy as np
import pytest

from griffinlm.checkpoint import CheckpointError
from griffinlm.checkpoint.names import TABLES, TableName, entries
from griffinlm.config import ModelConfig
from griffinlm.presets import PRESETS

from .models import GEMMA, GRIFFINS, random_tensors

GRIFFIN_TABLES: list[TableName] = ["griffinlm", "recurrent_gemma", "deepmind", "flax"]
CASES = [(table, config) for table in GRIFFIN_TABLES for config in GRIFFINS.values()] + [
    ("gemma", GEMMA),
    ("griffinlm", GEMMA),
]


@pytest.mark.parametrize("table", GRIFFIN_TABLES)
@pytest.mark.parametrize("preset", [name for name in PRESETS if not name.startswith(("gemma", "mqa", "tiny-gemma"))])
def test_every_parameter_of_a_preset_has_exactly_one_place(preset: str, table: TableName):
    config = ModelConfig.preset(preset)
    found = entries(table, config)
    assert sorted(name for entry in found for name in entry.ours) == sorted(config.parameter_shapes())
    assert len({entry.theirs for entry in found}) == len(found)


@pytest.mark.parametrize("preset", ["gemma-2b", "tiny-gemma"])
def test_every_parameter_of_gemma_has_exactly_one_place(preset: str):
    config = ModelConfig.preset(preset)
    found = entries("gemma", config)
    assert sorted(name for entry in found for name in entry.ours) == sorted(config.parameter_shapes())
    assert len({entry.theirs for entry in found}) == len(found)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_uses_a_name_once(table: str):
    rows = TABLES[table]
    ours = [name for row in rows for name in row.ours]
    assert len(set(ours)) == len(ours)
    assert len({row.theirs for row in rows}) == len(rows)


@pytest.mark.parametrize(("table", "config"), CASES)
def test_unpack_of_pack_is_the_identity_and_gives_the_stated_shape(table: TableName, config: ModelConfig):
    tensors = random_tensors(config)
    for entry in entries(table, config):
        parts = [tensors[name] for name in entry.ours]
        packed = entry.layout.pack(*parts)
        assert packed.shape == entry.shape
        for part, again in zip(parts, entry.layout.unpack(packed), strict=True):
            np.testing.assert_array_equal(again, part)


def test_a_format_without_a_place_for_a_parameter_is_refused():
    with pytest.raises(CheckpointError, match=r"gemma has no place for \d+ parameters of this model, the first is"):
        entries("gemma", GRIFFINS["ends in recurrent"])
