"""Options that several commands share, and what they become."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from griffinlm.errors import GriffinError, shown

if TYPE_CHECKING:
    from griffinlm.generation.answering import Options
    from griffinlm.language_model import LanguageModel

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="A model directory, a bundled model's name, or an ORGANISATION/NAME fetched with `griffin pull`.",
    ),
]
Engine = Annotated[str, typer.Option("--engine", metavar="NAME", help="What computes: onnx (CPU), torch, or auto.")]
Weights = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="TYPE",
        help="float32, int8 or int4 (onnx), bfloat16 (torch); what the model's files hold if not given.",
    ),
]
WindowType = Annotated[
    str | None,
    typer.Option(
        "--window-dtype",
        metavar="TYPE",
        help="Type of attention's window: float32, float16, int8 (onnx), bfloat16 (torch).",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where the torch engine runs: cpu, cuda, mps.")]
Adapter = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        metavar="DIR|FILE",
        help="Compute with a low-rank adapter (a directory of PEFT's), or begin from a tuned state (.safetensors).",
    ),
]
Speculate = Annotated[
    int | None,
    typer.Option(
        "--speculate",
        metavar="N",
        help="Let the first loop of a recursive model guess N tokens, which the whole model checks in one go. "
        "Answers are those without, but for rounding: with int8 weights texts may part.",
        min=1,
    ),
]
EarlyExit = Annotated[
    bool,
    typer.Option(
        "--early-exit",
        help="Let tokens leave the loops of a recursive model early where it is sure (`griffin exits`).",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads; one for every core if not given.")
]

MaxTokens = Annotated[int, typer.Option("--max-tokens", metavar="N", help="Most tokens to write in one answer.")]
MinTokens = Annotated[
    int, typer.Option("--min-tokens", metavar="N", help="Tokens before which the end token is held back.")
]
Temperature = Annotated[float, typer.Option("--temperature", metavar="T", help="0 takes the best token every time.")]
TopK = Annotated[int | None, typer.Option("--top-k", metavar="K", help="Draw from the K best tokens only.")]
TopP = Annotated[
    float | None,
    typer.Option("--top-p", metavar="P", help="Draw from the fewest best tokens that reach this probability together."),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p", metavar="P", help="Draw from tokens with at least this share of the best one's probability."
    ),
]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", metavar="X", help="Above 1, tokens already there become less likely.")
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", metavar="X", help="Taken off the logit of tokens that the answer has.")
]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", metavar="X", help="The same, for every time the token stands there.")
]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text; may be repeated.")
]
JsonSchema = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="Write JSON that follows the JSON schema in this file."),
]
Capacity = Annotated[
    int | None,
    typer.Option(
        "--capacity", metavar="N", help="Tokens to keep room for in a new state; for models with global attention only."
    ),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Same seed and prompt, same text.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

CHOSEN = "chosen"
"""Under which name the adapter of a command line is loaded."""


def load_model(given: dict[str, Any]) -> "LanguageModel":
    """`griffinlm.load` with those of a command's values that are its parameters; imported now."""
    from griffinlm.loading import load

    names = ("engine", "device", "weights", "window_dtype", "threads", "early_exit")
    chosen = {name: given[name] for name in names if name in given}
    if given.get("speculate") is not None:
        chosen["num_guesses"] = given["speculate"]
    if given.get("adapter") is None:
        return load(given["model"], **chosen)
    return load(given["model"], **chosen, adapters={CHOSEN: given["adapter"]}).with_adapter(CHOSEN)


def generation_options(given: dict[str, Any]) -> "Options":
    """Those of a command's values that are options of `LanguageModel.generate`.

    Raises:
        GriffinError: one of them is out of its range, or the schema's file cannot be read.
    """
    from griffinlm.generation.answering import GenerationOptions, Options

    chosen = Options(**{name: given[name] for name in Options.__annotations__ if name in given})
    if given.get("json_schema") is not None:
        chosen["json_schema"] = _read_json(given["json_schema"])
        if chosen["json_schema"] is None:
            raise GriffinError(f"{given['json_schema']} holds null; a JSON schema must be a table")
    GenerationOptions.of(chosen)
    return chosen


def whole_numbers(name: str, text: str, example: str) -> list[int]:
    """Numbers with commas between them; GriffinError, naming the option, where it is something else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts):
        raise GriffinError(
            f"{name} is {shown(text)}; it must be whole numbers with commas between them, as in {example}"
        )
    return list(map(int, parts))


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise GriffinError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise GriffinError(f"{path} is not JSON: {error}") from None
