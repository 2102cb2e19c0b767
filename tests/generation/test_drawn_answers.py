"""Answers whose tokens an executor draws = answers whose tokens are chosen from logits."""

from collections.abc import Sequence

import numpy as np
import pytest
from small_models import random_model

from griffinlm.config import ModelConfig
from griffinlm.executor import Draw
from griffinlm.generation.answering import Answers, GenerationOptions, Options
from griffinlm.generation.completion import Completion, step_and_write
from griffinlm.generation.parameters import SamplingError, SamplingParameters
from griffinlm.generation.sampling import Sampler
from griffinlm.model.engine import TorchEngine
from griffinlm.model.executor import TorchExecutor
from griffinlm.model.graph_executor import GraphExecutor

CONFIG = ModelConfig.preset("tiny-griffin")
PROMPTS = [[3, 5, 8], [13], [2, 4]]


class Counting(GraphExecutor):
    """Counts the calls that draw."""

    num_draws = 0

    def step_and_draw(
        self, slots: Sequence[int], tokens: Sequence[int], draws: Sequence[Draw], num_choices: int | None = None
    ) -> np.ndarray:
        self.num_draws += 1
        return super().step_and_draw(slots, tokens, draws, num_choices)


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(random_model(CONFIG, seed=2), "float32")


def answers(executor: TorchExecutor, **options) -> list[list[int]]:
    chosen = GenerationOptions.of(Options(max_tokens=12, **options))
    running = Answers(executor, PROMPTS, [None] * 3, chosen, None, lambda arrays: arrays)  # pyright: ignore[reportArgumentType]
    list(running.pieces())
    return [result.token_ids for result in running.results()]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"seed": 3},
        {"seed": 4, "temperature": 0.7, "top_k": 9},
        {"seed": 5, "top_p": 0.9, "min_p": 0.02},
    ],
    ids=["greedy", "all tokens", "top-k", "top-p and min-p"],
)
def test_drawn_answers_equal_chosen_ones(engine, options):
    drawing = Counting(engine, 3, None)
    assert answers(drawing, **options) == answers(TorchExecutor(engine, 3, None), **options)
    assert drawing.num_draws == 11


@pytest.mark.parametrize(
    "options",
    [{"repetition_penalty": 1.3}, {"presence_penalty": 1.0}, {"logit_bias": {7: 4.0}}, {"log_probabilities": 2}],
    ids=lambda options: next(iter(options)),
)
def test_answers_that_have_to_see_logits_are_not_drawn(engine, options):
    drawing = Counting(engine, 3, None)
    assert answers(drawing, seed=1, **options) == answers(TorchExecutor(engine, 3, None), seed=1, **options)
    assert drawing.num_draws == 0


def test_looking_at_the_next_draw_uses_up_no_number():
    """As where an executor refuses a step, and another way is gone."""
    logits = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    plain, looked_at = (Sampler(SamplingParameters(seed=9)) for _ in range(2))
    expected = [plain.choose(row) for row in logits]
    found = []
    for row in logits:
        assert looked_at.next_draw() == looked_at.next_draw()
        found.append(looked_at.choose(row))
    assert found == expected


def test_an_answer_whose_logits_are_not_finite_ends_alone():
    class Broken:
        num_slots = 2

        def step_and_draw(self, slots, tokens, draws, num_choices=None):
            return np.array([-1, 4])

        def _other(self, *_):
            raise AssertionError("not asked for")

        prefill = step = mark = rollback = export_state = import_state = use_adapter = release = _other

    completions = [Completion(Sampler(SamplingParameters(seed=row)), None, ()) for row in range(2)]
    found = step_and_write(Broken(), completions, [0, 1], [1, 1])
    assert isinstance(found[0], SamplingError)
    assert (found[1], completions[1].token_ids) == (4, [4])
