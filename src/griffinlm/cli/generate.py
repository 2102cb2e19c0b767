"""griffin generate: text that goes on from a prompt."""

import json
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.cli import options as o
from griffinlm.cli.interrupts import Interrupted, noted_interrupt
from griffinlm.cli.output import print_json, print_note
from griffinlm.cli.text_input import read_texts, require_text
from griffinlm.errors import GriffinError

if TYPE_CHECKING:
    from griffinlm.cli.pipe import Piece, Reading
    from griffinlm.generation.answering import Options
    from griffinlm.generation.completion import Generation
    from griffinlm.language_model import LanguageModel
    from griffinlm.state import State

LARGEST_DRAWN_SEED = 1 << 32
AFTER_ANSWER = "---"
"""Where there are several, on a line of its own."""


def generate(
    context: typer.Context,
    prompt: Annotated[
        str,
        typer.Argument(
            metavar="PROMPT|-",
            help="Text to go on from; - reads it from standard input, which must be UTF-8 and need not end. "
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
    json_schema: o.JsonSchema = None,
    seed: o.Seed = None,
    adapter: o.Adapter = None,
    speculate: o.Speculate = None,
    early_exit: o.EarlyExit = False,
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
    every: Annotated[
        str | None,
        typer.Option(
            "--every",
            metavar="PATTERN",
            help="Answer behind every line of standard input that has this regular expression, then read on.",
        ),
    ] = None,
    ask: Annotated[
        str | None,
        typer.Option("--ask", metavar="TEXT", help="Text put behind standard input for the answer to go on from."),
    ] = None,
    invalid_utf8: Annotated[
        str | None,
        typer.Option(
            "--invalid-utf8",
            metavar="HOW",
            help="Bytes of standard input that are no UTF-8: refuse them (if not given), or replace them by U+FFFD.",
        ),
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

    Standard input is read in constant memory and answered at its end, or with --every behind each line that matches.
    Then an answer goes on from all that was read so far and from --ask, and a line --- follows it; what is read next
    follows the line that matched, not the answer, and --state-out saves what was read. A line above 64 KiB counts as
    several. Penalties look back on the last 64 KiB of standard input; with --every they look back on --ask alone.

    --state-out saves what was read and written also when interrupted by Ctrl-C; a second one ends without saving.
    """
    chosen = o.generation_options(context.params)
    if seed is None and temperature > 0:
        # Drawn here, so that --json can tell how to repeat the text.
        chosen["seed"] = secrets.randbelow(LARGEST_DRAWN_SEED)
    if state_out is not None:
        if num_answers is not None and every is None:
            raise GriffinError(f"--state-out saves one answer's state; --num-answers asks for {num_answers}")
        from griffinlm.state import STATE_FILE, require_writable

        require_writable(state_out, STATE_FILE)
    asked = "" if ask is None else require_text(ask, "--ask")
    texts = _texts(prompt, {"--every": every, "--ask": ask, "--invalid-utf8": invalid_utf8})
    from griffinlm.cli.pipe import Reading, compiled, pieces_by_line, read_all_but_last

    pattern = None if every is None else compiled(every)
    loaded = o.load_model(context.params)

    from griffinlm.state import State

    state = None if state_in is None else State.load(state_in, loaded)
    writer = _Writer(loaded, chosen, num_answers, as_json, 0 if state is None else int(state.num_tokens[0]))
    try:
        if pattern is None:
            state, text = read_all_but_last(loaded, state, texts, chosen)
            state = writer.write(text + asked, state)
        else:
            reading = Reading(loaded, state, chosen.pop("capacity", None))
            state = _answer_lines(reading, pieces_by_line(texts, pattern), writer, asked)
    except Interrupted as interrupted:
        if state_out is not None and interrupted.state is not None:
            interrupted.state.save(state_out)
        raise
    if state_out is not None:
        state.save(state_out)


def _answer_lines(reading: "Reading", pieces: "Iterable[Piece]", writer: "_Writer", asked: str) -> "State":
    """Reads a text and answers behind each of its lines that match; the state behind the text."""
    try:
        for piece in pieces:
            reading.read(piece.text)
            if piece.is_match:
                writer.write(asked, reading.state, piece.num_lines)
    except KeyboardInterrupt:
        # The usual end of a log that has none.
        raise Interrupted(reading.state) from None
    return reading.state


def _texts(prompt: str, options: dict[str, str | None]) -> Iterable[str]:
    """The prompt, or standard input with those options that go with it alone."""
    if prompt == "-":
        # Behind lines that match an answer is due as soon as they are there; else parts are full, whatever comes when.
        pipe: Any = sys.stdin.buffer
        return read_texts(pipe.read if options["--every"] is None else pipe.read1, options["--invalid-utf8"])
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise GriffinError(f"{given[0]} is given with a prompt; it goes with standard input, the prompt -")
    return [require_text(prompt)]


class _Writer:
    """Writes answers to standard output, as text or as one JSON object each."""

    def __init__(
        self, model: "LanguageModel", options: "Options", num_answers: int | None, as_json: bool, num_read_before: int
    ) -> None:
        self._model, self._options, self._num_answers = model, options, num_answers
        self._as_json, self._num_read_before = as_json, num_read_before

    def write(self, text: str, state: "State | None", line: int | None = None) -> "State":
        """The answers to a text behind a state; gives the state behind the first of them.

        Args:
            line: number of the line that is answered, where more answers may come.
        """
        if self._num_answers is not None:
            answers = self._model.generate(text, state=state, num_answers=self._num_answers, **self._options)
            if not self._as_json:
                for answer in answers:
                    print(answer.text, AFTER_ANSWER, sep="\n")
        else:
            stream = self._model.stream(text, state=state, **self._options)
            with noted_interrupt() as is_interrupted:
                for piece in stream:
                    if not self._as_json:
                        print(piece, end="", flush=True)
                    if is_interrupted():
                        raise Interrupted(stream.stop())
            if not self._as_json:
                if line is not None:
                    print(f"\n{AFTER_ANSWER}")
                elif sys.stdout.isatty():
                    print()
            answers = [stream.generation]
        if self._options.get("json_schema") and not all(_is_json(answer.text) for answer in answers):
            print_note("the answer ended by --max-tokens or --stop before its JSON was whole")
        if self._as_json:
            print_json({**({} if line is None else {"line": line}), **self._described(answers)})
        sys.stdout.flush()
        return answers[0].state

    def _described(self, answers: "list[Generation]") -> dict[str, Any]:
        result: dict[str, Any] = {"answers": [_described(answer) for answer in answers]}
        if self._num_answers is None:
            (result,) = result["answers"]
        # All but the last answered token have been read too.
        num_read = int(answers[0].state.num_tokens[0]) - len(answers[0].token_ids) + 1
        result["num_prompt_tokens"] = num_read - self._num_read_before
        drawn = self._options.get("seed")
        return result if drawn is None else {**result, "seed": drawn}


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def _described(answer: "Generation") -> dict[str, Any]:
    return {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
