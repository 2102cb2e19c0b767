"""Answers of a model while it is being trained, by this package's scheduler."""

import hashlib
from collections.abc import Sequence

import torch

from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import End, Job
from griffinlm.generation.parameters import SEEDS, SamplingParameters
from griffinlm.generation.service import GenerationService
from griffinlm.hf import GriffinForCausalLM
from griffinlm.language_model import LanguageModel
from griffinlm.model.engine import TorchEngine
from griffinlm.model.griffin import Griffin
from griffinlm.train.errors import TrainError

TENANT = "rollouts"


def shared_engine(model: GriffinForCausalLM) -> TorchEngine:
    """The torch engine on the very weights of a model of transformers' face: what an optimizer writes, it reads.

    Its parameters are others over the same memory, so that the model's stay trainable.
    """
    with torch.device("meta"):
        griffin = Griffin(model.config.model_config)
    griffin.load_state_dict(model.base_model.state_dict(), assign=True)
    return TorchEngine(griffin, window_dtype=str(model.dtype).removeprefix("torch."))


def seed_of(*said: int | str) -> int:
    """A seed for what is said, from 0 to 2^62."""
    digest = hashlib.sha256(" ".join(map(str, said)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % (SEEDS // 2)


class Rollouts:
    """Samples of a model as its weights are when it is asked, at a temperature."""

    def __init__(self, model: LanguageModel, max_answer_tokens: int, temperature: float) -> None:
        self._model, self._max_tokens, self._temperature = model, max_answer_tokens, temperature

    def ends(
        self, prompts: Sequence[Sequence[int]], num_answers: int, seed: str, *, has_log_probabilities: bool = False
    ) -> list[list[End]]:
        """`num_answers` answers to each prompt; a prompt is read once, and its answers begin from one shared state.

        Args:
            seed: what the draws follow from, with the place of the prompt and of the answer.

        Raises:
            TrainError: the model gives logits that are no numbers.
        """
        longest = max(map(len, prompts)) + self._max_tokens
        capacity = longest if self._model.config.needs_capacity else None
        service = GenerationService(self._model, num_slots=len(prompts) * num_answers, capacity=capacity)
        jobs = [
            service.submit(
                Job(TENANT, prompt, self._options(seed_of(seed, place), has_log_probabilities), num_answers=num_answers)
            )
            for place, prompt in enumerate(prompts)
        ]
        ended: dict[Job, list[End]] = {job: [] for job in jobs}
        while service.busy:
            for event in service.step():
                if isinstance(event, End):
                    if event.error is not None:
                        raise TrainError(f"the model cannot answer any more: {event.error}")
                    ended[event.job].append(event)
        service.close()
        return [sorted(ended[job], key=lambda end: end.answer) for job in jobs]

    def answers(self, prompts: Sequence[Sequence[int]], num_answers: int, seed: str) -> list[list[int]]:
        """The tokens of `ends`, answer by answer, the end token last where there is one."""
        return [end.token_ids for group in self.ends(prompts, num_answers, seed) for end in group]

    def _options(self, seed: int, has_log_probabilities: bool) -> GenerationOptions:
        return GenerationOptions(
            max_tokens=self._max_tokens,
            log_probabilities=0 if has_log_probabilities else None,
            sampling=SamplingParameters(temperature=self._temperature, seed=seed),
        )
