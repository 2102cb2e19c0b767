"""The run of recipes/finetune_recurrentgemma_2b.md is one, and its numbers are the model's."""

import re
from pathlib import Path

from griffinlm.config import ModelConfig
from griffinlm.quantization.recipe import EMBEDDING, is_matrix
from griffinlm.train.tuning_config import read_tuning_config

RECIPE = (Path(__file__).parents[2] / "recipes" / "finetune_recurrentgemma_2b.md").read_text(encoding="utf-8")


def test_the_run_can_be_read(tmp_path: Path):
    (block,) = re.findall(r"```toml\n(.*?)```", RECIPE, re.DOTALL)
    path = tmp_path / "tune.toml"
    path.write_text(block, encoding="utf-8")
    config = read_tuning_config(path)
    assert config.lora is not None
    assert (config.lora.rank, config.is_packed, config.trains_weights) == (16, True, False)


def test_parameters_are_those_of_the_model():
    model = ModelConfig.preset("recurrentgemma-2b")
    matrices = {n: shape for n, shape in model.parameter_shapes().items() if is_matrix(n) and n != EMBEDDING}
    linears = sum(16 * sum(shape) for shape in matrices.values() if len(shape) == 2)
    gates = sum(16 * shape[0] * (shape[1] + shape[2]) for shape in matrices.values() if len(shape) == 3)
    for number in (model.num_parameters, linears, gates):
        assert f"{number:,}" in RECIPE
