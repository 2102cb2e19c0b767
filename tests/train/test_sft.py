"""Tuning on conversations: TRL's loss is the one computed by hand, and what is saved computes what was trained."""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")
pytest.importorskip("peft", reason="needs the extra train")

import numpy as np
import torch
from peft import PeftModel
from tolerances import TOLERANCES, assert_agree, disagreement

import griffinlm
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint, write_quantized
from griffinlm.config import ModelConfig, is_matrix
from griffinlm.evaluate.documents import DocumentError
from griffinlm.hf import GriffinForCausalLM
from griffinlm.quantization import RECIPES
from griffinlm.text import Tokenizer
from griffinlm.train.base import open_base
from griffinlm.train.data.conversations import Example
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.errors import TrainError
from griffinlm.train.merge import merge
from griffinlm.train.sft import TuningOutcome, build_trainer, read_examples, tune
from griffinlm.train.tuning_config import TuningConfig
from griffinlm.train.tuning_trainer import TuningTrainer, tuning_arguments

from .tuning import Tuned, tuning_run

SOFT_CAP = 2.0
"""Low enough that a loss without it would be another one."""
PROMPT = [2, 50, 61, 72, 83, 90, 65]


@pytest.fixture(scope="session")
def capped_model(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a low cap. Not to be written to."""
    source, directory = open_checkpoint(tiny_model_directory), tmp_path_factory.mktemp("capped") / "model"
    config = ModelConfig.from_dict({**source.config.to_dict(), "logit_soft_cap": SOFT_CAP})
    write_checkpoint(config, source.tensors(), directory, "griffinlm", None, source.tokenizer_directory)
    return directory


@pytest.fixture
def run(tmp_path: Path, capped_model: Path) -> Tuned:
    return tuning_run(tmp_path, capped_model)


def prepared(config: TuningConfig) -> tuple[TuningTrainer, list[Example]]:
    checkpoint, tokenizer = open_base(config.model)
    examples = read_examples(config, tokenizer)
    return build_trainer(config, tuning_arguments(config), checkpoint, tokenizer, examples), examples.train


def losses(config: TuningConfig) -> list[float]:
    entries = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def loss_by_hand(model: griffinlm.LanguageModel, examples: list[Example]) -> float:
    """The mean of -log p(label) over the labels of all examples, each read by itself, in float64."""
    total, num_labels = 0.0, 0
    for tokens, labels in examples:
        logits, _ = model.forward([tokens])
        assert logits is not None
        wanted = np.array(labels[1:])
        rows = np.flatnonzero(wanted != IGNORED)
        chosen = logits[0, rows].astype(np.float64)
        assert np.abs(chosen).max() <= SOFT_CAP
        log_p = chosen - np.log(np.exp(chosen).sum(axis=-1, keepdims=True))
        total -= log_p[np.arange(len(rows)), wanted[rows]].sum()
        num_labels += len(rows)
    return total / num_labels


def logits_of(model: griffinlm.LanguageModel) -> np.ndarray:
    logits, _ = model.forward([PROMPT])
    assert logits is not None
    return logits


def batches(trainer: TuningTrainer, num_rows: int) -> Iterable[dict[str, torch.Tensor]]:
    """The training rows, each once."""
    trainer.args.per_device_eval_batch_size = num_rows
    return trainer.get_eval_dataloader(trainer.train_dataset)


def mean_loss(trainer: TuningTrainer) -> tuple[float, int]:
    """The trainer's mean loss over its training rows, and the number of labels."""
    total, num_labels = 0.0, 0
    with torch.no_grad():
        for batch in batches(trainer, 4):
            num_here = int((batch["labels"] != IGNORED).sum())
            total += float(trainer.compute_loss(trainer.model, batch)) * num_here
            num_labels += num_here
    return total / num_labels, num_labels


@pytest.mark.parametrize("row_tokens", [96, 40])
@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_trainers_loss_equals_the_loss_by_hand_with_the_cap(run: Tuned, packing: str, row_tokens: int):
    config = run(f"data.packing={packing}", "data.held_out_share=0.0", f"data.row_tokens={row_tokens}")
    trainer, examples = prepared(config)
    assert any(len(example.tokens) == row_tokens for example in examples) or row_tokens == 96, "nothing is cut"
    found, num_labels = mean_loss(trainer)
    expected = loss_by_hand(griffinlm.load(config.model, engine="torch"), examples)
    assert num_labels == sum(label != IGNORED for example in examples for label in example.labels)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_loss_under_fake_quantization_equals_the_loss_by_hand_of_the_quantized_model(
    run: Tuned, capped_model: Path, tmp_path: Path
):
    trainer, examples = prepared(run("quantization_aware=int4", "data.held_out_share=0.0"))
    write_quantized(open_checkpoint(capped_model), RECIPES["int4"], tmp_path / "int4")
    plain = loss_by_hand(griffinlm.load(capped_model, engine="torch"), examples)
    expected = loss_by_hand(griffinlm.load(tmp_path / "int4", engine="torch"), examples)
    assert mean_loss(trainer)[0] == pytest.approx(expected, rel=1e-5)
    assert plain != pytest.approx(expected, rel=1e-3), "the grid changes nothing"


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_held_out_loss_equals_the_loss_by_hand(run: Tuned, packing: str):
    config = run("steps=1", f"data.packing={packing}", "data.held_out_share=0.2")
    outcome = tune(config)
    held_out = read_examples(config, open_base(config.model).tokenizer).held_out
    assert len({sum(label != IGNORED for label in example.labels) for example in held_out}) > 1
    expected = loss_by_hand(griffinlm.load(outcome.result, engine="torch"), held_out)
    assert outcome.figures["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("packing", ["true", "false"])
def test_the_rows_that_are_read_hold_every_label_with_its_tokens(run: Tuned, packing: str):
    trainer, examples = prepared(run(f"data.packing={packing}", "data.held_out_share=0.0", "data.row_tokens=60"))
    found: list[Example] = []
    for batch in batches(trainer, 4):
        mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        for row, (tokens, labels, real) in enumerate(zip(batch["input_ids"], batch["labels"], mask, strict=True)):
            kept = real.bool()
            starts = [0]
            if packing == "true":
                starts = torch.nonzero(batch["position_ids"][row][kept] == 0).flatten().tolist()
            for start, end in itertools.pairwise([*starts, int(kept.sum())]):
                found.append(Example(*(values[kept][start:end].tolist() for values in (tokens, labels))))
    assert sorted(found) == sorted(examples)


def test_packed_rows_hold_several_conversations_and_padded_ones_give_the_same_gradient(run: Tuned):
    gradients = []
    for packing in ("true", "false"):
        trainer, examples = prepared(run(f"data.packing={packing}", "data.held_out_share=0.0"))
        assert (len(trainer.train_dataset) < len(examples)) == (packing == "true")
        (batch,) = batches(trainer, len(examples))
        trainer.compute_loss(trainer.model, batch).backward()
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_a_run_learns_and_ends_with_a_model_that_answers(run: Tuned):
    config = run("steps=12", "quantization_aware=int8")
    outcome = tune(config)
    assert losses(config)[-1] < 0.8 * losses(config)[0]
    assert outcome.step == 12
    assert outcome.result == config.output / "model"
    assert outcome.figures["eval_loss"] < losses(config)[0]
    assert outcome.figures["num_conversations"] + outcome.figures["num_held_out"] == 60
    model = griffinlm.load(outcome.result)
    assert model.tokenizer.encode_chat([{"role": "user", "content": "the hawk"}])
    assert model.generate("the hawk", max_tokens=3, seed=0).token_ids


def test_accumulation_row_by_row_equals_all_rows_at_once(run: Tuned):
    at_once, one_by_one = run("lora={}", output="at_once"), run("lora={}", "rows_per_device=1", output="one_by_one")
    tune(at_once)
    tune(one_by_one)
    assert losses(one_by_one) == pytest.approx(losses(at_once), rel=1e-4)


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory: pytest.TempPathFactory, capped_model: Path) -> TuningOutcome:
    """A trained adapter of every linear and of the gates."""
    return tune(tuning_run(tmp_path_factory.mktemp("lora"), capped_model)("lora.rank=3", "lora.gates=true"))


def test_lora_at_the_start_equals_the_base(run: Tuned, capped_model: Path):
    trainer, _ = prepared(run("lora.gates=true"))
    base = GriffinForCausalLM.from_pretrained(capped_model).eval()
    tokens = torch.tensor([PROMPT])
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(tokens).logits, base(tokens).logits)


def test_a_trained_adapter_beside_quantized_weights_equals_it_merged_into_what_these_stand_for(
    low_rank: TuningOutcome, capped_model: Path, tmp_path: Path
):
    write_quantized(open_checkpoint(capped_model), RECIPES["int8"], tmp_path / "int8")
    stored = open_checkpoint(tmp_path / "int8")
    tensors = ((name, stored.tensor(name)) for name in stored.config.parameter_shapes())
    write_checkpoint(stored.config, tensors, tmp_path / "plain", "griffinlm", None, stored.tokenizer_directory)
    merge(str(tmp_path / "plain"), low_rank.result, tmp_path / "merged")
    expected = logits_of(griffinlm.load(tmp_path / "merged", engine="torch"))
    adapters = {"chat": low_rank.result}
    beside = griffinlm.load(tmp_path / "int8", adapters=adapters)
    by_torch = griffinlm.load(tmp_path / "int8", engine="torch", adapters=adapters)
    assert_agree(logits_of(by_torch.with_adapter("chat")), expected, "model, adapter", "float32", "torch")
    found = disagreement(logits_of(beside.with_adapter("chat")), expected)
    assert found <= TOLERANCES["model, rounded activations", "float32", "onnx"]
    assert disagreement(logits_of(beside), expected) > 0.01, "the adapter changes nothing"


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_trained_adapter_gives_the_same_logits_in_both_engines_and_merged(
    low_rank: TuningOutcome, capped_model: Path, engine: str, tmp_path: Path
):
    base = GriffinForCausalLM.from_pretrained(capped_model)
    with torch.no_grad():
        trained = PeftModel.from_pretrained(base, low_rank.result).eval()(torch.tensor([PROMPT])).logits
    model = griffinlm.load(capped_model, engine=engine, adapters={"chat": low_rank.result})
    assert_agree(logits_of(model.with_adapter("chat")), trained, "model, adapter", "float32", engine)
    merge(str(capped_model), low_rank.result, tmp_path / "merged")
    merged = griffinlm.load(tmp_path / "merged", engine=engine)
    assert_agree(logits_of(merged), trained, "model, adapter", "float32", engine)
    assert np.abs(logits_of(model) - logits_of(merged)).max() > 0.01, "the adapter changes nothing"


def test_merging_changes_the_adapted_matrices_and_nothing_else(
    low_rank: TuningOutcome, capped_model: Path, tmp_path: Path
):
    merge(str(capped_model), low_rank.result, tmp_path / "merged")
    before, after = open_checkpoint(capped_model), open_checkpoint(tmp_path / "merged")
    assert after.config == before.config
    for name, values in after.tensors():
        is_same = np.array_equal(values, before.tensor(name))
        assert is_same != (is_matrix(name) and name != "embedding.weight"), name


def test_prompt_tuning_trains_the_prompt_alone(run: Tuned, capped_model: Path):
    config = run("prompt.num_tokens=4", "steps=12", "optimizer.learning_rate=0.1")
    trainer, _ = prepared(config)
    trained = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert ["prompt_encoder" in name for name in trained] == [True]
    outcome = tune(config)
    assert losses(config)[-1] < losses(config)[0]
    base = GriffinForCausalLM.from_pretrained(capped_model)
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(base, outcome.result).eval()
        with_prompt = tuned(torch.tensor([PROMPT])).logits[:, -1]
        assert (with_prompt - base(torch.tensor([PROMPT])).logits[:, -1]).abs().max() > 0.01


def test_a_long_conversation_is_cut_and_one_without_room_for_an_answer_is_left_out(run: Tuned):
    tokenizer = Tokenizer.from_directory(run().model)
    whole = read_examples(run("data.row_tokens=4096", "data.held_out_share=0.0"), tokenizer)
    assert whole.num_cut == whole.num_left_out == 0
    shortest = min(len(example.tokens) for example in whole.train)
    found = read_examples(run(f"data.row_tokens={shortest}", "data.held_out_share=0.0"), tokenizer)
    assert found.num_cut == sum(len(example.tokens) > shortest for example in whole.train)
    assert found.num_left_out == sum(not example.cut_to(shortest).teaches for example in whole.train) > 0
    assert len(found.train) + found.num_left_out == len(whole.train)


def test_held_out_conversations_are_those_of_a_hash_whatever_their_order(run: Tuned):
    config = run("data.held_out_share=0.3")
    tokenizer = Tokenizer.from_directory(config.model)
    first = read_examples(config, tokenizer).held_out
    path = config.sources["chat"].files[0]
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))), encoding="utf-8")
    assert read_examples(config, tokenizer).held_out == first[::-1] != []


def test_a_bad_row_is_skipped_and_told_or_refused(run: Tuned):
    path = run().sources["chat"].files[0]
    path.write_text('{"messages": 3}\n' + path.read_text(), encoding="utf-8")
    with pytest.raises(DocumentError, match=r"chat.jsonl, line 1: \"messages\" is a int"):
        tune(run())
    told: list[DocumentError] = []
    assert tune(run("data.bad_rows=skip", "steps=1"), told.append).step == 1
    assert len(told) == 1


def test_gradient_checkpointing_changes_no_loss(run: Tuned):
    kept, recomputed = run("lora={}", output="kept"), run("lora={}", "gradient_checkpointing=true", output="recomputed")
    tune(kept)
    tune(recomputed)
    assert losses(recomputed) == pytest.approx(losses(kept), rel=1e-6)


def test_an_output_that_is_there_is_not_written_over(run: Tuned):
    config = run(output="taken")
    (config.output / "model").mkdir(parents=True)
    (config.output / "model" / "file").touch()
    with pytest.raises(griffinlm.GriffinError, match="taken"):
        tune(config)


def test_a_quantized_model_is_refused(run: Tuned, capped_model: Path, tmp_path: Path):
    write_quantized(open_checkpoint(capped_model), RECIPES["int4"], tmp_path / "int4")
    with pytest.raises(TrainError, match="int4 is quantized"):
        tune(run(f"model={tmp_path / 'int4'}"))
    (tmp_path / "any").mkdir()
    with pytest.raises(TrainError, match="int4 is quantized"):
        merge(str(tmp_path / "int4"), tmp_path / "any", tmp_path / "merged")


def test_a_model_of_deepminds_is_refused(run: Tuned, tmp_path: Path, tiny_tokenizer_directory: Path):
    values = ModelConfig.preset("tiny-hawk").to_dict()
    config = ModelConfig.from_dict({**values, "vocab_size": 288})
    write_checkpoint(
        config, initial_tensors(config, 0), tmp_path / "theirs", "deepmind", None, tiny_tokenizer_directory
    )
    with pytest.raises(TrainError, match="theirs has the format deepmind; what is tuned must have griffinlm or"):
        tune(run(f"model={tmp_path / 'theirs'}"))


def test_a_loss_that_is_no_number_ends_the_run(run: Tuned):
    trainer, _ = prepared(run())
    with pytest.raises(TrainError, match="the loss is nan at step 0"):
        trainer.log({"loss": float("nan")})
