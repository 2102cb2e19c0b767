"""Exit rules: which tokens may leave the loops.

States:
- the rule says yes exactly where the largest probability behind the loop reaches the loop's threshold;
- that of a small head exactly where its confidence does;
- what is recorded of a text = what the rule's head says of its tokens behind each loop.
"""

import dataclasses

import numpy as np
import pytest
import torch
from small_models import random_model
from tolerances import assert_agree

from griffinlm.checkpoint.exits import Exits
from griffinlm.config import RecursionConfig
from griffinlm.executor import ExecutorError
from griffinlm.model.engine import TorchEngine
from griffinlm.model.exits import ConfidenceRule, ProbeRule, recorded_confidence, recorded_exits
from griffinlm.model.loops import TorchLoopExecutor
from griffinlm.presets import PRESETS

CONFIG = dataclasses.replace(PRESETS["tiny-griffin"], num_layers=10, recursion=RecursionConfig(3, rank=2))


def test_a_token_may_leave_exactly_where_its_best_probability_reaches_the_threshold_of_its_loop():
    model = random_model(CONFIG, 0).eval()
    x = 3 * torch.randn(60, CONFIG.width, generator=torch.Generator().manual_seed(0))
    depth = torch.arange(60) % 3 + 1
    with torch.no_grad():
        best = torch.softmax(model.logits(x[:, None])[:, 0].double(), dim=-1).amax(dim=-1)
        ordered = best.sort().values
        thresholds = [float(ordered[place : place + 2].mean()) for place in (20, 40)]
        may_leave = ConfidenceRule(model, thresholds)(x, depth)
    assert torch.equal(may_leave, best >= torch.tensor([*thresholds, torch.inf])[depth - 1])
    assert [bool(may_leave[depth == loop].any()) for loop in (1, 2, 3)] == [True, True, False]


def test_what_is_recorded_is_what_the_head_says_behind_each_loop():
    model = random_model(CONFIG, 0).eval()
    tokens = np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, 9))
    confidence, is_right = recorded_confidence(model, torch.from_numpy(tokens))
    seen = []

    def exit_rule(x, depth):
        seen.append(torch.softmax(model.logits(x[:, None])[:, 0], dim=-1))
        return depth > 3

    executor = TorchLoopExecutor(TorchEngine(model, "float32"), 1, None, exit_rule)
    for place, token in enumerate(tokens[0].tolist()):
        executor.enter([0], [token])
        for _ in range(3):
            executor.run_loop([0])
        final = int(executor.leave([0])[0].argmax())
        for loop, probabilities in enumerate(seen):
            assert_agree(confidence[place, loop], probabilities[0].max(), "model", "float32", "torch")
            assert bool(is_right[place, loop]) == (int(probabilities[0].argmax()) == final)
        assert len(seen) == 2
        seen.clear()


def exits(thresholds: tuple[float, ...]) -> Exits:
    random = np.random.default_rng(1)
    shapes = {"inner": (4, CONFIG.width), "inner_bias": (4,), "weights": (4,), "bias": ()}
    parts = {n: random.standard_normal((len(thresholds), *shape)).astype(np.float32) for n, shape in shapes.items()}
    return Exits(**parts, thresholds=thresholds, quality=0.9, shares=(), num_tokens=100)


def test_by_a_small_head_a_token_may_leave_exactly_where_its_confidence_reaches_the_threshold_of_its_loop():
    model, given = random_model(CONFIG, 0).eval(), exits((0.4, 0.6))
    x = 3 * torch.randn(60, CONFIG.width, generator=torch.Generator().manual_seed(0))
    depth = torch.arange(60) % 3 + 1
    with torch.no_grad():
        may_leave = ProbeRule(model, given)(x, depth)
        confidence = given.confidence(model.final_norm(x)[:, None].expand(-1, 2, -1).double().numpy())
    for place, loop in enumerate(depth.tolist()):
        expected = loop < 3 and confidence[place, loop - 1] >= given.thresholds[loop - 1]
        assert bool(may_leave[place]) == bool(expected)
    assert may_leave.any()
    never = ProbeRule(model, exits((float("inf"), 1.5)))(x, depth)
    assert not never.any()


def test_what_a_head_learns_from_is_what_its_rule_reads():
    model = random_model(CONFIG, 0).eval()
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, CONFIG.vocab_size, (1, 7)))
    recorded = recorded_exits(model, tokens)
    seen = []

    def exit_rule(x, depth):
        seen.append(model.final_norm(x)[0])
        return depth > 3

    executor = TorchLoopExecutor(TorchEngine(model, "float32"), 1, None, exit_rule)
    for place, token in enumerate(tokens[0].tolist()):
        executor.enter([0], [token])
        for _ in range(3):
            executor.run_loop([0])
        executor.leave([0])
        assert_agree(recorded.normed[place], torch.stack(seen), "model", "float32", "torch")
        seen.clear()


def test_a_wrong_number_of_heads_is_refused():
    with pytest.raises(ExecutorError, match="there are 1 exits; 3 loops take 2"):
        ProbeRule(random_model(CONFIG, 0), exits((0.5,)))


def test_a_wrong_number_of_thresholds_is_refused():
    with pytest.raises(ExecutorError, match="there are 1 thresholds; 3 loops take 2"):
        ConfidenceRule(random_model(CONFIG, 0), [0.5])
