"""Which tokenizers the page can be; that it computes what they do is shown in a browser."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from griffinlm.export import ExportError
from griffinlm.export.page_tokenizer import page_settings
from griffinlm.loading import find_model
from griffinlm.text import Tokenizer

Change = Callable[[dict[str, Any]], Any]


def settings_of(directory: Path, change: Change, template: str | None = None) -> dict[str, Any]:
    """Settings for the bundled model's tokenizer with a change in its file, and perhaps with another template."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(find_model("eyas") / name, directory / name)
    content = json.loads((directory / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (directory / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    if template is not None:
        (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    return page_settings(Tokenizer.from_directory(directory), directory)


def test_the_page_gets_the_control_tokens_of_the_tokenizer(tmp_path):
    tokenizer = Tokenizer.from_directory(find_model("eyas"))
    settings = settings_of(tmp_path, lambda content: None)
    assert settings["bos_id"] == tokenizer.bos_id
    assert set(settings["end_ids"]) == tokenizer.end_ids
    assert {"<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"} <= settings["control"].keys()
    assert all(tokenizer.token_bytes(token_id) is None for token_id in settings["control"].values())


def add_token(content: dict[str, Any]) -> None:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    content["added_tokens"].append({"id": 8192, "content": "<b>", **plain})


def use_a_later_token(content: dict[str, Any]) -> None:
    content["model"]["merges"].insert(0, ["Ġt", "he"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.update(normalizer={"type": "NFC"}), "normalizer is"),
        (lambda content: content["pre_tokenizer"].update(use_regex=False), "pre_tokenizer.use_regex is false"),
        (lambda content: content["model"].update(ignore_merges=True), "model.ignore_merges is true"),
        (add_token, "'<b>' is no control token"),
        (use_a_later_token, "merges use tokens that later ones make"),
    ],
)
def test_another_pipeline_is_refused(change, words, tmp_path):
    with pytest.raises(ExportError, match=words):
        settings_of(tmp_path, change)


def test_another_chat_template_is_refused(tmp_path):
    with pytest.raises(ExportError, match="the chat template is not Gemma's"):
        settings_of(tmp_path, lambda content: None, template="{{ messages[0]['content'] }}")


def test_a_directory_without_the_file_is_refused(tmp_path):
    tokenizer = Tokenizer.from_directory(find_model("eyas"))
    with pytest.raises(ExportError, match=r"has no tokenizer\.json"):
        page_settings(tokenizer, tmp_path)
