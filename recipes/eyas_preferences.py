"""Pairs of answers of which one is better, for the reward models of eyas, and requests for its policy.

    python recipes/eyas_preferences.py DATA WORK --policy work/eyas_sft/model

DATA holds pretrain/, sft/ and preference/. Besides pairs of people's and pairs made by damaging what is right, there
are answers that the policy itself gives: of several to one request the one that does best what was asked, by rule,
against the one that does it worst, and some against the right answer. Its faults are those that it can mend. WORK gets
first.jsonl and second.jsonl, two disjoint halves for two reward models, and held_out.jsonl; prompts.jsonl and
held_out_prompts.jsonl for the policy. What the user says first decides where a row goes, so no opening stands on two
sides; a row says which kind of pair it is.
"""

import argparse
import hashlib
import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from corpus import documents, rows
from eyas_rules import merit
from eyas_tasks import FRENCH, Stories, common_words
from text_rules import missing_words, sentences, words

import griffinlm
from griffinlm.train.alignment.rollouts import Rollouts
from griffinlm.train.alignment.rows import parse_prompt

SEED = 0
HELD_OUT_SHARE = 0.1
"""Of the openings."""
MOST_HELPFUL, MOST_STORIES, MOST_TRANSLATIONS = 600, 1500, 1000
OWN_REQUESTS = 1500
"""To which the policy answers: of beginnings of stories, of sentences and of translations each."""
OWN_ANSWERS = 4
OWN_MARGIN = 0.15
"""By which one of the policy's answers must do better than another; 1 is all that was asked."""
RIGHT_SHARE = 0.25
"""Of these requests, those whose right answer is set against one of the policy's."""
MOST_OWN_SENTENCES = 4
MOST_OWN_TOKENS = 64
PROMPTS_AT_ONCE = 16
LONGEST_PAIR_CHARACTERS = 700
"""Of the prompt and the longer answer, so that a small model reads many pairs in minutes."""
PROMPTS_OF_EACH_TASK = 1500
NAME_SHARE = 0.4
"""Of the prompts for stories, those that ask for a name."""


def place(text: str) -> float:
    """From 0 to 1, by the text alone, as in `corpus.is_held_out`."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") / 2**64


def pair(kind: str, prompt: str | list[dict[str, str]], chosen: str, rejected: str) -> dict:
    return {"kind": kind, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def helpful_pairs(data: Path) -> Iterator[dict]:
    """Replies of models of 2021-22 that people compared."""
    roles = {"Human": "user", "Assistant": "assistant"}
    for row in rows(data / "preference" / "hh_rlhf_helpful.jsonl.xz"):
        parts = re.split(r"(?:^|\n\n)(Human|Assistant): ", row["prompt"])[1:]
        turns = zip(parts[::2], parts[1::2], strict=True)
        messages = [{"role": roles[role], "content": text.strip()} for role, text in turns]
        chosen, rejected = row["chosen"].strip(), row["rejected"].strip()
        if all(message["content"] for message in messages) and chosen and rejected and chosen != rejected:
            yield pair("helpful", messages, chosen, rejected)


def story_texts(data: Path) -> list[str]:
    return [text for text in documents(data, "tinystories", held_out=False) if len(sentences(text)) >= 4]


def story_pairs(data: Path, draw: random.Random) -> Iterator[dict]:
    """Whole stories and beginnings of so many sentences, against what is wrong with them in one way.

    Shuffled is as long as the right one, cut off shorter, going in circles mostly longer, the others either.
    """
    texts = story_texts(data)
    stories = Stories(common_words(texts))
    for text in texts:
        for row in stories.requests(text):
            request, answer = (message["content"] for message in row["messages"])
            check, found = row["check"], sentences(answer)
            kinds = ["shuffled", "cut", "circling", "words"] + ["count"] * (check["num_sentences"] is not None)
            kind = draw.choice(kinds)
            if kind == "words":
                wrong = draw.choice(texts)
                wrong = " ".join(sentences(wrong)[: len(found)])
                asked = [*check["words"], *filter(None, [check["name"]])]
                if not missing_words(asked, wrong):
                    continue
            elif kind == "count":
                all_of_it = sentences(text)
                wrong = " ".join(all_of_it[: len(found) + draw.choice([-1, 1, 2])])
            else:
                wrong = DAMAGES[kind](found, draw)
            # The same spaces between sentences, so that these tell nothing.
            right = " ".join(found)
            if wrong and wrong != right:
                yield pair(kind, request, right, wrong)


def shuffled(found: list[str], draw: random.Random) -> str:
    """The end in another order."""
    half = len(found) // 2
    return " ".join([*found[:half], *draw.sample(found[half:], len(found) - half)])


def cut(found: list[str], draw: random.Random) -> str:
    """Ended inside a sentence."""
    last = draw.randrange(len(found) // 2, len(found))
    parts = found[last].split()
    return " ".join([*found[:last], *parts[: draw.randrange(1, max(2, len(parts)))]]).rstrip(".!?")


def circling(found: list[str], draw: random.Random) -> str:
    """The end replaced by one sentence or two again and again."""
    half = max(1, len(found) // 2)
    circle = found[half - 1 : half + draw.randrange(2)]
    return " ".join([*found[:half], *circle * draw.randrange(2, 5)])


DAMAGES = {"shuffled": shuffled, "cut": cut, "circling": circling}


def english_french(data: Path, draw: random.Random) -> list[tuple[str, str]]:
    """Sentences of twelve to sixty characters, each once, with a translation."""
    found = {
        row["en"]: row["fr"] for row in rows(data / "sft" / "tatoeba_en_fr.jsonl.xz") if 12 <= len(row["en"]) <= 60
    }
    return draw.sample(sorted(found.items()), len(found))


def translation_pairs(data: Path, draw: random.Random) -> Iterator[dict]:
    """A translation against that of another sentence with a word in common, against a cut one, and against English."""
    found = english_french(data, draw)
    by_word = defaultdict(list)
    for english, french in found:
        for word in {word for word in words(english) if len(word) > 3}:
            by_word[word].append((english, french))
    for english, french in found[:MOST_TRANSLATIONS]:
        kind = draw.choices(["translation", "half a translation", "copied"], [0.7, 0.15, 0.15])[0]
        parts = french.split()
        if kind == "copied":
            wrong = english
        elif kind == "half a translation":
            wrong = " ".join(parts[: max(1, draw.randrange(len(parts) // 2, len(parts)))])
        else:
            near = [other for word in words(english) for other in by_word[word][:50] if other[1] != french]
            if not near:
                continue
            candidates = draw.sample(near, min(len(near), 8))
            wrong = min(candidates, key=lambda other: abs(len(other[1]) - len(french)))[1]
        if wrong != french:
            yield pair(kind, FRENCH + english, french, wrong)


@dataclass(frozen=True)
class Asked:
    """A request to the policy, its right answer, and how well any answer does what was asked, from 0 to 1."""

    kind: str
    request: str
    right: str
    merit: Callable[[str], float]


def asked_of_policy(data: Path, draw: random.Random) -> Iterator[Asked]:
    """Beginnings of stories, single sentences and translations."""
    texts = story_texts(data)
    stories = Stories(common_words(texts))
    some = draw.sample(texts, len(texts))
    beginnings = (
        row
        for text in some
        for row in stories.requests(text)
        if row["check"]["words"] and (row["check"]["num_sentences"] or MOST_OWN_SENTENCES + 1) <= MOST_OWN_SENTENCES
    )
    lines = (row for text in some for row in stories.sentence_requests(text))
    for kind, found in (("story", beginnings), ("sentence", lines)):
        for row in itertools.islice(found, OWN_REQUESTS):
            request, right = (message["content"] for message in row["messages"])
            yield Asked(kind, request, right, partial(merit, row["check"]))
    for english, french in english_french(data, draw)[:OWN_REQUESTS]:
        yield Asked("translation", FRENCH + english, french, partial(merit, {"reference": french}))


def own_pairs(data: Path, policy: str, draw: random.Random) -> Iterator[dict]:
    """The policy's best answer against its worst, as merit has it, and the right one against one of its own."""
    asked = list(asked_of_policy(data, draw))
    model = griffinlm.load(policy)
    rollouts = Rollouts(model, MOST_OWN_TOKENS, temperature=1.0)
    for start in range(0, len(asked), PROMPTS_AT_ONCE):
        group = asked[start : start + PROMPTS_AT_ONCE]
        prompts = [parse_prompt({"prompt": one.request}, model.tokenizer)[1].tokens for one in group]
        for one, ends in zip(group, rollouts.ends(prompts, OWN_ANSWERS, f"{SEED} {start}"), strict=True):
            # An answer that was cut off would be told by its end alone, and there are such pairs already.
            own = [" ".join(end.text.split()) for end in ends if end.finish_reason == "stop"]
            own, right = sorted(filter(None, own), key=one.merit), " ".join(one.right.split())
            if own and draw.random() < RIGHT_SHARE:
                wrong = draw.choice(own)
                if wrong != right:
                    yield pair(f"right {one.kind}", one.request, right, wrong)
            elif own and one.merit(own[-1]) - one.merit(own[0]) >= OWN_MARGIN:
                yield pair(f"own {one.kind}", one.request, own[-1], own[0])


def all_pairs(data: Path, policy: str) -> list[dict]:
    """In an order of chance that is always the same."""
    draw = random.Random(SEED)
    found = list(own_pairs(data, policy, draw))
    for of_source, most in (
        (helpful_pairs(data), MOST_HELPFUL),
        (story_pairs(data, draw), MOST_STORIES),
        (translation_pairs(data, draw), MOST_TRANSLATIONS),
    ):
        short = [row for row in of_source if num_characters(row) <= LONGEST_PAIR_CHARACTERS]
        found += draw.sample(short, min(most, len(short)))
    return draw.sample(found, len(found))


def num_characters(row: dict) -> int:
    """Of the prompt and the longer answer."""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else "".join(m["content"] for m in row["prompt"])
    return len(prompt) + max(len(row["chosen"]), len(row["rejected"]))


def opening(row: dict) -> str:
    return row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][0]["content"]


def policy_prompts(data: Path, draw: random.Random) -> Iterator[dict]:
    """Beginnings of stories and sentences with words of two stories, which nobody has written yet, and translations.

    A name that must occur is among the `words` of a row.
    """
    texts = story_texts(data)
    stories = Stories(common_words(texts))
    checks = [row["check"] for text in texts for row in stories.requests(text)]
    asked = [check["words"] for check in checks if check["words"]]
    names = [check["name"] for check in checks if check["name"]]
    for _ in range(PROMPTS_OF_EACH_TASK):
        chosen = sorted({draw.choice(draw.choice(asked)) for _ in range(draw.randint(1, 3))})
        name = draw.choice(names) if draw.random() < NAME_SHARE else None
        number = draw.randint(2, 4)
        about = f" about {name}" if name else ""
        uses = f"uses the words: {', '.join(chosen)}"
        request = f"Write the beginning of a story{about} in {number} sentences that {uses}."
        yield {
            "kind": "story",
            "prompt": request,
            "words": [*chosen, *filter(None, [name])],
            "num_sentences": number,
        }
    for _ in range(PROMPTS_OF_EACH_TASK):
        chosen = sorted({draw.choice(draw.choice(asked)) for _ in range(draw.randint(1, 2))})
        request = f"Write a sentence that uses the words: {', '.join(chosen)}."
        yield {"kind": "sentence", "prompt": request, "words": chosen, "num_sentences": 1}
    for english, french in english_french(data, draw)[:PROMPTS_OF_EACH_TASK]:
        yield {"kind": "translation", "prompt": FRENCH + english, "reference": french}


def write(path: Path, found: Iterable[dict]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in found]
    path.write_text("".join(lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--policy", required=True, help="the model whose own answers are compared")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    found = [(place(opening(row)), row) for row in all_pairs(arguments.data, arguments.policy)]
    middle = (1 + HELD_OUT_SHARE) / 2
    write(arguments.work / "first.jsonl", (row for at, row in found if HELD_OUT_SHARE <= at < middle))
    write(arguments.work / "second.jsonl", (row for at, row in found if at >= middle))
    write(arguments.work / "held_out.jsonl", (row for at, row in found if at < HELD_OUT_SHARE))
    draw = random.Random(SEED + 1)
    prompts = list(policy_prompts(arguments.data, draw))
    draw.shuffle(prompts)
    write(arguments.work / "prompts.jsonl", (row for row in prompts if place(opening(row)) >= HELD_OUT_SHARE))
    write(arguments.work / "held_out_prompts.jsonl", (row for row in prompts if place(opening(row)) < HELD_OUT_SHARE))


if __name__ == "__main__":
    main()
