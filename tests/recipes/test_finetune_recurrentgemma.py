"""The run of recipes/finetune_recurrentgemma_2b.md is one, its commands are, and its numbers are the model's."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from griffinlm.cli.main import app
from griffinlm.config import EMBEDDING, ModelConfig, is_matrix
from griffinlm.cost import reading_operations, training_memory
from griffinlm.train.estimate import DEFAULT_UTILISATION, DEVICES
from griffinlm.train.tuning_config import read_tuning_config

RECIPE = (Path(__file__).parents[2] / "recipes" / "finetune_recurrentgemma_2b.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    (griffin .+)$", RECIPE, re.MULTILINE) + re.findall(r"`(griffin \w+ .+?)`", RECIPE)
MODEL = ModelConfig.preset("recurrentgemma-2b")
ROWS, ROW_TOKENS = 4, 1024
LOGITS_AT_ONCE = 32_768
"""Words of the vocabulary that TRL computes logits of at once."""


def test_the_run_can_be_read(tmp_path: Path):
    (block,) = re.findall(r"```toml\n(.*?)```", RECIPE, re.DOTALL)
    path = tmp_path / "tune.toml"
    path.write_text(block, encoding="utf-8")
    config = read_tuning_config(path)
    assert config.lora is not None
    assert (config.lora.rank, config.is_packed, config.trains_weights) == (16, True, False)
    assert (config.rows_per_device, config.data.row_tokens) == (ROWS, ROW_TOKENS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one(command: str):
    _, *words = shlex.split(command, comments=True)
    found: Any = typer.main.get_command(app)
    while hasattr(found, "get_command"):
        name = words.pop(0)
        found = found.get_command(typer.Context(found), name)
        assert found is not None, name
    assert found.make_context(found.name, words).params


def test_there_are_commands():
    assert len(COMMANDS) > 6


def low_rank_terms() -> tuple[int, int]:
    """Parameters of rank 16 of all linears, and of the gates."""
    matrices = {n: shape for n, shape in MODEL.parameter_shapes().items() if is_matrix(n) and n != EMBEDDING}
    linears = sum(16 * sum(shape) for shape in matrices.values() if len(shape) == 2)
    gates = sum(16 * shape[0] * (shape[1] + shape[2]) for shape in matrices.values() if len(shape) == 3)
    return linears, gates


def test_parameters_are_those_of_the_model():
    for number in (MODEL.num_parameters, *low_rank_terms()):
        assert f"{number:,}" in RECIPE


def test_the_memory_is_that_of_griffin_estimate():
    def activations(recompute: bool) -> int:
        return training_memory(MODEL, ROWS, ROW_TOKENS, recompute=recompute).activations

    weights = MODEL.num_parameters
    logits = ROWS * ROW_TOKENS * LOGITS_AT_ONCE * 4 * 3
    columns = [
        (2 * weights, 16 * low_rank_terms()[0], activations(True), logits),
        (2 * weights, 16 * low_rank_terms()[0], activations(False), logits),
        (4 * weights + 2 * weights, 12 * weights, activations(True), logits),
    ]
    rows = [line.strip("|").split("|") for line in RECIPE.splitlines() if line.startswith("| ")]
    table = {cells[0].split(",")[0].split(":")[0].strip(): cells[1:] for cells in rows}
    names = ("weights", "their float32 copy", "activations", "logits")
    for number, parts in enumerate(columns):
        for name, part in zip(names, parts, strict=True):
            told = [float(figure) for figure in re.findall(r"\d+\.\d", table[name][number])]
            assert sum(told) == pytest.approx(part / 1e9, abs=0.06), (name, number)
        assert table["sum"][number].strip() == f"{sum(parts) / 1e9:.1f}"


def test_the_time_is_three_times_reading():
    operations = 3 * reading_operations(MODEL, ROW_TOKENS).total / ROW_TOKENS
    speed = DEFAULT_UTILISATION * DEVICES["a100"].bfloat16_flops / operations
    minutes = 10e6 / speed / 60
    assert f"about {operations / 1e9:.0f} GFLOP" in RECIPE
    assert f"{round(speed, -2):,.0f} tokens/s, or 10 million tokens in {minutes:.0f} minutes" in RECIPE


def test_the_state_has_the_bytes_it_is_said_to_have():
    assert MODEL.recurrent is not None
    num_states, width = MODEL.block_kinds.count("recurrent"), MODEL.recurrent.width
    assert f"{num_states} x {width:,} numbers, {4 * num_states * width / 1e6:.2f} MB" in RECIPE
