"""Small runs on preferences and rewards: a few rows, the tiny model, and steps of a second in all."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from griffinlm.train.alignment.config import read_alignment_config

WORDS = ["the", "hawk", "and", "griffin", "are", "older", "than", "hill", "they", "hunt", "over", "do", "not", "grow"]

RUN = """
output = "{output}"
model = "{model}"
batch_rows = 4
steps = 4
log_every_steps = 1
precision = "float32"
device = "cpu"

[sources.rows]
files = ["rows.jsonl"]

[data]
row_tokens = 120
held_out_share = 0.1

[optimizer]
learning_rate = 1e-2

[schedule]
kind = "constant"
"""

Aligned = Callable[..., Any]


def write_rows(path: Path, number: int = 60) -> list[dict[str, Any]]:
    """Pairs with prompts of text and of messages; the better answer says hawk, and is as long as the other."""
    draw, rows = random.Random(0), []
    for index in range(number):
        said = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 5))) for _ in range(3)]
        question: Any = said[0]
        if index % 3 == 0:
            roles = ("user", "assistant", "user")
            question = [{"role": role, "content": text} for role, text in zip(roles, said, strict=True)]
        rest = " ".join(draw.choices(WORDS[4:], k=draw.randrange(2)))
        chosen: Any = f"hawk {rest}".strip()
        if index % 2 == 0:
            chosen = [{"role": "assistant", "content": chosen}]
        rows.append({"prompt": question, "chosen": chosen, "rejected": f"hill {rest}".strip()})
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return rows


def alignment_run(folder: Path, model: Path) -> Aligned:
    """`run(RewardConfig, "steps=2", output="a")`: the configuration with changes."""
    write_rows(folder / "rows.jsonl")

    def run(kind: type, *changes: str, output: str = "out") -> Any:
        (folder / "align.toml").write_text(RUN.format(output=output, model=model), encoding="utf-8")
        return read_alignment_config(kind, folder / "align.toml", changes)

    return run
