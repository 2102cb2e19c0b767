"""griffin exits: from which confidence on tokens may leave the loops of a recursive model early."""

from pathlib import Path
from typing import Annotated

import typer

from griffinlm.cli.info import exits_facts
from griffinlm.cli.options import AsJson
from griffinlm.cli.output import print_json, print_table


def exits(
    model: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="Of a model whose layers loop.")],
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE", help="Held-out documents; files as in `griffin evaluate`.")
    ],
    quality: Annotated[
        float,
        typer.Option(
            "--quality",
            metavar="SHARE",
            help="Of the tokens that leave early, at least so many must have the best next token of full depth.",
        ),
    ] = 0.95,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", metavar="N", help="About how many tokens are read.", min=1)
    ] = 40_000,
    as_json: AsJson = False,
) -> None:
    """Find when tokens may leave a recursive model early.

    Behind every loop but the last a small head learns from most of the documents to tell whether the best next token
    there is that of full depth; the others say from which confidence on it is right often enough. The file
    exits.safetensors in the directory has both. Needs PyTorch.
    """
    from griffinlm.checkpoint.exits import EXITS_FILE, write_exits
    from griffinlm.errors import GriffinError
    from griffinlm.evaluate.documents import read_token_ids
    from griffinlm.loading import bundled_models, load

    if str(model) in bundled_models() and not model.exists():
        raise GriffinError(
            f"{model} is a bundled model; its exits are written into its directory", hint="give a directory of your own"
        )
    try:
        from griffinlm.model.engine import TorchEngine
        from griffinlm.train.exit_probe import calibrate_exits
    except ModuleNotFoundError as error:
        raise GriffinError("griffin exits needs torch", hint="pip install 'griffinlm[torch]'") from error

    loaded = load(model, engine="torch")
    assert isinstance(loaded.engine, TorchEngine)
    found = calibrate_exits(loaded.engine.model, read_token_ids(text, loaded.tokenizer), quality, max_tokens)
    write_exits(model, found)
    if as_json:
        print_json({"path": str(model / EXITS_FILE), **exits_facts(found)})
        return
    rows = [
        [str(loop), f"{threshold:.4f}" if threshold <= 1 else "none leaves", f"{share:.1%}"]
        for loop, (threshold, share) in enumerate(zip(found.thresholds, found.shares, strict=True), 1)
    ]
    print_table(["behind loop", "confidence", "of tokens"], rows)
    print(f"\n{model / EXITS_FILE}: {found.num_tokens:,} tokens read")
