"""griffin evaluate: held-out bits per byte."""

import sys
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from griffinlm.cli import options as o
from griffinlm.cli.output import print_json


def evaluate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As in `griffin generate --model`.")],
    text: Annotated[
        Path,
        typer.Option(
            "--text",
            metavar="FILE",
            help='.jsonl or .jsonl.xz: the "text" of each row is a document; .txt: the file is one document.',
        ),
    ],
    weights: o.Weights = None,
    engine: o.Engine = "auto",
    threads: o.Threads = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Only the first N documents.", min=1)
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure how many bits a model needs for each byte of a text.

    Every document begins with the begin token; neither that nor an end token counts.
    """
    from griffinlm.evaluate.documents import read_documents

    num_documents = None if limit is None else min(limit, sys.maxsize)
    documents = list(islice(read_documents(text), num_documents))
    loaded = o.load_model(context.params)

    from griffinlm.evaluate.bits_per_byte import evaluate_documents

    found = evaluate_documents(loaded, documents, len(documents))
    figures = {
        "bits_per_byte": found.bits_per_byte,
        "bytes": found.num_bytes,
        "tokens": found.num_tokens,
        "documents": found.num_documents,
    }
    if as_json:
        print_json(figures)
    else:
        print(
            f"{found.bits_per_byte:.4f} bits per byte  "
            f"({found.num_bytes:,} bytes, {found.num_tokens:,} tokens, {found.num_documents:,} documents)"
        )
