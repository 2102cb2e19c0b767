"""Of a policy's own answers the one that does what was asked is the better one of a pair."""

import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import eyas_preferences
from eyas_preferences import Asked
from eyas_rules import merit, reward

CHECK = {"words": ["kite", "garden"], "num_sentences": 2}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A kite flew. The garden was green.", 1.0),
        ("A kite flew over the garden.", 0.5),
        ("A kite flew. It was red.", 0.75),
        ("It was red.", 0.0),
    ],
)
def test_words_and_length_count_half_each(answer, expected):
    assert merit(CHECK, answer) == expected


def test_a_translation_is_as_good_as_it_is_like_the_right_one():
    right = "Où est la gare ?"
    row = {"reference": right}
    assert merit(row, right) == pytest.approx(1)
    assert merit(row, "Where is it?") < merit(row, "Où est le chat ?") < 1


def test_a_policy_is_not_paid_for_what_follows_a_translation():
    row, right = {"reference": "Où est la gare ?"}, "Où est la gare ?"
    longer = f"{right} Je ne sais pas où elle est."
    assert reward(row, right) == pytest.approx(1)
    assert reward(row, longer) < merit(row, longer) - 0.1
    assert reward(CHECK, "A kite flew. It was red.") == 0.75


def test_prompts_ask_for_words_names_and_lengths_that_a_rule_can_check(monkeypatch):
    story = "Tom had a kite. One day Tom ran to the garden. The kite flew over the wall. Then Tom was very happy."
    monkeypatch.setattr(eyas_preferences, "story_texts", lambda data: [f"{story} {place}." for place in range(20)])
    monkeypatch.setattr(eyas_preferences, "common_words", lambda texts: set())
    monkeypatch.setattr(eyas_preferences, "english_french", lambda data, draw: [("Hello.", "Bonjour.")])
    prompts = list(eyas_preferences.policy_prompts(Path(), random.Random(0)))
    stories = [row for row in prompts if row["kind"] == "story"]
    named = [row for row in stories if "about Tom" in row["prompt"]]
    assert 0.3 < len(named) / len(stories) < 0.5
    assert all("Tom" in row["words"] for row in named)
    assert all(word in row["prompt"] for row in prompts for word in row.get("words", ()))
    assert all(f"in {row['num_sentences']} sentences" in row["prompt"] for row in stories)
    assert [row["reference"] for row in prompts if row["kind"] == "translation"] == ["Bonjour."]


@pytest.mark.parametrize("right_share", [0.0, 1.0])
def test_pairs_are_made_of_answers_that_ended(monkeypatch, right_share):
    def ends(prompts, num_answers, seed):
        said = [("A kite in a garden.", "stop"), ("A dog ran.", "stop"), ("A kite", "length"), ("A kite.", "stop")]
        same = [("A dog.", "stop")] * 4
        return [
            [SimpleNamespace(text=text, finish_reason=reason) for text, reason in of_one] for of_one in (said, same)
        ]

    asked = [
        Asked("sentence", "Write it.", "My kite is in the garden.", lambda text: merit(CHECK, text)) for _ in range(2)
    ]
    monkeypatch.setattr(eyas_preferences, "asked_of_policy", lambda data, draw: asked)
    monkeypatch.setattr(eyas_preferences, "Rollouts", lambda *args, **options: SimpleNamespace(ends=ends))
    monkeypatch.setattr(eyas_preferences, "RIGHT_SHARE", right_share)
    pairs = list(eyas_preferences.own_pairs(Path(), "eyas", random.Random(0)))
    if right_share:
        assert [pair["kind"] for pair in pairs] == ["right sentence"] * 2
        assert all(pair["chosen"] == asked[0].right and pair["rejected"] != "A kite" for pair in pairs)
    else:
        (pair,) = pairs
        assert pair["kind"] == "own sentence"
        assert (pair["chosen"], pair["rejected"]) == ("A kite in a garden.", "A dog ran.")


@pytest.mark.parametrize("damage", eyas_preferences.DAMAGES.values(), ids=eyas_preferences.DAMAGES)
def test_a_damage_changes_an_answer(damage):
    found = ["A kite flew.", "It was red.", "A dog ran.", "All laughed.", "Then they slept."]
    assert any(damage(found, random.Random(seed)) != " ".join(found) for seed in range(4))
