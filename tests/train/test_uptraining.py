"""Recursive models in training: from scratch, and from a conversion with the original as teacher.

States:
- uptraining brings a converted model nearer to its teacher, and gives a recursive model that engines run;
- resumed = uninterrupted, recomputed = kept, with shared parameters too;
- training under fake quantization ends on the grid that the quantizer finds.
"""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_agree

pytest.importorskip("transformers", reason="needs the extra train")

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint, write_quantized
from griffinlm.config import RecursionConfig
from griffinlm.quantization import RECIPES
from griffinlm.recursive import Recursion, write_recursive
from griffinlm.train.config import PretrainConfig
from griffinlm.train.errors import TrainError
from griffinlm.train.pretrain import pretrain

RECURSION = ("model.num_layers=7", "model.recursion={num_loops = 2, rank = 2}")
"""A model from scratch: three layers in two loops, and one of its own."""


def losses(config: PretrainConfig) -> list[float]:
    entries = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def weights(output: Path) -> dict[str, np.ndarray]:
    return dict(open_checkpoint(output / "model").tensors())


def assert_same_bits(found: Path, expected: Path) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture
def whole(run) -> PretrainConfig:
    """A recursive model trained from scratch."""
    config = run("output=whole", *RECURSION)
    pretrain(config)
    return config


def test_a_recursive_model_learns_from_scratch_and_runs(whole):
    assert losses(whole)[-1] < 0.8 * losses(whole)[0]
    config = open_checkpoint(whole.output / "model").config
    assert config.recursion == RecursionConfig(num_loops=2, rank=2)
    tokens = [[2, 40, 50, 60]]
    found = [griffinlm.load(whole.output / "model", engine=e).forward(tokens)[0] for e in ("onnx", "torch")]
    assert_agree(found[0], found[1], "model", "float32", "onnx")
    assert griffinlm.load(whole.output / "model").generate("the hawk", max_tokens=3, seed=0).text


def test_resumed_and_recomputed_equal_uninterrupted_and_kept_to_the_bit(whole, run):
    resumed = run("output=resumed", *RECURSION)
    shutil.copytree(whole.output / "checkpoints/step-4", resumed.output / "checkpoints/step-4")
    pretrain(resumed)
    assert_same_bits(resumed.output, whole.output)
    recomputed = run("output=recomputed", "gradient_checkpointing=true", *RECURSION)
    pretrain(recomputed)
    assert_same_bits(recomputed.output, whole.output)


def test_uptraining_from_a_conversion_brings_it_nearer_to_its_teacher(run, run_file, tiny_tokenizer_directory):
    """And a rank begins nearer than none; every parameter is trained."""
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace('preset = "tiny-griffin"\nvocab_size = 288\n', ""), encoding="utf-8")
    teacher = run_file.parent / "teacher"
    griffin = griffinlm.ModelConfig.preset("tiny-griffin")
    config = dataclasses.replace(griffin, vocab_size=288, num_layers=7)
    write_checkpoint(config, initial_tensors(config, 0), teacher, "griffinlm", None, tiny_tokenizer_directory)
    distances = {}
    for rank in (0, 4):
        student = run_file.parent / f"student-{rank}"
        write_recursive(open_checkpoint(teacher), Recursion(2, "average", rank), student)
        changes = (f"output=up-{rank}", f"model.directory={student}", f"teacher={teacher}")
        outcome = pretrain(run(*changes, "teacher_share=0.75"))
        found = losses(run(*changes))
        distances[rank] = found[0]
        assert found[-1] < found[0]
        trained = open_checkpoint(outcome.model)
        assert trained.config == open_checkpoint(student).config
        changed = [
            name for name, values in trained.tensors() if (values != open_checkpoint(student).tensor(name)).any()
        ]
        assert set(changed) == set(trained.config.parameter_shapes())
    assert distances[4] < distances[0]


def test_a_share_without_a_teacher_is_refused(run):
    with pytest.raises(TrainError, match=r"teacher_share is 0\.5; there is no teacher"):
        run("teacher_share=0.5")


def test_training_under_fake_quantization_ends_on_the_quantizers_grid(run):
    config = run("quantization_aware=int8", *RECURSION)
    trained = open_checkpoint(pretrain(config).model)
    reports = write_quantized(trained, RECIPES["int8"], config.output / "quantized")
    assert max(report.relative_error for report in reports) < 1e-5
