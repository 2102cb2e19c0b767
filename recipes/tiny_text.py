"""Text for a model of some thousand parameters: small stories, questions about them, and a tokenizer of their words.

    python recipes/tiny_text.py WORK

WORK gets stories.jsonl, held_out.jsonl, chat.jsonl and tokenizer/. The same bytes every time.
"""

import argparse
import itertools
import json
import random
from collections.abc import Iterable
from pathlib import Path

from train_tokenizer import write_tokenizer

HOMES = {
    "owl": "wood",
    "hawk": "cliff",
    "mouse": "field",
    "frog": "pond",
    "bear": "cave",
    "griffin": "tower",
}
FOODS = ("bread", "berries", "honey", "fish", "seeds")
TIMES = ("One day", "One night", "In spring", "In winter")
NUM_STORIES, NUM_HELD_OUT, NUM_CONVERSATIONS, VOCAB_SIZE = 1200, 100, 400, 512


def story(draw: random.Random) -> str:
    """Who lives where, whom it meets, and what they eat."""
    (one, home), (other, other_home) = draw.sample(sorted(HOMES.items()), 2)
    food, time = draw.choice(FOODS), draw.choice(TIMES)
    return (
        f"The {one} lives in the {home}. {time} the {one} went to the {other_home} and met the {other}. "
        f"They ate {food} and were friends. Then the {one} went home to the {home}."
    )


def conversation(draw: random.Random) -> list[dict[str, str]]:
    """A question about a home, and the answer."""
    animal, home = draw.choice(sorted(HOMES.items()))
    question = draw.choice((f"Where does the {animal} live?", f"What is the home of the {animal}?"))
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": f"The {animal} lives in the {home}."},
    ]


def write_rows(path: Path, field: str, values: Iterable[object]) -> None:
    path.write_text("".join(f"{json.dumps({field: value})}\n" for value in values), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    stories = [story(draw) for _ in range(NUM_STORIES)]
    chat = [conversation(draw) for _ in range(NUM_CONVERSATIONS)]
    write_rows(work / "stories.jsonl", "text", stories[NUM_HELD_OUT:])
    write_rows(work / "held_out.jsonl", "text", stories[:NUM_HELD_OUT])
    write_rows(work / "chat.jsonl", "messages", chat)
    spoken = (message["content"] for messages in chat for message in messages)
    write_tokenizer(itertools.chain(stories, spoken), work / "tokenizer", VOCAB_SIZE)


if __name__ == "__main__":
    main()
