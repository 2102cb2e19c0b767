"""What the page must know of a tokenizer, and which tokenizers it can be."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from griffinlm.export.description import ExportError
from griffinlm.text import Tokenizer
from griffinlm.text.chat import GEMMA_TEMPLATE
from griffinlm.text.json_backend import BYTE_OF_CHARACTER
from griffinlm.text.tokenizer import END_OF_TURN, START_OF_TURN

TOKENIZER_FILE = "tokenizer.json"

PIPELINE: Mapping[str, Any] = {
    "normalizer": None,
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "decoder": {"type": "ByteLevel"},
    "model": {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "ignore_merges": False,
    },
}
"""What of tokenizer.json the page's own implementation takes for granted."""


def page_settings(tokenizer: Tokenizer, directory: Path) -> dict[str, Any]:
    """Ids of control tokens for the page, whose tokenizer is byte-level BPE with Gemma's chat format.

    Raises:
        ExportError: the tokenizer is of another kind.
    """
    path = directory / TOKENIZER_FILE
    if not path.exists():
        raise ExportError(f"{directory} has no {TOKENIZER_FILE}; the page reads no other tokenizer")
    content = json.loads(path.read_text(encoding="utf-8"))
    wrong = list(_differences(content, PIPELINE)) + list(_faults(content))
    if tokenizer.chat_template != GEMMA_TEMPLATE or not {START_OF_TURN, END_OF_TURN} <= tokenizer.control.keys():
        wrong.append("the chat template is not Gemma's")
    if wrong:
        raise ExportError(f"the page's tokenizer is byte-level BPE with Gemma's chat format; in {path} {wrong[0]}")
    return {"bos_id": tokenizer.bos_id, "end_ids": sorted(tokenizer.end_ids), "control": dict(tokenizer.control)}


def _differences(found: Any, expected: Any, name: str = "") -> Sequence[str]:
    if not isinstance(expected, Mapping):
        return [] if found == expected else [f"{name} is {json.dumps(found)[:60]}"]
    if not isinstance(found, Mapping):
        return [f"{name} is {json.dumps(found)[:60]}"]
    below = [_differences(found.get(key), expected[key], f"{name}.{key}".lstrip(".")) for key in expected]
    return [fault for faults in below for fault in faults]


def _faults(content: Any) -> Sequence[str]:
    faults = [f"{one['content']!r} is no control token" for one in content["added_tokens"] if not one["special"]]
    missing = [character for character in BYTE_OF_CHARACTER if character not in content["model"].get("vocab", {})]
    if missing:
        faults.append(f"{len(missing)} bytes have no token")
    if not _are_ordered(content["model"].get("merges", [])):
        faults.append("merges use tokens that later ones make")
    return faults


def _are_ordered(merges: Sequence[Any]) -> bool:
    """Whether no merge takes a token that a later one makes: then equal pairs can be joined all at once."""
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    last_made = {first + second: rank for rank, (first, second) in enumerate(pairs)}
    return all(last_made.get(part, -1) < rank for rank, pair in enumerate(pairs) for part in pair)
