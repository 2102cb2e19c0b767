"""Translates English lines into French as they are typed, each as soon as it ends.

The instruction is read once, and its state is where every line begins; the words of a line are read as they come, so
that at its end only the last one is left. Nothing is read twice.

    python recipes/translate_live.py [--model MODEL] < english.txt
"""

import argparse
import codecs
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import griffinlm
from griffinlm.cli.output import print_error
from griffinlm.generation.answering import Options
from griffinlm.state import State

INSTRUCTION = "Translate into French: "
ANSWER: Options = {"max_tokens": 80, "temperature": 0.0, "stop": "\n"}


class Place(NamedTuple):
    """Tokens of a document and the state behind them."""

    ids: list[int]
    state: State | None


class Translator:
    """Carries a state along a line while it is typed."""

    def __init__(self, model: griffinlm.LanguageModel) -> None:
        self._model = model
        self._instruction = self._here = Place([], None)
        self.num_read = 0
        """Tokens that the model has read, but for the last one of each prompt and the answers."""
        self.hear("")
        self._instruction = self._here

    def hear(self, words: str) -> None:
        """Reads on to the end of the first words of a line; what follows them begins with a space."""
        # What is certain to be read is what two lines have in common that go on differently.
        pairs = zip(self._ids(f"{words} a"), self._ids(f"{words} b"), strict=False)
        self._here = self._read([one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)])

    def translate(self, line: str) -> Iterator[str]:
        """The translation of a whole line, piece by piece; the next line begins behind the instruction again."""
        ids = self._ids(line)
        before = self._read(ids[:-1])
        self._here = self._instruction
        yield from self._model.stream(ids[-1:], state=before.state, **ANSWER)

    def _ids(self, line: str) -> list[int]:
        content = INSTRUCTION + line.strip()
        return self._model.tokenizer.encode_chat([{"role": "user", "content": content}])

    def _read(self, ids: list[int]) -> Place:
        """The place behind `ids`, reached from here, or from the instruction where a line was not what it seemed."""
        start = next(p for p in (self._here, self._instruction, Place([], None)) if ids[: len(p.ids)] == p.ids)
        unread = ids[len(start.ids) :]
        self.num_read += len(unread)
        return Place(ids, self._model.read(unread, start.state)) if unread else start


def typed(descriptor: int) -> Iterator[str]:
    """Text as it comes in, whatever its amount."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while data := os.read(descriptor, 1 << 16):
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)


def translations(translator: Translator, texts: Iterable[str]) -> Iterator[str]:
    """Pieces of the translations of all lines, a line end behind each. A line of spaces is answered by an empty one."""
    line = ""
    for text in texts:
        *lines, line = (line + text).split("\n")
        for whole in lines:
            yield from _answer(translator, whole)
        if " " in line:
            translator.hear(line.rpartition(" ")[0])
    if line:
        yield from _answer(translator, line)


def _answer(translator: Translator, line: str) -> Iterator[str]:
    if line.strip():
        yield from translator.translate(line)
    yield "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="eyas-it")
    arguments = parser.parse_args()
    try:
        for piece in translations(Translator(griffinlm.load(arguments.model)), typed(sys.stdin.fileno())):
            print(piece, end="", flush=True)
    except griffinlm.GriffinError as error:
        print_error(str(error), error.hint)
        sys.exit(2)


if __name__ == "__main__":
    main()
