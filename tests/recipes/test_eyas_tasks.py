"""Requests made by rule have the answers that their checks ask for; the checks tell right from wrong."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

import eyas_tasks
from text_rules import missing_words, normalised, sentences, stands_in

STORY = (
    'Once upon a time, there was a little girl named Mia. She had a red kite. "Look, Mia!" said her brother.\n'
    "The kite flew over the garden. A wind came. Then Mia ran and ran until the kite landed in a puddle. She laughed."
)
ARTICLE = (
    "Ada Vale (12 May 1820 \u2013 3 June 1881) was a British painter known for her pictures of ships. She lived in "
    "Hull. Her father was a sailor.\nWorks.\nNothing of it matters."
)


def test_sentences_are_the_text_cut_behind_their_marks():
    assert sentences(STORY)[2:4] == ['"Look, Mia!"', "said her brother."]
    assert "".join(STORY.split()) == "".join("".join(sentences(STORY)).split())
    assert sentences("It cost 3.50 pounds. And then") == ["It cost 3.50 pounds.", "And then"]


def test_words_are_used_only_in_just_that_form():
    assert missing_words(["Kite", "land", "puddle"], STORY) == ["land"]


def test_an_answer_stands_in_a_passage_word_for_word():
    assert stands_in("A Red kite!", STORY)
    assert not stands_in("a red kit", STORY)
    assert not stands_in("?", STORY)
    assert normalised("The  Red, kite.") == "red kite"


def test_stories_obey_their_own_requests():
    rows = list(eyas_tasks.Stories({"there", "little"}).requests(STORY))
    assert len(rows) == 3
    for row in rows:
        request, text = (message["content"] for message in row["messages"])
        check = row["check"]
        assert not missing_words(check["words"], text)
        assert all(word in request for word in check["words"])
        assert check["name"] is None or (check["name"] in text and check["name"] in request)
        assert check["at_most_sentences"] is None or len(sentences(text)) <= check["at_most_sentences"]
        assert check["num_sentences"] is None or len(sentences(text)) == check["num_sentences"]
    assert rows == list(eyas_tasks.Stories({"there", "little"}).requests(STORY)), "the same story, other requests"


def test_a_sentence_on_request_has_the_words_and_stands_in_the_story():
    rows = list(eyas_tasks.Stories({"there", "little"}).sentence_requests(STORY))
    assert rows
    for row in rows:
        request, answer = (message["content"] for message in row["messages"])
        assert answer in sentences(STORY)
        assert not missing_words(row["check"]["words"], answer)
        assert all(word in request for word in row["check"]["words"])


def test_questions_have_answers_that_stand_in_their_passages():
    found = [*eyas_tasks.name_questions(STORY), *eyas_tasks.article_questions("Ada Vale", ARTICLE)]
    messages = [
        {"role": "user", "content": f"{STORY}\n\nQuestion: What flew?"},
        {"role": "assistant", "content": "Kite"},
    ]
    tale = eyas_tasks.tale_question(messages)
    assert tale is not None
    for row in [*found, tale]:
        assert stands_in(row["check"]["references"][0], row["check"]["passage"])
        assert row["messages"][0]["content"].startswith(row["check"]["passage"])
        assert row["messages"][1]["content"] == row["check"]["references"][0]
    asked = {row["messages"][0]["content"].rpartition("Question: ")[2]: row["messages"][1]["content"] for row in found}
    assert asked == {
        "What is the girl called?": "Mia",
        "Who was Ada Vale?": "a British painter known for her pictures of ships",
        "When was Ada Vale born?": "12 May 1820",
        "When did Ada Vale die?": "3 June 1881",
    }


def test_a_question_answered_in_other_words_is_left_out():
    messages = [
        {"role": "user", "content": f"{STORY}\n\nQuestion: How did Mia feel?"},
        {"role": "assistant", "content": "Happy"},
    ]
    assert eyas_tasks.tale_question(messages) is None


def test_an_opening_ends_with_an_answer():
    messages = [{"role": role, "content": "x" * 10} for role in ("user", "assistant") * 3]
    assert len(eyas_tasks.opening(messages, 5, 1000)) == 4
    assert len(eyas_tasks.opening(messages, 6, 35)) == 2
    assert eyas_tasks.opening(messages, 6, 15) == []


def test_checks_tell_right_answers_from_wrong_ones():
    checks = pytest.importorskip("eyas_checks", reason="needs the extras train and evaluate")
    requests = list(eyas_tasks.Stories(set()).requests(STORY))
    right = checks.check_stories(requests, [row["messages"][1]["content"] for row in requests])
    assert right["all_obeyed"]["share"] == 1.0
    assert checks.check_stories(requests, ["A cat. It sat."] * 3)["all_obeyed"]["share"] == 0.0
    questions = list(eyas_tasks.article_questions("Ada Vale", ARTICLE))
    assert checks.check_questions(questions, ["a British painter"] * 3) == {
        "in_passage": checks.share([True] * 3),
        "equal": checks.share([False] * 3),
    }


def test_chrf_takes_the_nearest_of_all_references():
    checks = pytest.importorskip("eyas_checks", reason="needs the extras train and evaluate")
    requests = [
        eyas_tasks.translation("Go away.", ["Va-t'en.", "Partez."]),
        eyas_tasks.translation("I see a cat.", ["Je vois un chat."]),
    ]
    found = checks.check_translations(requests, ["Partez.", "Je vois un chat."])
    assert found["chrf"] == 100.0
    assert found["equal"]["share"] == 1.0
    assert found["chrf_of_copying"] < 40


def test_the_interval_is_wilsons():
    checks = pytest.importorskip("eyas_checks", reason="needs the extras train and evaluate")
    assert checks.interval(45, 50) == pytest.approx((0.7864, 0.9565), abs=5e-4)
    assert checks.interval(0, 10)[0] == 0.0
