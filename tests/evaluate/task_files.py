"""Small made-up files in the format of the evaluation files, one a task."""

import json
import lzma
from collections.abc import Mapping
from pathlib import Path
from typing import Any

WORDS = ["hawk", "griffin", "hill", "they", "hunt", "over", "and", "do", "not", "grow", "older", "than", "the"]
NUM_ROWS = 7


def words(start: int, number: int) -> str:
    return " ".join(WORDS[(start + 3 * i) % len(WORDS)] for i in range(number))


def choice_rows(prefix: str, num_choices: int, suffix: str = "\nAnswer:") -> list[dict[str, Any]]:
    return [
        {
            "id": f"made-{i}",
            "query": f"{prefix}{words(i, 5)}?{suffix}",
            "choices": [f"{words(i + 2 * c, 1 + c)}." for c in range(num_choices)],
            "gold": i % num_choices,
        }
        for i in range(NUM_ROWS)
    ]


def made_rows() -> dict[str, list[dict[str, Any]]]:
    """Rows by the file's name without its ending."""
    files = {name: choice_rows("Question: ", 4) for name in ("arc_easy", "arc_challenge")}
    files |= {name: choice_rows("", 4, "") for name in ("openbook_qa",)}
    files |= {name: choice_rows("Question: ", 2) for name in ("piqa", "copa")}
    files["boolq"] = [{**row, "choices": ["no", "yes"]} for row in choice_rows("Passage: ", 2)]
    splits = ["dev", *["test"] * (NUM_ROWS - 1)]
    files["mmlu"] = [
        {**row, "subject": "high_hills", "split": split}
        for row, split in zip(choice_rows("Question: ", 4), splits, strict=True)
    ]
    files["winogrande"] = [
        {"context_options": [words(i, 4), words(i + 1, 4)], "continuation": f"{words(i, 2)}.", "gold": i % 2}
        for i in range(NUM_ROWS)
    ]
    files["lambada_openai"] = [{"context": words(i, 9), "continuation": WORDS[i]} for i in range(NUM_ROWS)]
    files["gsm8k_test"] = [
        {"question": f"{words(i, 4)} {i}?", "answer": f"{words(i, 3)}\n#### {i}", "target": str(i)}
        for i in range(NUM_ROWS)
    ]
    return files


def write_rows(directory: Path, files: Mapping[str, list[dict[str, Any]]], ending: str = ".jsonl.xz") -> Path:
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (directory / f"{name}{ending}").write_bytes(lzma.compress(text) if ending.endswith("xz") else text)
    return directory
