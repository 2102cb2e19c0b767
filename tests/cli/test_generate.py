"""griffin generate: the text alone on standard output, and states in files that lose nothing."""

import itertools
import json
import signal

import pytest

import griffinlm
from griffinlm.language_model import Stream

OPTIONS = ("--max-tokens", "12", "--temperature", "0")


@pytest.fixture
def generate(griffin, tiny_model_directory):
    def run(*arguments: object, stdin: bytes = b"", model: object = tiny_model_directory):
        return griffin("generate", *arguments, "--model", model, stdin=stdin)

    return run


def test_text_is_that_of_the_library_and_nothing_else_is_printed(generate, tiny_model_directory):
    options = {"max_tokens": 30, "temperature": 0.7, "top_k": 40, "top_p": 0.9, "min_p": 0.01, "seed": 3}
    options |= {"min_tokens": 4, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    expected = griffinlm.load(tiny_model_directory).generate("the hawk", **options)
    given = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert generate("the hawk", *given) == (0, expected.text, "")


def test_json_is_one_object_with_the_same_answer(generate):
    plain = generate("the hawk", *OPTIONS)
    run = generate("the hawk", *OPTIONS, "--json")
    assert run.err == ""
    assert run.json.keys() == {"text", "token_ids", "finish_reason", "num_prompt_tokens"}
    assert run.json["text"] == plain.out
    assert len(run.json["token_ids"]) == 12
    assert run.json["finish_reason"] == "length"
    assert generate("the hawk", *OPTIONS, "--seed", "5", "--json").json["seed"] == 5


def test_json_tells_the_seed_that_was_drawn(generate):
    drawn = generate("the hawk", "--max-tokens", "8", "--json").json
    again = generate("the hawk", "--max-tokens", "8", "--seed", str(drawn["seed"]), "--json").json
    assert again == drawn


def test_num_prompt_tokens_counts_the_begin_token(generate, tiny_model_directory):
    tokenizer = griffinlm.Tokenizer.from_directory(tiny_model_directory)
    run = generate("the hawk", *OPTIONS, "--json")
    assert run.json["num_prompt_tokens"] == 1 + len(tokenizer.encode("the hawk"))


def test_a_dash_reads_standard_input(generate):
    text = "the hawk\r\nund die Möwe\n"
    assert generate("-", *OPTIONS, stdin=text.encode()) == generate(text, *OPTIONS)


def test_a_prompt_after_two_dashes_may_begin_with_one(griffin, generate, tiny_model_directory):
    run = griffin("generate", "--model", tiny_model_directory, *OPTIONS, "--", "-5 degrees")
    assert run == generate("-", *OPTIONS, stdin=b"-5 degrees")
    assert run.status == 0


def test_control_tokens_in_a_prompt_are_plain_text(generate, tiny_model_directory):
    tokenizer = griffinlm.Tokenizer.from_directory(tiny_model_directory)
    run = generate("<end_of_turn>", *OPTIONS, "--json")
    assert run.json["num_prompt_tokens"] == 1 + len(tokenizer.encode("<end_of_turn>")) > 2


def test_an_empty_prompt_begins_a_document(generate):
    run = generate("", *OPTIONS, "--json")
    assert run.json["num_prompt_tokens"] == 1
    assert generate("-", *OPTIONS, "--json") == run


def test_a_stop_string_is_not_printed(generate):
    text = generate("the hawk", *OPTIONS).out
    stop = text[3:5]
    run = generate("the hawk", *OPTIONS, "--stop", stop, "--stop", "never", "--json")
    assert run.json["text"] == text[: text.index(stop)]
    assert run.json["finish_reason"] == "stop"


@pytest.mark.parametrize("options", [("--temperature", "0"), ("--seed", "11"), ("--seed", "4", "--top-k", "9")])
def test_state_in_a_file_continues_as_if_uninterrupted(generate, tmp_path, options):
    whole = generate("the hawk", "--max-tokens", "25", *options, "--json").json
    first = generate("the hawk", "--max-tokens", "10", *options, "--json", "--state-out", tmp_path / "one").json
    second = generate(
        "", "--max-tokens", "15", *options, "--json", "--state-in", tmp_path / "one", "--state-out", tmp_path / "two"
    ).json
    assert first["token_ids"] + second["token_ids"] == whole["token_ids"]
    assert second["num_prompt_tokens"] == 1
    assert (tmp_path / "one").stat().st_size == (tmp_path / "two").stat().st_size


def test_an_interrupted_answer_is_saved_as_far_as_it_was_written(generate, monkeypatch, tmp_path):
    whole = generate("the hawk", "--max-tokens", "40", "--seed", "3").out
    plain_next, num_pieces = Stream.__next__, itertools.count(1)

    def interrupted(stream):
        if next(num_pieces) == 4:
            signal.raise_signal(signal.SIGINT)
        return plain_next(stream)

    monkeypatch.setattr(Stream, "__next__", interrupted)
    before = signal.getsignal(signal.SIGINT)
    first = generate("the hawk", "--max-tokens", "40", "--seed", "3", "--state-out", tmp_path / "cut")
    assert signal.getsignal(signal.SIGINT) is before
    assert (first.status, first.err) == (130, "")
    assert 0 < len(first.out) < len(whole)
    second = generate("", "--max-tokens", "60", "--seed", "3", "--state-in", tmp_path / "cut")
    assert (first.out + second.out).startswith(whole)


def test_a_second_interrupt_ends_without_a_state(generate, monkeypatch, tmp_path):
    def interrupted(stream):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Stream, "__next__", interrupted)
    assert generate("the hawk", *OPTIONS, "--state-out", tmp_path / "cut") == (130, "", "")
    assert list(tmp_path.iterdir()) == []


def test_text_after_a_state_goes_on_where_it_stands(generate, tiny_model_directory, tmp_path):
    model = griffinlm.load(tiny_model_directory)
    first = model.generate("the hawk", max_tokens=6, temperature=0)
    expected = model.generate(" and the hill", state=first.state, max_tokens=6, temperature=0)
    generate("the hawk", "--max-tokens", "6", "--temperature", "0", "--state-out", tmp_path / "state")
    run = generate(
        " and the hill", "--max-tokens", "6", "--temperature", "0", "--state-in", tmp_path / "state", "--json"
    )
    assert run.json["token_ids"] == expected.token_ids


def test_an_answer_follows_a_json_schema(griffin, generate, tmp_path):
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    file.write_text('{"type": "array", "items": {"enum": ["hawk", 7]}, "minItems": 2, "maxItems": 3}')
    for seed in range(5):
        run = generate("the hawk", "--json-schema", file, "--seed", seed, "--temperature", "9", "--json")
        assert run.json["finish_reason"] == "stop"
        assert 2 <= len(json.loads(run.json["text"])) <= 3
        assert set(json.loads(run.json["text"])) <= {"hawk", 7}


@pytest.mark.parametrize("cut", [("--max-tokens", "3"), ("--stop", "hawk")])
def test_json_that_is_cut_off_is_told(generate, tmp_path, cut):
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    file.write_text('{"const": ["a hawk", "a hill"]}')
    assert "before its JSON was whole" in generate("the hawk", "--json-schema", file, *cut).err
    assert "JSON" not in generate("the hawk", "--json-schema", file).err


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "is not JSON"),
        ("[]", "json_schema is list"),
        ("null", "schema.json holds null"),
        ('{"not": {}}', "cannot be followed"),
        ("[" * 9999, "is not JSON"),
        ("\udcff", "is not JSON"),
    ],
)
def test_a_file_without_a_usable_schema_is_refused(griffin, tmp_path, text, fault):
    pytest.importorskip("llguidance")
    file = tmp_path / "schema.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert fault in griffin.fails("generate", "x", "--json-schema", file)
    assert "cannot be read" in griffin.fails("generate", "x", "--json-schema", tmp_path / "nowhere")


def test_global_attention_generates_too(generate, tiny_gemma_directory):
    assert generate("the hawk", *OPTIONS, "--json", model=tiny_gemma_directory).json["finish_reason"] == "length"


def test_input_that_is_no_utf8_is_refused_with_its_place(griffin, tiny_model_directory):
    error = griffin.fails("generate", "-", "--model", tiny_model_directory, stdin=b"good \xff bad")
    assert "0xff" in error
    assert "offset 5" in error
    assert "character 1" in griffin.fails("generate", "a\udcff", "--model", tiny_model_directory)
    assert "--ask is not UTF-8" in griffin.fails("generate", "-", "--ask", "\udcff", "--model", tiny_model_directory)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--model", "nowhere"), "nowhere"),
        (("--model", "a\nb"), "a"),
        (("--engine", "steam"), "steam"),
        (("--weights", "int3"), "int3"),
        (("--window-dtype", "int3"), "int3"),
        (("--device", "moon"), "moon"),
        (("--threads", "0"), "threads is 0"),
        (("--max-tokens", "0"), "max_tokens is 0"),
        (("--min-tokens", "-1"), "min_tokens is -1"),
        (("--temperature", "-1"), "temperature is -1"),
        (("--temperature", "nan"), "temperature is nan"),
        (("--top-k", "0"), "top_k is 0"),
        (("--top-p", "1.5"), "top_p is 1.5"),
        (("--min-p", "-0.1"), "min_p is -0.1"),
        (("--repetition-penalty", "0"), "repetition_penalty is 0"),
        (("--presence-penalty", "inf"), "presence_penalty is inf"),
        (("--frequency-penalty", "nan"), "frequency_penalty is nan"),
        (("--stop", ""), "stop"),
        (("--seed", "-1"), "seed is -1"),
        (("--seed", str(2**64)), "seed"),
        (("--state-in", "nowhere"), "nowhere"),
        (("--state-out", "no/where"), "no/where"),
        (("--state-out", "."), "directory"),
    ],
)
def test_options_out_of_range_are_refused_by_name(griffin, tiny_model_directory, tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    given = options if "--model" in options else (*options, "--model", tiny_model_directory)
    assert named in griffin.fails("generate", "the hawk", *given)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_tokenizer_takes_no_text(griffin, tiny_model_without_tokenizer):
    assert "no tokenizer" in griffin.fails("generate", "the hawk", "--model", tiny_model_without_tokenizer)


def test_a_state_of_another_model_is_refused(griffin, generate, tiny_model_directory, tiny_gemma_directory, tmp_path):
    generate("the hawk", *OPTIONS, "--state-out", tmp_path / "state")
    given = ("generate", "x", "--state-in", tmp_path / "state", "--model")
    assert "another model" in griffin.fails(*given, tiny_gemma_directory)
    assert "precision" in griffin.fails(*given, tiny_model_directory, "--weights", "bfloat16")


def test_a_damaged_state_is_refused(griffin, generate, tiny_model_directory, tmp_path):
    state = tmp_path / "state"
    generate("the hawk", *OPTIONS, "--state-out", state)
    data = bytearray(state.read_bytes())
    data[-1] ^= 1
    state.write_bytes(data)
    assert "damaged" in griffin.fails("generate", "x", "--state-in", state, "--model", tiny_model_directory)


def test_several_answers_are_those_of_the_library(generate, tiny_model_directory):
    expected = griffinlm.load(tiny_model_directory).generate("the hawk", num_answers=3, max_tokens=9, seed=4)
    options = ("-n", "3", "--max-tokens", "9", "--seed", "4")
    assert generate("the hawk", *options) == (0, "".join(f"{answer.text}\n---\n" for answer in expected), "")
    run = generate("the hawk", *options, "--json")
    assert [answer["token_ids"] for answer in run.json["answers"]] == [answer.token_ids for answer in expected]
    alone = generate("the hawk", "--max-tokens", "9", "--seed", "5", "--json").json
    assert run.json["answers"][1] == {name: alone[name] for name in ("text", "token_ids", "finish_reason")}
    assert (run.json["num_prompt_tokens"], run.json["seed"]) == (alone["num_prompt_tokens"], 4)


def test_several_answers_have_no_one_state_to_save(generate, tmp_path):
    run = generate("the hawk", "-n", "2", "--state-out", tmp_path / "state")
    assert run.status == 2
    assert run.err == "error: --state-out saves one answer's state; --num-answers asks for 2\n"
    assert not (tmp_path / "state").exists()


def test_no_answers_are_refused(generate):
    run = generate("the hawk", "--num-answers", "0")
    assert run.status == 2
    assert run.err.startswith("error: ")
