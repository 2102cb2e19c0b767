"""griffin generate: text that goes on from a prompt."""

import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli import options as o
from griffinlm.cli.output import print_json
from griffinlm.cli.text_input import read_text, require_text
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.generation.completion import Generation

LARGEST_DRAWN_SEED = 1 << 32
AFTER_ANSWER = "---"
"""Where there are several, on a line of its own."""


def generate(
    context: typer.Context,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT|-",
            help="Text to go on from; - reads it from standard input, which must be UTF-8. "
            "It may be empty. Write -- in front of a text that begins with a dash.",
        ),
    ],
    model: o.Model = "eyas",
    engine: o.Engine = "auto",
    weights: o.Weights = None,
    window_dtype: o.WindowType = None,
    device: o.Device = "cpu",
    max_tokens: o.MaxTokens = 256,
    min_tokens: o.MinTokens = 0,
    temperature: o.Temperature = 1.0,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = 1.0,
    presence_penalty: o.PresencePenalty = 0.0,
    frequency_penalty: o.FrequencyPenalty = 0.0,
    stop: o.Stop = None,
    seed: o.Seed = None,
    threads: o.Threads = None,
    capacity: o.Capacity = None,
    state_in: Annotated[
        Path | None,
        typer.Option(
            "--state-in", metavar="FILE", help="Go on from a state that --state-out saved with the same model."
        ),
    ] = None,
    state_out: Annotated[
        Path | None, typer.Option("--state-out", metavar="FILE", help="Save what the model remembers at the end.")
    ] = None,
    num_answers: Annotated[
        int | None,
        typer.Option(
            "-n",
            "--num-answers",
            metavar="N",
            help=f"Write N answers, each followed by a line {AFTER_ANSWER}. Their seeds count on from the one given.",
            min=1,
        ),
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Continue a prompt.

    The text alone goes to standard output as it is written, everything else to standard error.
    """
    chosen = o.generation_options(context.params)
    if seed is None and temperature > 0:
        # Drawn here, so that --json can tell how to repeat the text.
        chosen["seed"] = secrets.randbelow(LARGEST_DRAWN_SEED)
    if state_out is not None:
        if num_answers is not None:
            raise GriffinError(f"--state-out saves one answer's state; --num-answers asks for {num_answers}")
        from griffinlm.state import require_writable

        require_writable(state_out)
    text = read_text() if prompt == "-" else require_text(prompt)
    loaded = o.load_model(context.params)

    from griffinlm.state import State

    state = None if state_in is None else State.load(state_in, loaded)
    if num_answers is not None:
        answers = loaded.generate(text, state=state, num_answers=num_answers, **chosen)
        if not as_json:
            for answer in answers:
                print(answer.text, AFTER_ANSWER, sep="\n")
    else:
        stream = loaded.stream(text, state=state, **chosen)
        if not as_json:
            for piece in stream:
                print(piece, end="", flush=True)
            if sys.stdout.isatty():
                print()
        answers = [stream.generation]
    if state_out is not None:
        answers[0].state.save(state_out)
    if as_json:
        read_before = 0 if state is None else int(state.num_tokens[0])
        result: dict[str, Any] = {"answers": [_described(answer) for answer in answers]}
        if num_answers is None:
            (result,) = result["answers"]
        # All but the last answered token have been read too.
        num_read = int(answers[0].state.num_tokens[0]) - len(answers[0].token_ids) + 1
        result["num_prompt_tokens"] = num_read - read_before
        drawn = chosen.get("seed")
        print_json(result if drawn is None else {**result, "seed": drawn})


def _described(answer: "Generation") -> dict[str, Any]:
    return {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
