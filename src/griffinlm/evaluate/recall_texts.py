"""Synthetic recall in text: for models that read English."""

from typing import NamedTuple

import numpy as np

FIRST = """
    Ada Alan Alice Amy Anna Ben Beth Carl Clara Dan Diana Eli Ella Emma Eric Eva Finn Frank Fred Gina Grace Hugo
    Ida Ivan Jack Jane Jill John Karl Kate Lara Leo Lily Lucy Luke Mara Mark Mary Max Mia Nina Noah Nora Olga Oscar
    Owen Paul Peter Rita Rosa Ruth Sam Sara Sean Tess Theo Tim Tina Tom Vera Walt Will Yara Zoe
"""
LAST = """
    Adams Baker Barnes Bell Bishop Black Brook Brown Burns Carter Clark Cole Cook Cooper Cross Dale Dean Drake
    Fields Fisher Ford Foster Fox Gibson Grant Gray Green Hall Harper Hill Hunt James Jones King Knight Lane Lee
    Marsh Mason Miller Moore Nash North Page Palmer Parker Price Reed Rivers Rose Scott Shaw Smith Stone Taylor
    Turner Wade Walker Ward Webb West White Wood Young
"""
FIRST_NAMES, LAST_NAMES = tuple(FIRST.split()), tuple(LAST.split())

FILLERS = (
    "The sun was warm and the grass was green.",
    "A small bird sat in the tree and sang.",
    "The children went down to the river to play.",
    "An old man walked slowly along the road.",
    "The wind blew the leaves across the yard.",
    "A cat slept by the fire all day long.",
    "The bread was fresh and smelled very good.",
    "They looked at the clouds and laughed.",
)

MOST_ENTRIES = len(FIRST_NAMES) * len(LAST_NAMES)
MOST_FILLERS = 1 << 17
LEAST_ENTRIES = 3


class TextExample(NamedTuple):
    """A question and the text that must follow it."""

    prompt: str
    answer: str


def phonebook(num_entries: int, generator: np.random.Generator) -> TextExample:
    """A book of `num_entries` names and numbers, two of them repeated as examples, and the name of a third.

    The Griffin paper's phonebook, section 6.2: the answer is the number of the name asked for.
    """
    chosen = generator.permutation(MOST_ENTRIES)[:num_entries]
    names = [f"{FIRST_NAMES[c % len(FIRST_NAMES)]} {LAST_NAMES[c // len(FIRST_NAMES)]}" for c in chosen]
    asked = generator.permutation(num_entries)[:LEAST_ENTRIES]
    numbers = [f"{a}-{b}" for a, b in generator.integers([100, 1000], [1000, 10_000], (num_entries, 2))]
    entries = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
    book, examples = "\n".join(entries), "\n".join(entries[index] for index in asked[:-1])
    last = asked[-1]
    return TextExample(
        f"This is a phone book.\n{book}\n\nThese are numbers from the book.\n{examples}\n{names[last]}:",
        f" {numbers[last]}",
    )


def needle(num_fillers: int, generator: np.random.Generator) -> TextExample:
    """One fact at the very beginning, `num_fillers` sentences about other things, and a question after the fact.

    What is asked for is as far away as the text is long, so beyond the window's length attention cannot reach it.
    """
    name, number = generator.choice(FIRST_NAMES), generator.integers(1000, 10_000)
    fillers = [FILLERS[index] for index in generator.integers(len(FILLERS), size=num_fillers)]
    fact = f"The secret number of {name} is"
    return TextExample(" ".join([f"{fact} {number}.", *fillers, fact]), f" {number}")
