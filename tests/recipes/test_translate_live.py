"""Lines are translated as each would be alone, and every token of them is read once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import griffinlm

RECIPES = Path(__file__).parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))

from translate_live import ANSWER, INSTRUCTION, Translator, translations  # noqa: E402

LINES = ["I am very tired today.", "He ate my bread.", "", "Où est-il?  Two  spaces.", "Go"]


@pytest.fixture(scope="module")
def model():
    return griffinlm.load("eyas")


def alone(model, line: str) -> str:
    ids = model.tokenizer.encode_chat([{"role": "user", "content": INSTRUCTION + line}])
    return model.generate(ids, **ANSWER).text


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_lines_typed_in_pieces_are_translated_as_each_alone(model, size: int):
    text = "\n".join(LINES)
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    found = "".join(translations(Translator(model), pieces))
    assert found.split("\n") == [*(alone(model, line) if line else "" for line in LINES), ""]


def test_nothing_is_read_twice(model):
    translator = Translator(model)
    instruction, line = translator.num_read, "He ate my bread and the whole apple."
    for end in range(len(line)):
        if line[end] == " ":
            translator.hear(line[:end])
    for _ in range(2):
        "".join(translator.translate(line))
    whole = len(model.tokenizer.encode_chat([{"role": "user", "content": INSTRUCTION + line}]))
    assert translator.num_read == instruction + 2 * (whole - 1 - instruction)
    assert instruction > 5


def test_the_script_translates_piped_lines(model):
    if os.name == "nt":
        pytest.skip("a script of bash")
    done = subprocess.run(
        ["bash", RECIPES / "translate_live.sh", "eyas"],
        input="I am here.\nGo away.\n",
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == [alone(model, "I am here."), alone(model, "Go away."), ""]


def test_an_unknown_model_is_one_line(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, RECIPES / "translate_live.py", "--model", "nothing"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no model 'nothing'")
    assert "Traceback" not in done.stderr
