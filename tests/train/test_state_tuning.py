"""State tuning: untrained it is the model, trained it is forward from the state that was saved."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

import numpy as np
import torch
from tolerances import assert_agree

import griffinlm
from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import End, Job
from griffinlm.generation.service import GenerationService
from griffinlm.hf import GriffinForCausalLM
from griffinlm.state import State
from griffinlm.train.errors import TrainError
from griffinlm.train.sft import tune
from griffinlm.train.state_tuning import tune_state, write_tuned_state
from griffinlm.train.tuning_config import TuningConfig

from .tuning import Tuned, tuning_run

BOS = 2
ROWS = torch.tensor([[BOS, 50, 61, 72, 83, 90], [BOS, 33, 44, 55, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
MESSAGES = [{"role": "user", "content": "the hawk"}]


@pytest.fixture
def run(tmp_path: Path, tiny_model_directory: Path) -> Tuned:
    return tuning_run(tmp_path, tiny_model_directory)


def face(directory: Path) -> GriffinForCausalLM:
    return GriffinForCausalLM.from_pretrained(directory).eval()


def losses(config: TuningConfig) -> list[float]:
    entries = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_without_a_step_every_prediction_is_the_models(tiny_model_directory: Path):
    model = face(tiny_model_directory)
    with torch.no_grad():
        expected = model(ROWS, attention_mask=MASK).logits
        tune_state(model, BOS)
        for mask in (MASK, None):
            found = model(ROWS, attention_mask=mask).logits
            real = slice(1, 4)
            assert_agree(found[:, real], expected[:, real], "model", "float32", "torch")


def test_only_the_recurrent_state_is_trained(tiny_model_directory: Path):
    model = face(tiny_model_directory).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuned = tune_state(model, BOS)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(p) for p in tuned.trained}
    config = model.config.model_config
    assert config.recurrent is not None
    assert [tuple(p.shape) for p in trained] == [(1, config.recurrent.width)] * config.block_kinds.count("recurrent")
    start = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    model(ROWS, attention_mask=MASK, labels=ROWS).loss.backward()
    optimizer.step()
    assert not any(torch.equal(p, old) for p, old in zip(trained, start, strict=True))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)


def test_gradient_of_the_state_equals_the_difference_quotient(tiny_model_directory: Path):
    model = face(tiny_model_directory).double()  # its logits are float32
    tuned = tune_state(model, BOS)
    arguments = {"attention_mask": MASK, "labels": ROWS}
    model(ROWS, **arguments).loss.backward()
    step = 1e-2
    for parameter in tuned.trained:
        assert parameter.grad is not None
        place = int(parameter.grad.abs().argmax())
        quotient = 0.0
        with torch.no_grad():
            for sign in (1, -1):
                parameter[0, place] += sign * step
                quotient += sign * float(model(ROWS, **arguments).loss) / (2 * step)
                parameter[0, place] -= sign * step
        assert quotient == pytest.approx(float(parameter.grad[0, place]), rel=2e-3)


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_served_conversation_equals_what_was_trained(run: Tuned, tiny_model_directory: Path, engine: str):
    config = run("state={}", "steps=12", "optimizer.learning_rate=0.3")
    outcome = tune(config)
    assert losses(config)[-1] < losses(config)[0]
    assert outcome.result.stat().st_size < 10_000
    served = griffinlm.load(tiny_model_directory, engine=engine, adapters={"chat": outcome.result})
    view = served.with_adapter("chat")
    ids = view.tokenizer.encode_chat(MESSAGES)
    model = face(tiny_model_directory)
    tuned = tune_state(model, BOS)
    state = State.load(outcome.result, served)
    with torch.no_grad():
        for name, parameter in zip(tuned.names, tuned.trained, strict=True):
            parameter.copy_(torch.from_numpy(state.arrays()[name]))
        expected = model(torch.tensor([ids])).logits[:, 1:]
    found, _ = view.forward([ids[1:]])
    assert_agree(found, expected, "model", "float32", engine)
    untuned, _ = served.forward([ids])
    assert found is not None
    assert untuned is not None
    assert np.abs(found - untuned[:, 1:]).max() > 0.01, "the state changes nothing"


def test_a_state_is_written_for_the_weights_it_will_be_served_with(run: Tuned, tiny_model_directory: Path):
    outcome = tune(run("state.weights=int8", "steps=1"))
    view = griffinlm.load(tiny_model_directory, weights="int8", adapters={"chat": outcome.result}).with_adapter("chat")
    assert view.generate("the hawk", max_tokens=2, seed=0).token_ids
    with pytest.raises(griffinlm.GriffinError, match="belongs to another model"):
        griffinlm.load(tiny_model_directory, adapters={"chat": outcome.result})


def test_a_state_without_a_step_is_the_one_behind_bos(tiny_model_directory: Path, tmp_path: Path):
    tuned = tune_state(face(tiny_model_directory), BOS)
    model = griffinlm.load(tiny_model_directory, engine="torch")
    write_tuned_state(model, tuned.arrays(), tmp_path / "state.safetensors")
    found, (_, expected) = State.load(tmp_path / "state.safetensors", model), model.forward([[BOS]])
    for name, array in expected.arrays().items():
        assert_agree(found.arrays()[name], array, "model", "float32", "torch")


def test_rows_without_bos_packed_rows_and_models_without_a_state_are_refused(
    run: Tuned, tiny_model_directory: Path, tiny_gemma_directory: Path
):
    model = face(tiny_model_directory)
    tune_state(model, BOS)
    with pytest.raises(TrainError, match="another token than BOS"):
        model(ROWS[:, 1:])
    with pytest.raises(TrainError, match=r"data.packing is true; a tuned state begins a row"):
        run("state={}", "data.packing=true")
    with pytest.raises(TrainError, match="no recurrent block"):
        tune_state(face(tiny_gemma_directory), BOS)


def test_rows_of_a_service_that_begin_from_the_saved_state_write_what_the_trained_model_would(
    run: Tuned, tiny_model_directory: Path
):
    outcome = tune(run("state={}", "steps=12", "optimizer.learning_rate=0.3"))
    served = griffinlm.load(tiny_model_directory, threads=1, adapters={"chat": outcome.result})
    ids = served.tokenizer.encode_chat(MESSAGES)
    model, num_tokens = face(tiny_model_directory), 6
    expected: dict[str | None, list[tuple[int, float]]] = {None: written(model, ids, num_tokens)}
    tuned, state = tune_state(model, BOS), State.load(outcome.result, served)
    with torch.no_grad():
        for name, parameter in zip(tuned.names, tuned.trained, strict=True):
            parameter.copy_(torch.from_numpy(state.arrays()[name]))
    expected["chat"] = written(model, ids, num_tokens)
    assert abs(expected["chat"][0][1] - expected[None][0][1]) > 0.01, "the state changes nothing"
    options = GenerationOptions.of({"max_tokens": num_tokens, "temperature": 0.0, "log_probabilities": 1})
    service = GenerationService(served, None, num_slots=2)
    jobs = [service.submit(Job("a", ids, options, adapter=name)) for name in ("chat", None, "chat", None)]
    found: dict[int, End] = {}
    while service.busy:
        found |= {id(event.job): event for event in service.step(0.05) if isinstance(event, End)}
    service.close()
    for job in jobs:
        told = found[id(job)].log_probabilities
        assert told is not None
        assert [one.token for one in told] == [token for token, _ in expected[job.adapter]]
        for one, (_, log_p) in zip(told, expected[job.adapter], strict=True):
            assert one.log_probability == pytest.approx(log_p, abs=1e-4)


def written(model: GriffinForCausalLM, ids: list[int], num_tokens: int) -> list[tuple[int, float]]:
    """The likeliest tokens one after the other with log p, each from a reading of the whole text."""
    tokens, chosen = list(ids), []
    for _ in range(num_tokens):
        with torch.no_grad():
            log_p = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1)
        tokens.append(int(log_p.argmax()))
        chosen.append((tokens[-1], float(log_p.max())))
    return chosen
