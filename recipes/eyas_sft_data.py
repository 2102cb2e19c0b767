"""Writes what eyas is tuned on: conversations by task in WORK/train, requests to check it with in WORK/held_out.

    python recipes/eyas_sft_data.py DATA WORK

DATA holds pretrain/ and sft/. No held-out document of pretraining is in WORK/train; stories and articles of
WORK/held_out are made of those alone, tales, dialogues and sentences of what a hash of the document chooses.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from corpus import documents, held_out_runs, is_held_out, is_trained_on, rows
from eyas_tasks import (
    Row,
    Stories,
    article_questions,
    common_words,
    name_questions,
    opening,
    tale_question,
    translation,
)
from text_rules import normalised, sentences

HELD_OUT_TALES, HELD_OUT_OTHERS = 0.03, 0.01
LONGEST_STORY_CHARACTERS = 1600
LONGEST_ENGLISH_CHARACTERS = 60
MOST_ROWS = {"articles": 6000, "dialogues": 3000}
MOST_HELD_OUT = {
    "stories": 300,
    "sentences": 150,
    "articles": 150,
    "names": 150,
    "dialogues": 150,
    "chat": 40,
    "translation": 400,
}
TASKS = ("stories", "sentences", "tales", "names", "articles", "dialogues", "chat", "translation")

Split = Iterator[tuple[Row, bool]]
"""Rows, each with whether it is held out."""


def story_rows(data: Path) -> Split:
    """Stories and sentences on request, names asked of beginnings; held out are those of the validation file."""
    texts = {out: list(documents(data, "tinystories", held_out=out)) for out in (False, True)}
    stories = Stories(common_words(texts[False]))
    for out, found in texts.items():
        for story in found:
            # The validation file has lost the marks between some stories.
            if (
                len(story) > LONGEST_STORY_CHARACTERS
                or story.count("Once upon a time") > 1
                or len(sentences(story)) < 3
            ):
                continue
            for row in (*stories.requests(story), *stories.sentence_requests(story), *name_questions(story)):
                yield row, out


def article_rows(data: Path) -> Split:
    for article in rows(data / "pretrain" / "wiki_simple.jsonl.xz"):
        for row in article_questions(article["title"], article["text"]):
            yield row, is_held_out(article["text"])


def conversation_rows(data: Path) -> Split:
    """Questions about tales, dialogues about tasks, and some talk."""
    runs = held_out_runs(data)
    for conversation in rows(data / "sft" / "sft_mix.jsonl.xz"):
        source, messages = conversation["source"], conversation["messages"]
        out_of_pretraining = not is_trained_on(messages, runs)
        if source == "fairytaleqa":
            passage = messages[0]["content"].rpartition("\n\nQuestion: ")[0]
            row = tale_question(messages)
            if row is not None:
                yield row, out_of_pretraining or is_held_out(passage, HELD_OUT_TALES)
        elif source in ("sgd", "topical_chat", "dolly_hhrlhf_small", "storybooks"):
            task, document = ("dialogues" if source == "sgd" else "chat"), messages[0]["content"]
            if source == "storybooks":
                document = messages[-1]["content"]
            kept = opening(messages, 8, 1500 if source == "storybooks" else 700)
            if kept:
                row = {"task": task, "messages": kept, "check": {}}
                yield row, out_of_pretraining or is_held_out(document, HELD_OUT_OTHERS)


def translation_rows(data: Path) -> Split:
    """One row for every English sentence that is short enough; all its French ones are references."""
    french = defaultdict(list)
    for pair in rows(data / "sft" / "tatoeba_en_fr.jsonl.xz"):
        french[pair["en"]].append(pair["fr"])
    for english, found in french.items():
        if len(english) <= LONGEST_ENGLISH_CHARACTERS:
            random.Random(english).shuffle(found)
            yield translation(english, found), is_held_out(normalised(english), HELD_OUT_OTHERS)


def split_rows(found: Iterable[tuple[Row, bool]]) -> dict[bool, dict[str, list[Row]]]:
    """Rows by whether they are held out and by task, shuffled and bounded."""
    split = {out: {task: [] for task in TASKS} for out in (False, True)}
    for row, out in found:
        split[out][row["task"]].append(row)
    _leave_out_shared(split)
    for out, most in ((False, MOST_ROWS), (True, MOST_HELD_OUT)):
        for task, of_task in split[out].items():
            random.Random(task).shuffle(of_task)
            del of_task[most.get(task, len(of_task)) :]
    return split


def _leave_out_shared(split: dict[bool, dict[str, list[Row]]]) -> None:
    """Takes training rows away that begin with the very words of a held-out one, as dialogues may."""
    held_out = {row["messages"][0]["content"] for of_task in split[True].values() for row in of_task}
    for of_task in split[False].values():
        of_task[:] = [row for row in of_task if row["messages"][0]["content"] not in held_out]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    data = arguments.data
    split = split_rows(
        pair for part in (story_rows, article_rows, conversation_rows, translation_rows) for pair in part(data)
    )
    for out, by_task in split.items():
        folder = arguments.work / ("held_out" if out else "train")
        folder.mkdir(parents=True, exist_ok=True)
        for task, of_task in by_task.items():
            lines = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in of_task)
            (folder / f"{task}.jsonl").write_text(lines, encoding="utf-8")
            print(f"{folder.name:9} {task:12} {len(of_task):7,} rows {len(lines.encode()):12,} bytes")


if __name__ == "__main__":
    main()
