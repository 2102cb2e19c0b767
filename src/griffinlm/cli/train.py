"""griffin train: packing text, pretraining, tuning on conversations, on preferences and on rewards."""

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli.main import PLAIN, StrictCommand
from griffinlm.cli.options import AsJson
from griffinlm.cli.output import one_line, print_json
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.evaluate.documents import DocumentError
    from griffinlm.train.base import TuningOutcome

ConfigFile = Annotated[
    Path, typer.Option("--config", metavar="FILE", help="The run, as TOML; `griffin train keys` lists its keys.")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change an entry, as in optimizer.learning_rate=1e-3."),
]

train = typer.Typer(help="Train a model.", no_args_is_help=True, **PLAIN)


class MissingLibraryError(GriffinError):
    """Training needs libraries that the base install leaves out."""


@train.command("pretrain", cls=StrictCommand)
def pretrain(
    config: ConfigFile,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Train a model on text, or go on from a checkpoint.

    The output directory that FILE names decides: where it has checkpoints of this run, the last one is gone on from.

    Several devices: torchrun --no-python --nproc-per-node N griffin train pretrain --config FILE.
    """
    from griffinlm.train.config import read_pretrain_config

    run = read_pretrain_config(config, changes or ())
    try:
        from griffinlm.train.pretrain import pretrain as run_pretraining
        from griffinlm.train.sharding import rank
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    outcome = run_pretraining(run, _tell_bad_row)
    if rank() != 0:
        return
    if as_json:
        print_json({"model": str(outcome.model), "step": outcome.step, "figures": outcome.figures})
    else:
        print(outcome.model)


@train.command("sft", cls=StrictCommand)
def sft(
    config: ConfigFile,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Tune a model on conversations: all weights, low-rank terms, a prompt, or the state that it begins from.

    Several devices: torchrun --no-python --nproc-per-node N griffin train sft --config FILE.
    """
    from griffinlm.train.tuning_config import read_tuning_config

    run = read_tuning_config(config, changes or ())
    try:
        from griffinlm.train.sft import tune
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    _tell_outcome(tune(run, _tell_bad_row), as_json)


@train.command("reward", cls=StrictCommand)
def reward(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Train a reward model on pairs of answers of which one is better: rows {prompt, chosen, rejected}."""
    from griffinlm.train.alignment.config import RewardConfig, read_alignment_config

    run = read_alignment_config(RewardConfig, config, changes or ())
    try:
        from griffinlm.train.alignment.reward import train_reward
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    _tell_outcome(train_reward(run, _tell_bad_row), as_json)


@train.command("dpo", cls=StrictCommand)
def dpo(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Train a model to prefer the better answers of pairs: rows {prompt, chosen, rejected}."""
    from griffinlm.train.alignment.config import DpoConfig, read_alignment_config

    run = read_alignment_config(DpoConfig, config, changes or ())
    try:
        from griffinlm.train.alignment.dpo import train_dpo
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    _tell_outcome(train_dpo(run, _tell_bad_row), as_json)


@train.command("rloo", cls=StrictCommand)
def rloo(config: ConfigFile, changes: Changes = None, as_json: AsJson = False) -> None:
    """Train a model on what a reward model says of its own answers: rows {prompt}."""
    from griffinlm.train.alignment.config import RlooConfig, read_alignment_config

    run = read_alignment_config(RlooConfig, config, changes or ())
    try:
        from griffinlm.train.alignment.rloo import train_rloo
    except ModuleNotFoundError as error:
        raise _missing(error) from error
    _tell_outcome(train_rloo(run, _tell_bad_row), as_json)


@train.command("merge", cls=StrictCommand)
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="As in `griffin generate --model`.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="The directory of a low-rank adapter.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="A directory that is not there yet.")],
) -> None:
    """Write the model with an adapter added to its weights."""
    from griffinlm.train.merge import merge as merge_adapter

    merge_adapter(base, adapter, destination)
    print(destination)


@train.command("keys", cls=StrictCommand)
def keys(
    kind: Annotated[str, typer.Argument(metavar="COMMAND", help="pretrain, sft, reward, rloo or dpo.")],
    as_json: AsJson = False,
) -> None:
    """List what the TOML file of a command may say: every key, what it may be, and what it means.

    Tables are written as TOML has them: [data], [sources.NAME], and [[stages]] for entries N of a list.
    """
    from griffinlm.train.keys import KINDS, keys_of

    if kind not in KINDS:
        raise GriffinError(f"griffin train {kind} has no TOML file; these have: {', '.join(KINDS)}")
    found = list(keys_of(KINDS[kind]))
    if as_json:
        print_json({"keys": [key._asdict() for key in found]})
        return
    for key in found:
        print(f"{key.name} = {key.allowed} ({key.default})")
        if key.meaning:
            print(textwrap.indent(textwrap.fill(key.meaning, 100), "    "))


@train.command("pack", cls=StrictCommand)
def pack(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".jsonl (also .xz, .gz, .zst) or .txt.")],
    tokenizer: Annotated[
        str, typer.Option("--tokenizer", metavar="NAME", help="A directory with a tokenizer, or a bundled model.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="A directory that is not there yet.")],
    field: Annotated[str, typer.Option("--field", metavar="NAME", help="Field of a row that holds the text.")] = "text",
    held_out_share: Annotated[
        float,
        typer.Option(
            "--held-out-share", metavar="X", help="Share of documents kept out of training.", min=0.0, max=0.5
        ),
    ] = 0.01,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Tell rows that are no documents, and go on.")
    ] = False,
    largest_row_bytes: Annotated[
        int, typer.Option("--largest-row-bytes", metavar="N", help="A longer row is a bad one.", min=1)
    ] = 8_000_000,
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", help="Processes that cut text into tokens.", min=1, max=1024)
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Turn documents into files of tokens.

    Pretraining maps them into memory: give the directory as `packed` of a source.
    """
    from griffinlm.loading import find_model
    from griffinlm.train.data.pack import PackOptions
    from griffinlm.train.data.pack import pack as pack_files

    options = PackOptions(field, held_out_share, "skip" if skip_bad_rows else "refuse", largest_row_bytes)
    record = pack_files(files, find_model(tokenizer), out, options, processes, _tell_bad_row).record
    figures: dict[str, Any] = {
        "path": str(out),
        "train": record["train"],
        "held_out": record["held_out"],
        "num_bad_rows": record["num_bad_rows"],
    }
    if as_json:
        print_json(figures)
        return
    for split in ("train", "held_out"):
        counts = figures[split]
        print(f"{split:9} {counts['num_documents']:,} documents, {counts['num_tokens']:,} tokens")


def _tell_outcome(outcome: "TuningOutcome", as_json: bool) -> None:
    from griffinlm.train.sharding import rank

    if rank() != 0:
        return
    if as_json:
        print_json({"result": str(outcome.result), "step": outcome.step, "figures": outcome.figures})
    else:
        print(outcome.result)


def _tell_bad_row(error: "DocumentError") -> None:
    print(f"skipped: {one_line(str(error))}", file=sys.stderr)


def _missing(error: ModuleNotFoundError) -> MissingLibraryError:
    library = (error.name or "another library").partition(".")[0]
    return MissingLibraryError(f"training needs {library}", hint="pip install 'griffinlm[train]'")
