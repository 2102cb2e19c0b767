"""Makes eyas recursive: two loops through half of its layers, uptrained from eyas itself, with an exit that is trained.

    python recipes/recursive_eyas.py DATA WORK

DATA holds pretrain/ and sft/. WORK gets the token files, the run, and at the end the model directory
WORK/eyas-recursive: int8 weights, the file of exits, figures and card (recipes/recursive_card.py). The same command
goes on where it was cut off; with --anneal-steps N, a run that was cut off ends in N steps more.
"""

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from corpus import PRETRAIN_SOURCES, conversations, documents
from model_card import held_out
from recursive_card import write_card
from train_eyas import ANNEAL_MIX

import griffinlm
from griffinlm.checkpoint import open_checkpoint, write_checkpoint, write_quantized
from griffinlm.checkpoint.exits import write_exits
from griffinlm.checkpoint.new_directory import new_directory
from griffinlm.errors import GriffinError
from griffinlm.loading import find_model
from griffinlm.model.engine import TorchEngine
from griffinlm.quantization import Format, Recipe
from griffinlm.recursive import Recursion, write_recursive
from griffinlm.text import Tokenizer
from griffinlm.train.checkpoints import Checkpoints, read_manifest
from griffinlm.train.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    PretrainConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from griffinlm.train.data.token_file import FORMAT_VERSION, RECORD_FILE, SPLITS, TokenWriter
from griffinlm.train.exit_probe import calibrate_exits
from griffinlm.train.exits import ExitObjective
from griffinlm.train.exits_config import ExitsConfig
from griffinlm.train.optimizer import build_optimizer
from griffinlm.train.pretrain import CHECKPOINTS, pretrain
from griffinlm.train.schedule import learning_rate_factor
from griffinlm.train.sharding import build_objective, whole_tensors

BASE, NAME = "eyas", "eyas-recursive"
RECURSION = Recursion(num_loops=2, init="average", rank=32)
EXITS = ExitsConfig("weighted", skips=True, full_share=0.4)
"""Both exits learn about equally well: what leaves early, or is guessed, is what the first one writes."""
TEACHER_SHARE = 0.75
SOURCE_TOKENS = 1_500_000
"""Most of a source."""
ROW_TOKENS, BATCH_ROWS, NUM_STEPS = 512, 4, 2400
LEARNING_RATE = 1.5e-3
WEIGHTS = Recipe(Format(8), (("*.low_rank.down", Format(8, 128)), ("*.low_rank.up", Format(8, 32))))
"""Terms of low rank are read without rounding their inputs, which are few."""
QUALITY = 0.9
CALIBRATION_TOKENS = 40_000


def token_texts(data: Path, source: str, tokenizer: Tokenizer) -> Iterator[tuple[list[int], int]]:
    """The training documents of a source without BOS and EOS, and how many bytes they are."""
    if source == "chat":
        for messages in conversations(data):
            ids = tokenizer.encode_chat(messages, add_generation_prompt=False)
            yield ids[1:], len(tokenizer.decode(ids).encode())
    else:
        for text in documents(data, source, held_out=False):
            yield tokenizer.encode(text), len(text.encode())


def pack_source(data: Path, source: str, destination: Path, tokenizer: Tokenizer) -> None:
    """Token files as `griffin train pack` writes them, with the control tokens that conversations have."""
    assert tokenizer.bos_id is not None
    assert tokenizer.eos_id is not None
    with new_directory(destination) as directory:
        writers = [
            TokenWriter(directory / split, np.dtype("<u2"), tokenizer.bos_id, tokenizer.eos_id) for split in SPLITS
        ]
        texts, writer = token_texts(data, source, tokenizer), writers[0]
        for ids, num_bytes in itertools.takewhile(lambda _: writer.num_tokens < SOURCE_TOKENS, texts):
            writer.add(ids[:SOURCE_TOKENS], num_bytes)
        for one in writers:
            one.close()
        counts = ("num_tokens", "num_documents", "num_bytes")
        record = {
            "format_version": FORMAT_VERSION,
            "tokenizer": tokenizer.digest,
            "dtype": "uint16",
            **{s: {n: getattr(w, n) for n in counts} for s, w in zip(SPLITS, writers, strict=True)},
        }
        (directory / RECORD_FILE).write_text(json.dumps(record) + "\n", encoding="utf-8")


def run_config(work: Path, num_steps: int) -> PretrainConfig:
    """The uptraining run."""
    return PretrainConfig(
        output=work / "run",
        tokenizer=find_model(BASE),
        model={"directory": str(work / "start")},
        sources={source: SourceConfig(packed=work / "tokens" / source) for source in ANNEAL_MIX},
        data=DataConfig(ROW_TOKENS),
        batch_rows=BATCH_ROWS,
        stages=(StageConfig(num_steps, ANNEAL_MIX),),
        optimizer=OptimizerConfig(LEARNING_RATE, weight_decay=0.05),
        schedule=ScheduleConfig("cosine", warm_up_steps=min(30, num_steps), final_share=0.02),
        checkpoints=CheckpointConfig(every_steps=50, num_kept=2),
        teacher=find_model(BASE),
        teacher_share=TEACHER_SHARE,
        exits=EXITS,
        loss_chunk_tokens=256,  # logits that fit into a processor's cache
    )


def annealed(work: Path, config: PretrainConfig, num_steps: int) -> tuple[PretrainConfig, int]:
    """A run that ends another one from its last checkpoint, at a rate that falls from where it stood, and its step."""
    checkpoints = Checkpoints(config.output / CHECKPOINTS, 1)
    last = checkpoints.last()
    if last is None:
        raise GriffinError(f"{config.output} has no checkpoint to end from")
    step = read_manifest(last)["step"]
    once(work / "cut", lambda: write_weights(last, checkpoints, config, work / "cut"))
    rate = LEARNING_RATE * learning_rate_factor(config, step)
    run = dataclasses.replace(
        config,
        output=work / "anneal",
        model={"directory": str(work / "cut")},
        stages=(StageConfig(num_steps, ANNEAL_MIX),),
        optimizer=dataclasses.replace(config.optimizer, learning_rate=rate),
        schedule=ScheduleConfig("cosine", final_share=0.02),
        checkpoints=CheckpointConfig(every_steps=20, num_kept=2),
        seed=step,
    )
    return run, step


def write_weights(path: Path, checkpoints: Checkpoints, config: PretrainConfig, destination: Path) -> None:
    """The model directory of a run's checkpoint."""
    start = open_checkpoint(config.model["directory"])
    recursion = dataclasses.replace(start.config.recursion, skips=EXITS.skips)  # pyright: ignore[reportArgumentType]
    model = dataclasses.replace(start.config, recursion=recursion)
    plain = build_objective(model, start.tensors(), config.loss_chunk_tokens, torch.device("cpu"), "float32")
    objective = ExitObjective(plain, EXITS, config.num_steps)
    optimizer = build_optimizer(objective.griffin.named_parameters(), config.optimizer)
    checkpoints.load(path, objective, optimizer)
    write_checkpoint(model, whole_tensors(objective.griffin), destination, "griffinlm", None, config.tokenizer)


def once(path: Path, make: Callable[[], object]) -> None:
    """Makes what is at a path, unless a run before has."""
    if not path.exists():
        make()


def train(data: Path, work: Path, num_steps: int, anneal_steps: int | None) -> tuple[Path, int]:
    """The directory of the uptrained model, in float32, and how many tokens it has read."""
    work.mkdir(parents=True, exist_ok=True)
    base, tokenizer = open_checkpoint(find_model(BASE)), Tokenizer.from_directory(find_model(BASE))
    once(work / "start", lambda: write_recursive(base, RECURSION, work / "start", "float32"))
    for source in (*PRETRAIN_SOURCES, "chat"):
        path = work / "tokens" / source
        once(path, lambda source=source, path=path: pack_source(data, source, path, tokenizer))
    config = run_config(work, num_steps)
    if anneal_steps is not None:
        config, first_steps = annealed(work, config, anneal_steps)
        num_steps = first_steps + anneal_steps
    once(config.output / "model", lambda: pretrain(config))
    return config.output / "model", num_steps * config.step_tokens


def finish(data: Path, work: Path, trained: Path) -> Path:
    """The int8 directory with its exits, found on the held-out documents that no figure is measured on."""
    destination = work / NAME
    once(destination, lambda: write_quantized(open_checkpoint(trained), WEIGHTS, destination))
    model = griffinlm.load(destination, engine="torch")
    assert isinstance(model.engine, TorchEngine)
    bos_id, encode = model.tokenizer.bos_id, model.tokenizer.encode
    # Sources in turn, so that a bound on the tokens takes from all.
    texts = itertools.zip_longest(*(rows[1::2] for rows in held_out(data).values()))
    documents = ([bos_id, *encode(text)] for turn in texts for text in turn if text is not None)
    write_exits(destination, calibrate_exits(model.engine.model, documents, QUALITY, CALIBRATION_TOKENS))
    return destination


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--anneal-steps", type=int, help="end a run that was cut off in so many steps")
    arguments = parser.parse_args()
    try:
        trained, num_tokens = train(arguments.data, arguments.work, arguments.steps, arguments.anneal_steps)
        directory = finish(arguments.data, arguments.work, trained)
        command = "`recipes/recursive_eyas.py DATA WORK`"
        if arguments.anneal_steps is not None:
            command += f", its run cut off and ended by `--anneal-steps {arguments.anneal_steps}`"
        models = {BASE: find_model(BASE), NAME: directory}
        write_card(directory, models, held_out(arguments.data), num_tokens, command)
    except GriffinError as error:
        print(f"error: {error}", *([f"hint: {error.hint}"] if error.hint else []), sep="\n", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
