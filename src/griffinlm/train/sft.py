"""Instruction tuning by TRL's trainer: from a configuration to a model, an adapter or a tuned state."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig, PromptTuningInit, get_peft_model
from trl.trainer.sft_config import SFTConfig

from griffinlm.checkpoint import Checkpoint
from griffinlm.checkpoint.new_directory import new_directory, require_free
from griffinlm.evaluate.documents import DocumentError, RowRules
from griffinlm.hf import GriffinForCausalLM
from griffinlm.loading import load
from griffinlm.progress import progress
from griffinlm.quantization import recipe_of
from griffinlm.quantization.recipe import GATES
from griffinlm.text import Tokenizer
from griffinlm.train.base import (
    TuningOutcome,
    as_train_error,
    open_base,
    prepare_libraries,
    tokenizer_for_trl,
    write_model,
)
from griffinlm.train.checkpoints import Checkpoints
from griffinlm.train.data.conversations import Example, read_conversations
from griffinlm.train.errors import TrainError
from griffinlm.train.quantization_aware import leave_on_grid, put_on_grid
from griffinlm.train.sharding import rank
from griffinlm.train.state_tuning import TUNED_STATE, TunedState, tune_state, write_tuned_state
from griffinlm.train.tuning_config import FLOATS, TuningConfig
from griffinlm.train.tuning_trainer import CHECKPOINTS, TuningTrainer, tuning_arguments

MODEL, ADAPTER, STATE = "model", "adapter", "state.safetensors"
"""In a run's output directory."""


@dataclass
class Conversations:
    """Examples of a run, and how many of its rows came to what."""

    train: list[Example] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)
    num_cut: int = 0
    """Longer than a row."""
    num_left_out: int = 0
    """Without an answer in what a row has room for."""


def tune(config: TuningConfig, report: Callable[[DocumentError], None] | None = None) -> TuningOutcome:
    """Tunes a model on conversations: the mean cross-entropy, in nats, of the tokens that the assistant writes.

    Under torchrun every process calls it; each reads its share of a step's rows.

    The output directory gets `log.jsonl`, `tensorboard/`, `checkpoints/` where the run asks for them, and at the end
    `model/`, `adapter/` or `state.safetensors`. A run goes on from its last complete checkpoint.

    Args:
        report: called with every bad row that is skipped.

    Raises:
        GriffinError: data, tokenizer or model cannot be used, the output is taken, was made by another run or cannot
            be written, or the loss is no number any more.
    """
    result = config.output / (MODEL if config.trains_weights else STATE if config.state else ADAPTER)
    if config.state is None:
        require_free(result)
    elif result.exists():
        raise TrainError(f"{result} is there already")
    arguments = tuning_arguments(config)
    checkpoint, tokenizer = open_base(config.model)
    conversations = read_examples(config, tokenizer, report)
    if not conversations.train:
        raise TrainError(
            f"no conversation is left to learn from: {len(conversations.held_out)} are held out, in "
            f"{conversations.num_left_out} the assistant says nothing within data.row_tokens ({config.data.row_tokens})"
        )
    with as_train_error(config.output):
        trainer = build_trainer(config, arguments, checkpoint, tokenizer, conversations)
        last = trainer.last_checkpoint()
        trainer.train(resume_from_checkpoint=None if last is None else str(last))
        if trainer.is_world_process_zero():
            _write(config, checkpoint, trainer.model, result)
    trainer.accelerator.wait_for_everyone()
    figures = {name: value for entry in trainer.state.log_history for name, value in entry.items()}
    counts = {
        "num_conversations": len(conversations.train),
        "num_held_out": len(conversations.held_out),
        "num_cut": conversations.num_cut,
        "num_left_out": conversations.num_left_out,
    }
    return TuningOutcome(result, trainer.state.global_step, {**figures, **counts})


def read_examples(
    config: TuningConfig, tokenizer: Tokenizer, report: Callable[[DocumentError], None] | None = None
) -> Conversations:
    """All conversations of a run as rows have room for them; raises DocumentError as `read_conversations`."""
    data, found = config.data, Conversations()

    def tell(error: DocumentError) -> None:
        if report is not None and rank() == 0:
            report(error)

    rules = RowRules(
        largest_row_bytes=data.largest_row_bytes,
        allow_empty=False,
        on_bad_row=tell if data.bad_rows == "skip" else None,
    )
    for name, source in config.sources.items():
        pairs = (
            pair
            for file in source.files
            for pair in read_conversations(file, source, tokenizer, rules, data.row_tokens)
        )
        for number, (digest, example) in enumerate(progress(pairs, f"reading {name}"), start=1):
            found.num_cut += len(example.tokens) > data.row_tokens
            example = example.cut_to(data.row_tokens)
            if not example.teaches:
                found.num_left_out += 1
            elif int(digest[:16], 16) < data.held_out_share * 2**64:
                found.held_out.append(example)
            else:
                found.train.append(example)
            if number == source.max_rows:
                break
    return found


def build_trainer(
    config: TuningConfig,
    arguments: SFTConfig,
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    conversations: Conversations,
) -> TuningTrainer:
    """TRL's trainer of a run, its model ready to be trained.

    Raises:
        GriffinError: the model cannot be trained so.
    """
    prepare_libraries(arguments.n_gpu)
    model = _prepared(config, checkpoint, tokenizer)
    directory = checkpoint.tokenizer_directory
    assert directory is not None
    saving = config.checkpoints
    return TuningTrainer(
        config,
        model,
        arguments,
        _dataset(conversations.train),
        _dataset(conversations.held_out) if conversations.held_out else None,
        tokenizer_for_trl(directory),
        Checkpoints(config.output / CHECKPOINTS, 1 if saving is None else saving.num_kept),
        {"run": _facts(config, checkpoint, tokenizer, conversations.train)},
    )


def _facts(
    config: TuningConfig, checkpoint: Checkpoint, tokenizer: Tokenizer, examples: list[Example]
) -> dict[str, Any]:
    """What decides the numbers of a run, as JSON values; how it is cut over devices does not."""
    said = hashlib.sha256()
    for example in examples:
        said.update(np.array([*example.tokens, *example.labels], np.int64).tobytes())
    values = asdict(config)
    deciding = ("batch_rows", "optimizer", "schedule", "epochs", "steps", "lora", "prompt", "quantization_aware")
    return {
        "weights": checkpoint.digest(),
        "tokenizer": tokenizer.digest,
        "conversations": said.hexdigest(),
        "row_tokens": config.data.row_tokens,
        "packing": config.is_packed,
        "state": config.state is not None,
        **{name: values[name] for name in (*deciding, "precision", "seed")},
    }


def _prepared(config: TuningConfig, checkpoint: Checkpoint, tokenizer: Tokenizer) -> Any:
    """The model of a run with its trained parameters, all others frozen."""
    dtype = torch.float32 if config.trains_weights else getattr(torch, config.precision)
    model = GriffinForCausalLM.from_pretrained(checkpoint.path, dtype=dtype)
    if config.quantization_aware is not None:
        put_on_grid(model, checkpoint.config, recipe_of(config.quantization_aware))
    torch.manual_seed(config.seed)  # of PEFT's first values
    if config.state is not None:
        if tokenizer.bos_id is None:
            raise TrainError("the tokenizer has no begin token; a tuned state is one behind it")
        tune_state(model, tokenizer.bos_id)
    if config.lora is not None:
        lora = config.lora
        return get_peft_model(
            model,
            LoraConfig(
                task_type="CAUSAL_LM",
                r=lora.rank,
                lora_alpha=lora.alpha,  # pyright: ignore[reportArgumentType]  (any number is taken)
                lora_dropout=lora.dropout,
                target_parameters=[gate.removeprefix(".") for gate in GATES] if lora.gates else None,
            ),
        )
    if config.prompt is not None:
        init = PromptTuningInit.SAMPLE_VOCAB
        prompt = PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=config.prompt.num_tokens, prompt_tuning_init=init
        )
        return get_peft_model(model, prompt)
    return model


def _dataset(examples: list[Example]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [example.tokens for example in examples], "labels": [example.labels for example in examples]}
    )


def _write(config: TuningConfig, checkpoint: Checkpoint, model: Any, result: Path) -> None:
    if config.state is not None:
        tuned = getattr(model, TUNED_STATE)
        assert isinstance(tuned, TunedState)
        engine = "torch" if config.state.weights in (None, *FLOATS) else "onnx"
        served = load(checkpoint.path, engine=engine, weights=config.state.weights)
        write_tuned_state(served, tuned.arrays(), result)
        return
    if isinstance(model, PeftModel):
        with new_directory(result) as directory:
            model.save_pretrained(str(directory))
        return
    leave_on_grid(model)
    write_model(checkpoint, model, result)
