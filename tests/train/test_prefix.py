"""Prefix tuning beside all weights.

States:
- an untrained prefix = the tokens that it began as, read in front of every document of a packed row;
- its gradients and those of the weights = the plain formula document by document, and difference quotients;
- the figure of a run = that of its model going on from the saved state, on both engines; resumed = uninterrupted.
"""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from small_models import random_model

pytest.importorskip("transformers", reason="needs the extra train")

import griffinlm
from griffinlm.checkpoint import open_checkpoint
from griffinlm.config import RecursionConfig
from griffinlm.model import Griffin
from griffinlm.presets import PRESETS
from griffinlm.state import State
from griffinlm.train.data.token_file import IGNORED, open_packed
from griffinlm.train.distillation import Distillation
from griffinlm.train.errors import TrainError
from griffinlm.train.objective import Objective
from griffinlm.train.prefix import PREFIX_FILE, PrefixObjective, build_prefix
from griffinlm.train.pretrain import TOKENS, pretrain

CONFIGS = {
    "griffin": dataclasses.replace(PRESETS["tiny-griffin"], num_layers=7, recursion=RecursionConfig(2, "all")),
    "transformer": dataclasses.replace(PRESETS["tiny-gemma"], num_layers=4, recursion=RecursionConfig(2, "all")),
}
PREFIX = [7, 3, 11, 5, 2]
ROW_TOKENS = 12
DOCUMENTS = ((0, 0, 12), (1, 0, 5), (1, 5, 10))
"""Row, first token and end; the second row ends with padding."""


def batch(model: Griffin) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.config.vocab_size, (2, ROW_TOKENS), generator=generator)
    labels, positions = tokens.roll(-1, 1), torch.full((2, ROW_TOKENS), -1)
    labels[:, 4], labels[1, 9:] = IGNORED, IGNORED
    for row, first, end in DOCUMENTS:
        positions[row, first:end] = torch.arange(end - first)
    return tokens, positions, labels


def plain_loss(model: Griffin, objective: PrefixObjective | None) -> torch.Tensor:
    """The sum over documents, each read alone: behind the prefix's tokens, or from the objective's state."""
    tokens, _, labels = batch(model)
    total = torch.zeros((), dtype=torch.float64)
    for row, first, end in DOCUMENTS:
        document = tokens[row : row + 1, first:end]
        if objective is None:
            logits, _ = model(torch.cat([torch.tensor([PREFIX]), document], dim=1))
        else:
            logits, _ = model(document, objective.prefix.state(1))
        wanted = labels[row, first:end]
        seen = wanted != IGNORED
        assert logits is not None
        log_q = torch.log_softmax(logits[0, -len(wanted) :].double(), dim=-1)[seen]
        total = total - log_q.gather(1, wanted[seen, None]).sum()
    return total


def built(kind: str) -> tuple[Griffin, PrefixObjective]:
    model = random_model(CONFIGS[kind], 0).double()
    return model, PrefixObjective(Objective(model, 5), build_prefix(model, PREFIX, ROW_TOKENS).double())


@pytest.mark.parametrize("kind", CONFIGS)
def test_an_untrained_prefix_equals_its_tokens_in_front_of_every_document(kind):
    model, objective = built(kind)
    expected = plain_loss(model, None)
    for mode in (True, False):
        loss = objective.train(mode)(*batch(model))["loss"]
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CONFIGS)
def test_gradients_equal_those_of_every_document_alone_and_difference_quotients(kind):
    model, objective = built(kind)
    parameters = list(objective.parameters())
    assert {id(p) for p in model.parameters()} < {id(p) for p in parameters}
    loss = objective(*batch(model))["loss"]
    found = torch.autograd.grad(loss, parameters)
    for one, other in zip(found, torch.autograd.grad(plain_loss(model, objective), parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    gradients = dict(zip(parameters, found, strict=True))
    for name, parameter in zip(objective.prefix.names, objective.prefix.trained, strict=True):
        gradient = gradients[parameter].flatten()
        if name.endswith((".keys", ".values")):
            assert not gradients[parameter][:, len(PREFIX) :].any()
        place, quotient, step = int(gradient.abs().argmax()), 0.0, 1e-2
        with torch.no_grad():
            for sign in (1, -1):
                parameter.view(-1)[place] += sign * step
                quotient += sign * float(plain_loss(model, objective)) / (2 * step)
                parameter.view(-1)[place] -= sign * step
        assert quotient == pytest.approx(float(gradient[place]), rel=5e-3, abs=1e-5)


def test_a_long_document_makes_no_short_one_long():
    model, objective = built("griffin")
    positions = torch.cat([torch.arange(length) for length in (512, *[3] * 100)])[None]
    num_read = 0

    def count(_, arguments):
        nonlocal num_read
        num_read += arguments[0].numel()

    model.embedding.register_forward_pre_hook(count)
    objective(torch.zeros_like(positions), positions, torch.zeros_like(positions))
    assert positions.numel() <= num_read < 2 * positions.numel()


def test_a_teacher_reads_the_documents_without_a_prefix():
    model, teacher = random_model(CONFIGS["griffin"], 0).double(), random_model(CONFIGS["griffin"], 1).double()
    inner = Distillation(model, teacher, 5, 1.0)
    objective = PrefixObjective(inner, build_prefix(model, PREFIX, ROW_TOKENS).double())
    tokens, positions, labels = batch(model)
    alone, _ = teacher(tokens, positions=positions)
    expected = torch.log_softmax(alone.double(), dim=-1)
    total = torch.zeros((), dtype=torch.float64)
    for row, first, end in DOCUMENTS:
        logits, _ = model(tokens[row : row + 1, first:end], objective.prefix.state(1))
        assert logits is not None
        log_q, log_p = torch.log_softmax(logits[0].double(), dim=-1), expected[row, first:end]
        seen = labels[row, first:end] != IGNORED
        total = total + (log_p.exp() * (log_p - log_q)).sum(dim=-1)[seen].sum()
    torch.testing.assert_close(objective(tokens, positions, labels)["loss"].double(), total, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("preset", "num_tokens"), [("tiny-griffin", 6), ("tiny-gemma", 30)])
def test_the_figure_of_a_run_is_that_of_its_model_going_on_from_the_saved_state(run, preset, num_tokens):
    config = run(f"model.preset={preset}", f"prefix_tokens={num_tokens}")
    figures = pretrain(config).figures
    for engine in ("onnx", "torch"):
        model = griffinlm.load(config.output / "model", engine=engine)
        start = State.load(config.output / PREFIX_FILE, model)
        assert (start.num_tokens[0], start.pending[0]) == (num_tokens, model.tokenizer.bos_id)
        assert model.generate("the hawk", state=start, max_tokens=3, seed=0).text
        packed = open_packed(config.output / TOKENS / "b")
        rows, num_bytes = packed.held_out.held_out_rows(config.data.row_tokens, config.evaluation.max_tokens)
        bits = 0.0
        for tokens, positions, labels in rows:
            starts = np.flatnonzero(positions == 0)
            for first, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
                real = slice(first, first + int((positions[first:end] >= 0).sum()))
                logits, _ = model.forward([tokens[real]], start.with_pending([-1]))
                assert logits is not None
                log_q = torch.log_softmax(torch.from_numpy(logits[0]).double(), dim=-1)
                seen = labels[real] != IGNORED
                bits -= log_q.numpy()[seen, labels[real][seen]].sum() / math.log(2.0)
        assert figures["eval_b_bits_per_byte"] == pytest.approx(bits / num_bytes, rel=1e-4)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(run):
    whole, resumed = run("output=whole", "prefix_tokens=6"), run("output=resumed", "prefix_tokens=6")
    pretrain(whole)
    shutil.copytree(whole.output / "checkpoints/step-4", resumed.output / "checkpoints/step-4")
    pretrain(resumed)
    assert (whole.output / PREFIX_FILE).read_bytes() == (resumed.output / PREFIX_FILE).read_bytes()
    weights = [dict(open_checkpoint(config.output / "model").tensors()) for config in (whole, resumed)]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    entries = [json.loads(line) for line in (whole.output / "log.jsonl").read_text().splitlines()]
    found = [entry["loss"] for entry in entries if "loss" in entry]
    assert found[-1] < found[0]
    shutil.rmtree(resumed.output / "model")
    for changes in (["prefix_tokens=5"], []):
        with pytest.raises(TrainError, match="a run with another prefix_tokens"):
            pretrain(run("output=resumed", *changes))


def test_a_prefix_with_exits_or_a_grid_or_longer_than_the_run_is_refused(run):
    with pytest.raises(TrainError, match="prefix_tokens is given with exits"):
        run("prefix_tokens=6", "exits.loss=weighted")
    with pytest.raises(TrainError, match="prefix_tokens is given with quantization_aware"):
        run("prefix_tokens=6", "quantization_aware=int8")
    with pytest.raises(TrainError, match="prefix_tokens is 1153; the run reads 1152 tokens"):
        run("prefix_tokens=1153")
