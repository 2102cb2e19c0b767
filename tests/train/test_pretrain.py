"""Whole runs: the same bits when interrupted, the same numbers however a step is cut, a model at the end."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra train")

from transformers import Trainer

import griffinlm
from griffinlm import GriffinError
from griffinlm.checkpoint import open_checkpoint
from griffinlm.evaluate.bits_per_byte import evaluate_documents
from griffinlm.train.config import PretrainConfig
from griffinlm.train.data.pack import is_held_out
from griffinlm.train.errors import TrainError
from griffinlm.train.pretrain import pretrain

LOSS_TOLERANCE = 1e-5


def losses(config: PretrainConfig) -> list[float]:
    return [entry["loss"] for entry in log(config) if "loss" in entry]


def log(config: PretrainConfig) -> list[dict]:
    """What the run logged, without what depends on the clock."""
    entries = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    return [entry for entry in entries if "train_runtime" not in entry]


def weights(output: Path) -> dict[str, np.ndarray]:
    return dict(open_checkpoint(output / "model").tensors())


def is_same(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same bits."""
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def trained(config: PretrainConfig) -> Path:
    """The output of a run, done now."""
    return pretrain(config).model.parent


def test_a_run_learns_and_ends_with_a_model_that_writes(run):
    config = run("evaluation.every_steps=3")
    outcome = pretrain(config)
    assert losses(config)[-1] < 0.8 * losses(config)[0]
    assert [entry["step"] for entry in log(config) if "eval_a_bits_per_byte" in entry] == [3, 6]
    assert outcome.step == 6
    assert (config.output / "tensorboard").is_dir()
    model = griffinlm.load(outcome.model)
    assert model.generate("the hawk", max_tokens=3, seed=0).text


def test_bits_per_byte_are_those_of_evaluation_where_a_row_holds_all(run, run_file):
    texts = [json.loads(line)["text"] for line in (run_file.parent / "b.jsonl").read_text().splitlines()]
    one = next(text for text in texts if is_held_out(text, 0.1))
    config = run("data.row_tokens=200", "evaluation.max_tokens=1", "batch_rows=2")
    outcome = pretrain(config)
    expected = evaluate_documents(griffinlm.load(outcome.model), [one]).bits_per_byte
    assert outcome.figures["eval_b_bits_per_byte"] == pytest.approx(expected, rel=1e-5)


def test_accumulation_of_eight_rows_one_by_one_equals_eight_at_once(finished, run):
    one_by_one = run("output=one_by_one", "rows_per_device=1")
    pretrain(one_by_one)
    assert losses(one_by_one) == pytest.approx(losses(finished), rel=LOSS_TOLERANCE)


def test_gradient_checkpointing_changes_no_bit(finished, run):
    assert is_same(trained(run("output=recomputed", "gradient_checkpointing=true")), finished.output)


def test_the_same_run_gives_the_same_bits_and_another_seed_another_model(finished, run):
    assert is_same(trained(run("output=again")), finished.output)
    assert not is_same(trained(run("output=other", "seed=1")), finished.output)


@pytest.mark.parametrize("step", [2, 4, 6])  # inside the first stage, between the stages, at the end
def test_resumed_equals_uninterrupted_to_the_bit(finished, run, step):
    resumed = run("output=resumed")
    name = f"checkpoints/step-{step}"
    shutil.copytree(finished.output / name, resumed.output / name)
    assert is_same(trained(resumed), finished.output)
    assert log(resumed) == log(finished)


def test_resumed_in_bfloat16_with_accumulation_equals_uninterrupted_to_the_bit(run):
    changes = ("precision=bfloat16", "rows_per_device=4", "evaluation.every_steps=3")
    whole, resumed = run("output=whole", *changes), run("output=resumed", *changes)
    pretrain(whole)
    shutil.copytree(whole.output / "checkpoints/step-2", resumed.output / "checkpoints/step-2")
    assert is_same(trained(resumed), whole.output)
    assert log(resumed) == log(whole)


def test_the_newest_checkpoints_are_kept_and_the_others_go(run):
    config = run("checkpoints.every_steps=1", "checkpoints.num_kept=2")
    pretrain(config)
    assert sorted(path.name for path in (config.output / "checkpoints").iterdir()) == ["step-5", "step-6"]


def test_a_model_directory_trains_on(finished, run):
    config = run("output=second", "optimizer.learning_rate=0.0", 'model={directory = "out/model"}', "seed=5")
    assert is_same(trained(config), finished.output)


def test_a_packed_source_trains_as_its_files_do(finished, run):
    sources = ('sources.a={packed = "out/tokens/a"}', 'sources.b={packed = "out/tokens/b"}')
    assert is_same(trained(run("output=packed", *sources)), finished.output)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["optimizer.learning_rate=0.02"], "belongs to a run with another optimizer"),
        (["seed=1"], "belongs to a run with another weights, another seed"),
        (["matmul_precision=medium"], "belongs to a run with another matmul_precision"),
        (["model.mlp_hidden=50"], "belongs to a run with another model"),
        (["stages.1.steps=3"], "belongs to a run with another stages"),
        (["data.held_out_share=0.2"], "was packed with another options"),
    ],
)
def test_an_output_of_another_run_is_refused(finished, run, changes, told):
    shutil.rmtree(finished.output / "model")
    with pytest.raises(TrainError, match=told):
        pretrain(run(*changes))


def test_what_decides_no_number_may_change_on_the_way(finished, run):
    expected = weights(finished.output)
    shutil.rmtree(finished.output / "model")
    shutil.rmtree(finished.output / "checkpoints" / "step-6")
    found = weights(trained(run("rows_per_device=4", "log_every_steps=3", "checkpoints.every_steps=5")))
    assert all(np.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def test_products_of_rounded_factors_learn_alike_and_end_with_the_run(run, finished):
    config = run("matmul_precision=medium", "output=rounded")
    pretrain(config)
    assert torch.get_float32_matmul_precision() == "highest"
    assert losses(config) == pytest.approx(losses(finished), rel=1e-2)


def test_a_finished_run_is_not_run_again(finished):
    with pytest.raises(GriffinError, match="model exists already"):
        pretrain(finished)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (["model.vocab_size=200"], "the tokenizer has 288 tokens; the model's vocabulary has 200"),
        (["data.row_tokens=100000"], "tokens to train on; a row needs 100001"),
        (["tokenizer=nowhere"], "has no tokenizer"),
        (['sources.a={packed = "nowhere"}'], "holds no packed source"),
        (['sources.a={files = ["nowhere.jsonl"]}'], "cannot be read: No such file"),
        (["model.width=0"], "width is 0"),
    ],
)
def test_a_run_that_cannot_start_is_one_error(run, changes, told):
    with pytest.raises(GriffinError) as caught:
        pretrain(run(*changes))
    assert told in str(caught.value)


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(run):
    config = run(
        "optimizer.learning_rate=10.0", "optimizer.weight_decay=10.0", "log_every_steps=100", "stages.0.steps=96"
    )
    with pytest.raises(TrainError, match=r"the loss is (nan|inf) at step"):
        pretrain(config)
    for path in (config.output / "checkpoints").glob("step-*"):
        assert path.name != "step-98"


def test_a_device_that_is_not_there_is_refused(run):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TrainError, match="device is cuda; torch finds none"):
        pretrain(run("device=cuda"))


def test_a_damaged_checkpoint_is_refused_and_named(finished):
    shutil.rmtree(finished.output / "model")
    shard = next((finished.output / "checkpoints" / "step-6").rglob("*.distcp"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(TrainError, match=r"step-6 is damaged: tensors/__0_0\.distcp differs"):
        pretrain(finished)
    shutil.rmtree(finished.output / "checkpoints" / "step-6")
    pretrain(finished)


@pytest.mark.parametrize("found", [[], 5, None, {}])
def test_a_manifest_that_names_no_run_is_refused(finished, found):
    shutil.rmtree(finished.output / "model")
    path = finished.output / "checkpoints" / "step-6" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "run": found}))
    with pytest.raises(TrainError, match="belongs to a run with another model"):
        pretrain(finished)


def test_a_gradient_that_is_no_number_ends_the_run_before_it_is_saved(run, monkeypatch):
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda self, model: torch.tensor(float("inf")))
    config = run("log_every_steps=1000", "checkpoints.every_steps=1")
    with pytest.raises(TrainError, match="the norm of the gradient is inf at step 1"):
        pretrain(config)
    assert not (config.output / "checkpoints").exists()
