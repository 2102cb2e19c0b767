"""Answers that follow a JSON schema: each parses and validates, cut anywhere it goes on the same."""

import json
import sys

import numpy as np
import pytest
from fake_executor import Clock, FakeExecutor, run
from hypothesis import given
from hypothesis import strategies as st
from text.small_tokenizers import (
    byte_fallback_pipeline,
    byte_level_pipeline,
    sentencepiece_model,
    write_config,
)

import griffinlm
from griffinlm import GriffinError
from griffinlm.generation.candidates import log_softmax
from griffinlm.generation.grammar import (
    MOST_PATTERNS,
    MOST_SCHEMA_BYTES,
    MOST_SCHEMA_LEVELS,
    GrammarError,
    Matcher,
    schema_text,
)
from griffinlm.generation.parameters import SamplingParameters
from griffinlm.generation.request import Request
from griffinlm.generation.sampling import Sampler
from griffinlm.generation.scheduler import Scheduler
from griffinlm.text import Tokenizer

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NUM_ANSWERS = 50


@pytest.fixture(scope="module", params=["byte_level", "byte_fallback", "sentencepiece"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "sentencepiece":
        pytest.importorskip("sentencepiece")
        (directory / "tokenizer.model").write_bytes(sentencepiece_model())
    else:
        pipeline = byte_level_pipeline() if request.param == "byte_level" else byte_fallback_pipeline()
        pipeline.save(str(directory / "tokenizer.json"))
        write_config(directory)
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="module")
def eyas():
    return griffinlm.load("eyas", threads=1)


LEAVES = st.sampled_from(
    [
        {"type": "null"},
        {"type": "boolean"},
        {"type": "integer", "minimum": -50, "maximum": 700},
        {"type": "number", "minimum": 0, "maximum": 9.5},
        {"type": "string", "maxLength": 5},
        {"type": "string", "minLength": 2, "maxLength": 3},
        {"type": "string", "pattern": "^(é|漢){2}[a-c]{1,4}$"},
        {"type": "string", "format": "date"},
        {"enum": ["hawk", "griffin 🐦", "<end_of_turn>", "a\u2581b", 5, None]},
        {"const": {"hill": [1, "ß"]}},
    ]
)


def tables(children: st.SearchStrategy) -> st.SearchStrategy:
    names = st.sampled_from(["a", "the hawk", "ü", "<eos>", 'quote"', "x\ny"])

    def table(properties: dict, num_required: int) -> dict:
        required = list(properties)[:num_required]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}

    return st.builds(table, st.dictionaries(names, children, max_size=4), st.integers(0, 4))


def lists(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(
        lambda items, most: {"type": "array", "items": items, "maxItems": most}, children, st.integers(0, 3)
    )


def choices(children: st.SearchStrategy) -> st.SearchStrategy:
    return st.builds(lambda some: {"anyOf": some}, st.lists(children, min_size=1, max_size=3))


SCHEMAS = st.recursive(LEAVES, lambda children: tables(children) | lists(children) | choices(children), max_leaves=6)


def sampler(schema: dict, tokenizer: Tokenizer, **options) -> Sampler:
    parameters = {name: options.pop(name) for name in list(options) if name in SamplingParameters.__annotations__}
    return Sampler(
        SamplingParameters(**parameters),
        end_ids=tokenizer.end_ids,
        num_choices=tokenizer.vocab_size,
        matcher=Matcher(schema_text(schema), tokenizer),
        **options,
    )


def random_logits(tokenizer: Tokenizer, seed: int, rows: int = 400) -> np.ndarray:
    """Some more columns than the tokenizer has tokens, as a padded vocabulary has."""
    return np.random.default_rng(seed).normal(0, 3, (rows, tokenizer.vocab_size + 7)).astype(np.float32)


def write(chooser: Sampler, tokenizer: Tokenizer, rows: np.ndarray) -> list[int]:
    """Tokens up to the end; the logits must suffice for it."""
    tokens: list[int] = []
    for row in rows:
        tokens.append(chooser.choose(row))
        if tokens[-1] in tokenizer.end_ids or chooser.is_complete:
            return tokens
    pytest.fail(f"no end in {tokenizer.decode(tokens)!r}")


def require_valid(text: str, schema: dict) -> None:
    value = json.loads(text)
    jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


@given(schema=SCHEMAS, seed=st.integers(0, 1000), temperature=st.sampled_from([0.0, 1.0, 30.0]))
def test_every_answer_parses_and_validates(tokenizer, schema, seed, temperature):
    chooser = sampler(schema, tokenizer, seed=seed, temperature=temperature, frequency_penalty=1.0)
    text = tokenizer.decode(write(chooser, tokenizer, random_logits(tokenizer, seed, 2000)))
    require_valid(text, schema)


@given(
    schema=SCHEMAS,
    seed=st.integers(0, 1000),
    cut=st.integers(0, 30),
    penalties=st.sampled_from([{}, {"repetition_penalty": 1.3}, {"presence_penalty": 0.5, "frequency_penalty": 0.7}]),
)
def test_an_answer_cut_anywhere_and_replayed_equals_the_uncut_one(tokenizer, schema, seed, cut, penalties):
    options = {"seed": seed, "temperature": 2.0, "min_tokens": 3, **penalties}
    rows = random_logits(tokenizer, seed, 2000)
    whole = write(sampler(schema, tokenizer, **options), tokenizer, rows)
    cut = min(cut, len(whole) - 1)
    resumed = sampler(schema, tokenizer, **options)
    resumed.replay(whole[:cut])
    assert whole[:cut] + write(resumed, tokenizer, rows[cut:]) == whole


@given(seed=st.integers(0, 1000), cut=st.integers(0, 40))
def test_a_replayed_sampler_without_a_grammar_goes_on_the_same(seed, cut):
    rows = np.random.default_rng(seed).standard_normal((40, 30)).astype(np.float32)
    parameters = SamplingParameters(seed=seed, repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2)
    whole, resumed = (Sampler(parameters, [3, 4], 9, end_ids=[0], min_tokens=20) for _ in range(2))
    tokens = [whole.choose(row) for row in rows]
    resumed.replay(tokens[:cut])
    assert [resumed.choose(row) for row in rows[cut:]] == tokens[cut:]
    assert resumed.seed == seed


@pytest.mark.parametrize(
    "written", ["", "{", '{"name"', '{"name":', '{"name":"a"', '{"name":"a",', '{"name":"a","age":7']
)
def test_no_whitespace_is_allowed_between_the_tokens_of_json(tokenizer, written):
    place = Matcher(schema_text(PERSON), tokenizer)
    for token in tokenizer.encode(written):
        place.accept(token)
    for token in np.flatnonzero(place.allowed()):
        text = tokenizer.token_bytes(int(token))
        assert text
        assert not text[:1].isspace()


def test_only_the_end_is_left_where_the_schema_leaves_no_choice(tokenizer):
    place = Matcher(schema_text({"type": "integer", "minimum": 10, "maximum": 99}), tokenizer)
    for digit in "42":
        assert not place.is_complete
        (token,) = tokenizer.encode(digit)
        place.accept(token)
    assert place.is_complete
    assert set(np.flatnonzero(place.allowed())) == tokenizer.end_ids


def test_an_end_token_is_allowed_exactly_where_the_text_may_end(tokenizer):
    place = Matcher(schema_text({"type": "integer"}), tokenizer)
    ends = list(tokenizer.end_ids)
    assert not place.allowed()[ends].any()
    place.accept(tokenizer.encode("4")[0])
    assert place.allowed()[ends].all()
    assert not place.is_complete


def test_control_tokens_and_ids_past_the_tokenizer_are_never_chosen(tokenizer):
    rows = random_logits(tokenizer, 0)
    rows[:, [tokenizer.bos_id, tokenizer.pad_id, *tokenizer.end_ids]] += 100
    rows[:, tokenizer.vocab_size :] += 100
    tokens = write(sampler(PERSON, tokenizer, seed=1, temperature=5.0), tokenizer, rows)
    require_valid(tokenizer.decode(tokens), PERSON)
    assert not {tokenizer.bos_id, tokenizer.pad_id, *tokenizer.end_ids} & set(tokens)


def test_characters_without_a_token_are_written_in_bytes(tokenizer):
    schema = {"type": "string", "pattern": "^(🐦|龍){3}$"}
    tokens = write(sampler(schema, tokenizer, seed=0, temperature=9.0), tokenizer, random_logits(tokenizer, 0))
    assert len(tokens) > 8
    require_valid(tokenizer.decode(tokens), schema)


@pytest.mark.parametrize("text", ["<end_of_turn><bos>", "a\u2581b", "ß 🐦 \u0000", "é e\u0301"])
def test_text_that_the_schema_forces_is_written_as_it_is(tokenizer, text):
    tokens = write(sampler({"const": {text: text}}, tokenizer, seed=0), tokenizer, random_logits(tokenizer, 0))
    assert json.loads(tokenizer.decode(tokens)) == {text: text}


def test_log_probabilities_are_the_models_own(tokenizer):
    chooser, row = sampler(PERSON, tokenizer, temperature=0, num_alternatives=2), random_logits(tokenizer, 4)[0]
    token = chooser.choose(row)
    assert tokenizer.token_bytes(token) == b"{"
    assert chooser.latest is not None
    assert chooser.latest.log_probability == pytest.approx(float(log_softmax(row)[token]))


def test_a_whole_text_ends_before_min_tokens_and_one_that_may_grow_does_not(tokenizer):
    rows = random_logits(tokenizer, 3)
    tokens = write(sampler({"const": 5}, tokenizer, seed=0, min_tokens=40), tokenizer, rows)
    assert tokenizer.decode(tokens) == "5"
    rows[:, list(tokenizer.end_ids)] += 100
    growing = {"type": "integer", "minimum": 1000}
    assert len(write(sampler(growing, tokenizer, seed=0, min_tokens=6), tokenizer, rows)) == 7


class Fed:
    """A sampler on logits of its own, whatever the executor gives."""

    def __init__(self, chooser: Sampler, rows: np.ndarray) -> None:
        self._chooser, self._rows = chooser, iter(rows)

    @property
    def is_complete(self) -> bool:
        return self._chooser.is_complete

    def choose(self, logits) -> int:
        return self._chooser.choose(next(self._rows))


def scheduled(chooser, tokenizer: Tokenizer, max_tokens: int):
    clock = Clock()
    executor = FakeExecutor(1, clock)
    scheduler = Scheduler(executor, list, clock=clock)
    scheduler.submit(Request([7], chooser, max_tokens, tokenizer.end_ids))
    return run(scheduler), executor


def test_a_row_ends_with_stop_at_its_last_byte_without_another_step(tokenizer):
    chooser = Fed(sampler(PERSON, tokenizer, seed=2, temperature=3.0), random_logits(tokenizer, 2))
    events, executor = scheduled(chooser, tokenizer, 400)
    tokens = [event.token for event in events]
    assert events[-1].finish_reason == "stop"
    assert tokenizer.token_bytes(tokens[-1]).endswith(b"}")
    assert len(executor.steps) == len(tokens) - 1
    require_valid(tokenizer.decode(tokens), PERSON)


def test_a_row_cut_by_max_tokens_has_the_reason_length_unless_it_is_whole(tokenizer):
    rows = random_logits(tokenizer, 2)
    num_tokens = len(write(sampler(PERSON, tokenizer, seed=2), tokenizer, rows))
    for most, reason in ((num_tokens - 1, "length"), (num_tokens, "stop")):
        events, _ = scheduled(Fed(sampler(PERSON, tokenizer, seed=2), rows), tokenizer, most)
        assert (len(events), events[-1].finish_reason) == (most, reason)


def test_work_past_the_limits_ends_the_row_alone_with_its_error(tokenizer):
    chooser = Fed(
        sampler({"items": {"type": "null"}, "type": "array", "minItems": 10**9}, tokenizer, seed=0),
        random_logits(tokenizer, 0),
    )
    events, executor = scheduled(chooser, tokenizer, 400)
    assert events[-1].finish_reason == "error"
    assert isinstance(events[-1].error, GrammarError)
    assert executor.read == {0: []}


def test_tokens_that_do_not_follow_are_refused(tokenizer):
    with pytest.raises(GrammarError, match="cannot be followed"):
        sampler(PERSON, tokenizer).replay(tokenizer.encode("["))


def nested(num_levels: int) -> dict:
    schema: dict = {}
    for _ in range(num_levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ("{}", "json_schema is str; it must be a table"),
        (True, "json_schema is bool"),
        ({"type": "griffin"}, "Invalid type: griffin"),
        ({"not": {}}, "not"),
        ({"uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "feather"}, "feather"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)"}, "look-ahead"),
        ({"$ref": "http://example.com/schema"}, "example.com"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "Unsatisfiable"),
        ({"x-guidance": {"lenient": True}, "not": {}}, "x-guidance"),
        ({"const": float("nan")}, "what JSON does not"),
        ({"const": {1, 2}}, "what JSON does not"),
        ({"const": "\ud800"}, "json_schema cannot be read"),
        ({"const": "x" * MOST_SCHEMA_BYTES}, f"allowed are {MOST_SCHEMA_BYTES}"),
        (nested(MOST_SCHEMA_LEVELS + 1), f"more than {MOST_SCHEMA_LEVELS} levels"),
        (nested(5000), f"more than {MOST_SCHEMA_LEVELS} levels"),
        ({"multipleOf": 100_001}, "allowed are 100000"),
        ({"allOf": [{"pattern": f"a{i}"} for i in range(MOST_PATTERNS + 1)]}, f"allowed are {MOST_PATTERNS}"),
        ({"patternProperties": {f"a{i}": {} for i in range(MOST_PATTERNS + 1)}}, f"allowed are {MOST_PATTERNS}"),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused_in_one_line(schema, fault):
    with pytest.raises(GrammarError) as caught:
        schema_text(schema)
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("json_schema")


def test_schemas_at_the_limits_are_taken():
    schema_text(nested(MOST_SCHEMA_LEVELS - 1))
    schema_text({"anyOf": [{"type": "string", "pattern": f"a{i}"} for i in range(MOST_PATTERNS)]})
    schema_text({"const": "x" * (MOST_SCHEMA_BYTES - 20)})


BOMBS = {
    "patterns that match together": {
        "allOf": [{"type": "string", "pattern": f"^(z|.*y(.*a.{{{i}}}b|.*c.{{{i}}}d))$"} for i in range(8)]
    },
    "a million characters": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "choices multiplied": {"allOf": [{"anyOf": [{"minLength": i}, {"minItems": i}]} for i in range(30)]},
    "a long chain": {
        "$ref": "#/$defs/0",
        "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(999)},
    },
    "itself": {"$ref": "#"},
    "large multiples": {"allOf": [{"type": "integer", "multipleOf": number} for number in (99991, 99989, 99971)]},
    "many names": {"properties": {f"p{i}": {"type": "integer"} for i in range(1500)}},
    "a long constant": {"const": "x" * 50_000},
}


@pytest.mark.parametrize("schema", BOMBS.values(), ids=BOMBS.keys())
def test_schemas_made_to_cost_much_end_in_an_answer_or_an_error(tokenizer, schema):
    try:
        chooser = sampler(schema, tokenizer, seed=0, temperature=5.0)
        for row in random_logits(tokenizer, 0, 100):
            if chooser.choose(row) in tokenizer.end_ids or chooser.is_complete:
                break
    except GrammarError as error:
        assert "\n" not in str(error)


def test_a_tokenizer_that_cannot_write_every_text_is_refused(tmp_path):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(byte_fallback=False, vocab_size=200))
    with pytest.raises(GrammarError, match="a token for every byte of UTF-8"):
        Matcher(schema_text(PERSON), Tokenizer.from_directory(tmp_path))


def test_without_end_tokens_a_text_is_still_complete(tmp_path):
    byte_level_pipeline().save(str(tmp_path / "tokenizer.json"))
    write_config(tmp_path)
    tokenizer = Tokenizer.from_directory(tmp_path)
    tokenizer.end_ids = frozenset()
    tokens = write(sampler(PERSON, tokenizer, seed=0), tokenizer, random_logits(tokenizer, 0))
    require_valid(tokenizer.decode(tokens), PERSON)


def test_a_missing_library_is_named_with_what_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="llguidance library, which is not installed") as caught:
        schema_text({"title": "not checked before"})
    assert caught.value.hint == "pip install 'griffinlm[structured]'"


def test_answers_of_the_bundled_model_validate_whatever_the_seed(eyas):
    schema = {
        "type": "object",
        "properties": {**PERSON["properties"], "tags": {"type": "array", "items": {"enum": ["a", "é"]}, "maxItems": 2}},
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    answers = eyas.generate("A bird: ", json_schema=schema, num_answers=NUM_ANSWERS, seed=0, temperature=4.0)
    for answer in [*answers, eyas.generate("A bird: ", json_schema=schema, temperature=0)]:
        assert answer.finish_reason == "stop"
        require_valid(answer.text, schema)
    assert len({answer.text for answer in answers}) > NUM_ANSWERS // 2


def test_a_stop_string_ends_an_answer_that_is_not_whole(eyas):
    answer = eyas.generate("A bird: ", json_schema=PERSON, stop='"age"', temperature=0)
    assert answer.finish_reason == "stop"
    assert answer.text.endswith('",')


def test_a_schema_needs_a_tokenizer(tiny_model_without_tokenizer):
    with pytest.raises(GriffinError, match="json_schema needs a tokenizer"):
        griffinlm.load(tiny_model_without_tokenizer).generate([5], json_schema=PERSON)
