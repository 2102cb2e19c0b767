"""What small animals eat, for a model of some thousand parameters, and somebody who likes to hear of honey.

    python recipes/tiny_preferences.py WORK

WORK gets meals.jsonl (conversations), pairs.jsonl (two answers, the better one named) and questions.jsonl. The same
bytes every time.
"""

import argparse
import json
import random
from pathlib import Path

from tiny_text import FOODS, HOMES, TIMES, write_rows

LIKED = "honey"
NUM_CONVERSATIONS, NUM_PAIRS = 600, 400


def questions() -> list[str]:
    """Of every animal at every time, in two forms."""
    forms = ("{time} the {animal} ate. What did it eat?", "{time} the {animal} was in the {home}. What did it eat?")
    return [
        form.format(time=time, animal=animal, home=home)
        for form in forms
        for time in TIMES
        for animal, home in sorted(HOMES.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("work", type=Path)
    work, draw = parser.parse_args().work, random.Random(0)

    def answer(food: str) -> str:
        return f"It ate {food}."

    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    asked = [draw.choice(questions()) for _ in range(NUM_CONVERSATIONS)]
    meals = [[turn("user", question), turn("assistant", answer(draw.choice(FOODS)))] for question in asked]
    write_rows(work / "meals.jsonl", "messages", meals)
    others = [food for food in FOODS if food != LIKED]
    pairs = [
        {"prompt": draw.choice(questions()), "chosen": answer(LIKED), "rejected": answer(draw.choice(others))}
        for _ in range(NUM_PAIRS)
    ]
    (work / "pairs.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    write_rows(work / "questions.jsonl", "prompt", questions())


if __name__ == "__main__":
    main()
