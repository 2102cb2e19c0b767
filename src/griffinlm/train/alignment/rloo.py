"""REINFORCE leave-one-out by TRL's trainer, on answers that this package's scheduler writes."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from trl.trainer.rloo_config import RLOOConfig as RlooArguments
from trl.trainer.rloo_trainer import RLOOTrainer as TrlRlooTrainer
from trl.trainer.utils import add_fused_lm_head

from griffinlm.evaluate.documents import DocumentError
from griffinlm.hf import GriffinForCausalLM
from griffinlm.language_model import LanguageModel
from griffinlm.text import Tokenizer
from griffinlm.train.alignment.config import REWARD, UNENDED, RlooConfig
from griffinlm.train.alignment.judge import Judge, RuleJudge, Unended, read_rule
from griffinlm.train.alignment.reward_model import RewardModel
from griffinlm.train.alignment.rollouts import Rollouts, shared_engine
from griffinlm.train.alignment.rows import Prompt, Split, parse_prompt
from griffinlm.train.alignment.run import checkpoints_of, facts_of, run_to_end, write_policy
from griffinlm.train.base import (
    Base,
    TuningOutcome,
    prepare_libraries,
    tokenizer_for_trl,
)
from griffinlm.train.errors import TrainError
from griffinlm.train.sharding import num_started, rank
from griffinlm.train.step_rows import StepRows
from griffinlm.train.tuning_trainer import TunedTrainer, common_arguments


class RlooTrainer(TunedTrainer, TrlRlooTrainer):
    """TRL's trainer; prompts come to it as tokens, and its answers from `Rollouts`.

    With rewards R_i = r_i - beta log(policy(a_i) / base(a_i)) of k answers to a prompt, the advantage of an answer is
    R_i less the mean of the other k - 1, and the loss the mean of -advantage log policy(a_i) (arXiv 2402.14740,
    equation 8).
    """

    def __init__(
        self, config: RlooConfig, model: GriffinForCausalLM, tokenizer: Tokenizer, *others: Any, **of_its_own: Any
    ) -> None:
        """Args: `others` and `of_its_own` as in `TunedTrainer`."""
        super().__init__(config, model, *others, **of_its_own)
        if config.kl_coefficient:
            reference = GriffinForCausalLM.from_pretrained(model.config.name_or_path, dtype=model.dtype)
            add_fused_lm_head(reference, temperature=config.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)
            self.beta = config.kl_coefficient
        self._seed, self._num_rollouts = config.seed, 0
        # Its identity is asked for by states that are kept, and none is.
        writer = LanguageModel(shared_engine(model), tokenizer, lambda: "")
        self._rollouts = Rollouts(writer, config.max_answer_tokens, config.temperature)

    def _get_train_sampler(  # pyright: ignore[reportIncompatibleMethodOverride]  (its argument has two names there)
        self, dataset: Any = None
    ) -> Sampler[int]:
        assert isinstance(self._config, RlooConfig)
        prompts: Any = self.train_dataset if dataset is None else dataset
        return _Answers(self._config, self.args.gradient_accumulation_steps, len(prompts), self._current_pass)

    def _tokenize_prompts(self, prompts: list[list[int]]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return prompts, None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], images: None, multimodal_fields: dict[str, Any]
    ) -> list[list[int]]:
        assert self.model is not None
        num_answers = self.num_generations if self.model.training else self.num_generations_eval
        # Held-out prompts come in batches of one step, each of which draws anew.
        self._num_rollouts = 0 if self.model.training else self._num_rollouts + 1
        seed = f"{self._seed} {self.state.global_step} {self._num_rollouts} {rank()}"
        assert num_answers is not None
        return self._rollouts.answers(prompt_ids[::num_answers], num_answers, seed)


class _Answers(StepRows):
    """Each prompt of a step once for every answer, and these once for every part that the step is accumulated from."""

    def __init__(self, config: RlooConfig, num_parts: int, num_prompts: int, current_pass: Callable[[], int]) -> None:
        super().__init__(num_prompts, config.step_prompts, config.seed, current_pass)
        self._num_answers, self._num_parts = config.num_answers, num_parts

    def __len__(self) -> int:
        return super().__len__() * self._num_answers * self._num_parts

    def __iter__(self) -> Iterator[int]:
        for prompts in self.steps():
            for _ in range(self._num_parts):
                yield from (prompt for prompt in prompts for _ in range(self._num_answers))


def train_rloo(config: RlooConfig, report: Callable[[DocumentError], None] | None = None) -> TuningOutcome:
    """Trains a model on what a reward model and rules say of its own answers, held near the model that it begins from.

    The log has the mean reward of every judge, the distance KL(policy || base) a token, the entropy, lengths, the
    share of answers that ended, and the share of runs of four tokens that an answer had before. A run goes on from its
    last complete checkpoint.

    Args:
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: the answers to a prompt do not stay in one process; data, tokenizer or models cannot be used, the
            output is taken, was made by another run or cannot be written, or the loss is no number any more.
    """
    if config.rows_on_each(num_started()) % config.num_answers:
        raise TrainError(
            f"batch_rows is {config.batch_rows}; it must be a multiple of num_answers ({config.num_answers}) "
            f"times the number of processes ({num_started()})"
        )
    most_tokens = config.data.row_tokens - config.max_answer_tokens
    return run_to_end(config, parse_prompt, most_tokens, build_trainer, write_policy, report)


def build_trainer(config: RlooConfig, base: Base, prompts: Split[Prompt]) -> RlooTrainer:
    """TRL's trainer of a run.

    Raises:
        GriffinError: there are fewer prompts than a step reads, or a model cannot be used.
    """
    if len(prompts.train) < config.step_prompts:
        raise TrainError(
            f"{len(prompts.train)} prompts are left to learn from; there must be those of a step, batch_rows / "
            f"num_answers ({config.step_prompts})"
        )
    common = common_arguments(config)
    arguments = RlooArguments(
        **{**common, "per_device_eval_batch_size": common["per_device_train_batch_size"]},
        num_generations=config.num_answers,
        max_completion_length=config.max_answer_tokens,
        temperature=config.temperature,
        beta=0.0,  # TRL would load a reference by the class that a file names; ours is given it below
    )
    prepare_libraries(arguments.n_gpu)
    models = _model_judges(config, base.tokenizer, arguments.device)
    judges = [*models, *_rule_judges(config, base.tokenizer), Unended(base.tokenizer.end_ids)]
    taught = {REWARD: 1.0, **{name: rule.weight for name, rule in config.rules.items()}}
    taught[UNENDED] = -config.unended_penalty
    arguments.reward_weights = [taught.get(judge.__name__, 0.0) for judge in judges]
    model = GriffinForCausalLM.from_pretrained(base.checkpoint.path, dtype=torch.float32)
    facts = {
        "judges": {judge.__name__: judge.model.digest() for judge in models},
        "rules": {name: [_digest(rule.file), rule.function, rule.weight] for name, rule in config.rules.items()},
    }
    return RlooTrainer(
        config,
        model,
        base.tokenizer,
        arguments,
        _dataset(prompts.train),
        _dataset(prompts.held_out) if prompts.held_out else None,
        tokenizer_for_trl(base.tokenizer_directory),
        checkpoints_of(config),
        {"run": facts_of(config, base, prompts.train, **facts)},
        reward_funcs=judges,
    )


def _model_judges(config: RlooConfig, tokenizer: Tokenizer, device: torch.device) -> list[Judge]:
    """That which is learned from first."""
    paths: dict[str, Path] = {**({} if config.reward is None else {REWARD: config.reward}), **config.watched}
    judges = []
    for name, path in paths.items():
        model = RewardModel(path, device)
        if model.tokenizer.digest != tokenizer.digest:
            raise TrainError(f"the tokenizer of {path} is another one than that of {config.model}")
        judges.append(Judge(name, model))
    return judges


def _rule_judges(config: RlooConfig, tokenizer: Tokenizer) -> list[RuleJudge]:
    return [RuleJudge(name, read_rule(rule.file, rule.function), tokenizer) for name, rule in config.rules.items()]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _dataset(prompts: list[Prompt]) -> Dataset:
    return Dataset.from_dict({"prompt": [one.tokens for one in prompts], "row": [one.row for one in prompts]})
