"""A small tuning run: a few conversations, the tiny model, and steps of a second in all."""

import json
import random
from collections.abc import Callable
from pathlib import Path

from griffinlm.train.tuning_config import TuningConfig, read_tuning_config

WORDS = ["the", "hawk", "and", "griffin", "are", "older", "than", "hill", "they", "hunt", "over", "do", "not", "grow"]

RUN = """
output = "{output}"
model = "{model}"
batch_rows = 4
steps = 6
log_every_steps = 1
precision = "float32"
device = "cpu"

[sources.chat]
files = ["chat.jsonl"]

[data]
row_tokens = 96
held_out_share = 0.1

[optimizer]
learning_rate = 1e-2

[schedule]
kind = "constant"
"""

Tuned = Callable[..., TuningConfig]


def conversations(seed: int, number: int) -> list[list[dict[str, str]]]:
    """Some of one turn, some of two, so that rows have different lengths."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randrange(1, 6)))

    return [
        [{"role": role, "content": text()} for _ in range(draw.randrange(1, 3)) for role in ("user", "assistant")]
        for _ in range(number)
    ]


def tuning_run(folder: Path, model: Path) -> Tuned:
    """`run("lora={}", output="a")`: the configuration with changes."""
    rows = [json.dumps({"messages": messages}) for messages in conversations(0, 60)]
    (folder / "chat.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

    def run(*changes: str, output: str = "out") -> TuningConfig:
        (folder / "tune.toml").write_text(RUN.format(output=output, model=model), encoding="utf-8")
        return read_tuning_config(folder / "tune.toml", changes)

    return run
