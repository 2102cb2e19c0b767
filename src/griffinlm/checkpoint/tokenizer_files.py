"""The tokenizer's files beside a model: which they are, copying them, and the ids of the control tokens."""

import shutil
from pathlib import Path
from typing import Any

from griffinlm.checkpoint.config_file import read_json_table
from griffinlm.checkpoint.errors import CheckpointError

MAIN_FILES = ("tokenizer.json", "tokenizer.model")
"""Either of these is a tokenizer; the others say more about it."""
TOKENIZER_FILES = (
    *MAIN_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory has a tokenizer's main file."""
    return any((directory / name).is_file() for name in MAIN_FILES)


def copy_tokenizer(source: Path, destination: Path) -> None:
    """Copies the tokenizer's files.

    Raises:
        CheckpointError: `source` has no tokenizer.
    """
    if not has_tokenizer(source):
        raise CheckpointError(f"{source} holds no tokenizer; it must have {' or '.join(MAIN_FILES)}")
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)


def control_token_ids(directory: Path | None) -> dict[str, int | None]:
    """`bos_token_id`, `eos_token_id`, `pad_token_id` as tokenizer_config.json and tokenizer.json give them, else None.

    Raises:
        CheckpointError: one of the files is damaged.
    """
    ids: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if directory is None or not all((directory / n).is_file() for n in ("tokenizer_config.json", "tokenizer.json")):
        return ids
    names = read_json_table(directory / "tokenizer_config.json")
    added = read_json_table(directory / "tokenizer.json").get("added_tokens")
    id_of = {t["content"]: t["id"] for t in added or [] if isinstance(t, dict) and {"content", "id"} <= t.keys()}
    return {field: id_of.get(_content(names.get(field.removesuffix("_id")))) for field in ids}


def _content(token: Any) -> str | None:
    """A control token is stored as its text, or as a table that has it."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
