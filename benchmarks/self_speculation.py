"""What is it worth that the first loop of a recursive model guesses?

Greedy text behind pieces of a file, with and without guesses, in turn so that a drifting machine shows in both; how
many guesses came true; and the gain that these would give if a step cost the reading of its weights and nothing else:

    tokens a reading / (1 + guesses a reading * share of the guessing layers and the head in a token's weights)

Of a small model the rest of a step counts too, and reading ahead pays for it once.

    python benchmarks/self_speculation.py MODEL TEXT --engine onnx --weights int8 --out benchmarks/results
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import griffinlm
from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.evaluate.record import header, write
from griffinlm.executor import Executor
from griffinlm.generation.speculation import SpeculatingExecutor

PROMPT_TOKENS = 64


def guessing_share(config: ModelConfig) -> float:
    """Weights that one guess reads, of those that a token reads: the head, and the layers of one loop."""
    sizes = {name: int(np.prod(shape)) for name, shape in config.place_shapes().items()}
    first = tuple(f"layers.{layer}." for layer in range(config.num_shared_layers))
    guessing = sum(size for name, size in sizes.items() if not name.startswith("layers.") or name.startswith(first))
    return guessing / sum(sizes.values())


def write_greedily(executor: Executor, prompt: Sequence[int], num_tokens: int) -> tuple[list[int], float]:
    """Tokens behind a prompt, and the seconds of all their steps."""
    executor.prefill([0], np.asarray([prompt[:-1]], np.int64), None, "none")
    tokens, start = [prompt[-1]], time.perf_counter()
    for _ in range(num_tokens):
        tokens.append(int(executor.step([0], tokens[-1:])[0].argmax()))
    seconds = time.perf_counter() - start
    executor.release(0)
    return tokens[1:], seconds


def measured(
    plain: griffinlm.LanguageModel, guessing: griffinlm.LanguageModel, prompts: Sequence[list[int]], num_tokens: int
) -> dict[str, Any]:
    """Speed with and without guesses, and what the guesses were worth."""
    room = PROMPT_TOKENS + num_tokens if plain.config.needs_capacity else None
    one, other = plain.engine.executor(1, room), guessing.engine.executor(1, room)
    assert isinstance(other, SpeculatingExecutor)
    seconds, num_equal = [], 0
    for prompt in prompts:
        (expected, alone), (found, ahead) = (write_greedily(e, prompt, num_tokens) for e in (one, other))
        num_equal += expected == found
        seconds.append((alone, ahead))
    a_reading, guessed = num_tokens * len(prompts) / other.num_readings, other.num_guessed / other.num_readings
    return {
        "tokens_per_second": statistics.median(num_tokens / alone for alone, _ in seconds),
        "tokens_per_second_with_guesses": statistics.median(num_tokens / ahead for _, ahead in seconds),
        "gain": statistics.median(alone / ahead for alone, ahead in seconds),
        "gain_by_weights": a_reading / (1 + guessed * guessing_share(plain.config)),
        "tokens_a_reading": a_reading,
        "true_guesses": other.num_true / max(other.num_guessed, 1),
        "equal_texts": num_equal,
        "texts": len(prompts),
    }


def ids_of(model: griffinlm.LanguageModel, text: Path) -> list[int]:
    """The tokens of a text file; GriffinError where it cannot be read."""
    try:
        return model.tokenizer.encode(text.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise GriffinError(f"{text} cannot be read: {error}") from None


def pieces_of(ids: Sequence[int], num_pieces: int, num_tokens: int) -> list[list[int]]:
    """Pieces of a text at regular distances; GriffinError where it is too short."""
    if len(ids) < num_pieces * num_tokens:
        raise GriffinError(f"the text has {len(ids)} tokens; {num_pieces} pieces of {num_tokens} are wanted")
    distance = len(ids) // num_pieces
    return [list(ids[start * distance :][:num_tokens]) for start in range(num_pieces)]


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("model", help="a recursive model")
    parser.add_argument("text", type=Path, help="a file whose pieces are prompts")
    parser.add_argument("--engine", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--weights", help="as in griffinlm.load")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--guesses", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    chosen = {"engine": given.engine, "weights": given.weights, "threads": given.threads}
    plain = griffinlm.load(given.model, **chosen)
    prompts = pieces_of(ids_of(plain, given.text), given.prompts, PROMPT_TOKENS)
    report = {**header("benchmarks/self_speculation.py", arguments), **chosen, "guesses": {}}
    for num_guesses in given.guesses:
        guessing = griffinlm.load(given.model, num_guesses=num_guesses, **chosen)
        found = report["guesses"][num_guesses] = measured(plain, guessing, prompts, given.tokens)
        print(
            f"{num_guesses} guesses: {found['tokens_per_second_with_guesses']:.1f} tokens/s against "
            f"{found['tokens_per_second']:.1f}, {found['gain']:.2f} times ({found['gain_by_weights']:.2f} by weights); "
            f"{found['tokens_a_reading']:.2f} tokens a reading, {found['true_guesses']:.0%} of guesses true, "
            f"{found['equal_texts']} of {found['texts']} texts equal"
        )
    if given.out is not None:
        print(write(report, "self_speculation", given.out))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except GriffinError as error:
        sys.exit(f"error: {error}")
