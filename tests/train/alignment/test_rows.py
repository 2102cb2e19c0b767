"""Preferences and prompts as tokens: what the chat template writes, split by what the user says first."""

import json
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from griffinlm.evaluate.documents import DocumentError
from griffinlm.text import Tokenizer
from griffinlm.train.alignment.config import DpoConfig, RewardConfig, RlooConfig
from griffinlm.train.alignment.rows import parse_pair, parse_prompt, read_split
from griffinlm.train.errors import TrainError

from .alignment import Aligned, write_rows


@pytest.fixture
def tokenizer(tiny_tokenizer_directory: Path) -> Tokenizer:
    return Tokenizer.from_directory(tiny_tokenizer_directory)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_a_pair_is_what_the_chat_template_writes_up_to_the_end_of_the_turn(tokenizer: Tokenizer):
    _, pair = parse_pair({"prompt": "over", "chosen": "the hill", "rejected": "no"}, tokenizer)
    assert pair.prompt == tokenizer.encode_chat([user("over")])
    for answer, text in ((pair.chosen, "the hill"), (pair.rejected, "no")):
        whole = tokenizer.encode_chat([user("over"), assistant(text)], add_generation_prompt=False)
        assert (pair.prompt + answer) == whole[: len(pair.prompt + answer)]
        assert tokenizer.decode(answer) == text
        assert answer[-1] in tokenizer.end_ids


def test_text_and_messages_say_the_same(tokenizer: Tokenizer):
    as_text = {"prompt": "over", "chosen": "a", "rejected": "b"}
    as_messages = {"prompt": [user("over")], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert parse_pair(as_text, tokenizer) == parse_pair(as_messages, tokenizer)
    assert parse_prompt(as_text, tokenizer)[1].tokens == parse_pair(as_text, tokenizer)[1].prompt


def test_rows_with_the_same_first_words_stand_on_one_side(run: Aligned, tokenizer: Tokenizer):
    config = run(RewardConfig, "data.held_out_share=0.5")
    split = read_split(config, tokenizer, parse_pair, config.data.row_tokens)
    rows = write_rows(config.sources["rows"].files[0])
    first = {json.dumps(row["prompt"]): parse_pair(row, tokenizer)[0] for row in rows}
    held_out = {tokenizer.decode(pair.prompt) for pair in split.held_out}
    train = {tokenizer.decode(pair.prompt) for pair in split.train}
    assert held_out
    assert train
    again = [{**row, "prompt": [user(first[json.dumps(row["prompt"])]), assistant("x"), user("y")]} for row in rows]
    config.sources["rows"].files[0].write_text("".join(f"{json.dumps(row)}\n" for row in again), encoding="utf-8")
    others = read_split(config, tokenizer, parse_pair, config.data.row_tokens)
    assert (len(others.train), len(others.held_out)) == (len(split.train), len(split.held_out))


def test_rows_longer_than_a_row_are_left_out_and_counted(run: Aligned, tokenizer: Tokenizer):
    config = run(RewardConfig)
    whole = read_split(config, tokenizer, parse_pair, config.data.row_tokens)
    most = sorted(pair.num_tokens for pair in [*whole.train, *whole.held_out])[20]
    cut = read_split(config, tokenizer, parse_pair, most)
    assert max(pair.num_tokens for pair in [*cut.train, *cut.held_out]) <= most
    assert len(cut.train) + len(cut.held_out) + cut.num_left_out == 60
    with pytest.raises(TrainError, match="no row is left to learn from: 0 are held out, 60 are longer than 3 tokens"):
        read_split(config, tokenizer, parse_pair, 3)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("text", "the row is a str; it must be a table"),
        ({"chosen": "a", "rejected": "b"}, '"prompt" is missing; it must be text'),
        ({"prompt": "over", "chosen": "a"}, '"rejected" is missing; it must be text'),
        ({"prompt": "over", "chosen": " ", "rejected": "b"}, '"chosen" is a str; it must be text'),
        ({"prompt": "over", "chosen": "a", "rejected": "a"}, "chosen and rejected are the same"),
        ({"prompt": [assistant("over")], "chosen": "a", "rejected": "b"}, '"prompt" ends with a message of the assis'),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, r'"prompt"\[0\] must be a table with role'),
        ({"prompt": "over", "chosen": [user("a")], "rejected": "b"}, '"chosen" must be one message of the assistant'),
    ],
)
def test_a_row_that_is_no_pair_is_one_error_that_names_it(run: Aligned, tokenizer: Tokenizer, row, told: str):
    config = run(RewardConfig)
    config.sources["rows"].files[0].write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    with pytest.raises(DocumentError, match=rf"rows\.jsonl, line 1: {told}"):
        read_split(config, tokenizer, parse_pair, 100)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        (RewardConfig, ["kl_coefficient=1"], "kl_coefficient is unknown"),
        (DpoConfig, ["kl_coefficient=0.0"], "kl_coefficient is 0.0; it must be 1e-06 to 100"),
        (RlooConfig, [], "reward is missing"),
        (RlooConfig, ["reward=r", "num_answers=3"], r"batch_rows is 4; it must be a multiple of num_answers \(3\)"),
        (RlooConfig, ["reward=r", "rows_per_device=2"], "rows_per_device is 2; it must be a multiple of num_answers"),
        (
            RlooConfig,
            ["reward=r", "max_answer_tokens=120"],
            "max_answer_tokens is 120; it must leave room for a prompt",
        ),
        (RlooConfig, ["reward=r", "max_answer_tokens=9", 'watched={reward="r"}'], "watched.reward is given"),
        (RewardConfig, ["sources={}"], "sources is empty"),
        (RewardConfig, ["epochs=1"], "epochs and steps are given"),
    ],
)
def test_entries_that_cannot_be_are_refused(run: Aligned, kind: type, changes: list[str], told: str):
    with pytest.raises(TrainError, match=told):
        run(kind, *changes)
