"""Tokenizer files as they come: missing, damaged, of another kind. Each fault is one line."""

import copy
import json
import random
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Pipeline
from tokenizers import decoders, models, pre_tokenizers

from griffinlm.text import Tokenizer, TokenizerError, json_backend

from .small_tokenizers import byte_fallback_pipeline, byte_level_pipeline, sentencepiece_model, write_config

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "special", "0"]), inner),
    max_leaves=6,
)
config_fields = st.sampled_from(
    [
        "bos_token",
        "eos_token",
        "chat_template",
        "additional_special_tokens",
        "added_tokens_decoder",
        "extra_special_tokens",
    ]
)


def outcome(directory) -> str:
    """The error's line, or "" where the tokenizer loads and takes a text."""
    line = ""
    try:
        tokenizer = Tokenizer.from_directory(directory)
        tokenizer.decode(tokenizer.encode("a <bos> griffin\n"))
        tokenizer.encode_chat([{"role": "user", "content": "a <bos> griffin\n"}])
    except TokenizerError as fault:
        line = str(fault) or "nothing said"
    assert "\n" not in line
    return line


def mutated_bytes(data: bytes, dice: random.Random) -> bytes:
    """The file with bytes changed, cut out, put in, or its end missing."""
    new = bytearray(data)
    for _ in range(dice.choice([1, 1, 3, 20])):
        at = dice.randrange(len(new) + 1)
        change = dice.randrange(4)
        if change == 0:
            new[at : at + 1] = dice.randbytes(1)
        elif change == 1:
            del new[at : at + dice.randrange(1, 20)]
        elif change == 2:
            new[at:at] = dice.randbytes(3)
        else:
            del new[at:]
    return bytes(new)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) below a JSON value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    assert "tokenizer.json or tokenizer.model" in outcome(tmp_path)
    assert "no tokenizer" in outcome(tmp_path / "nowhere")


def test_tokenizer_json_is_preferred(sentencepiece, byte_level, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((sentencepiece / "tokenizer.model").read_bytes())
    assert Tokenizer.from_directory(tmp_path).digest == Tokenizer.from_directory(sentencepiece).digest
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    assert Tokenizer.from_directory(tmp_path).digest == Tokenizer.from_directory(byte_level).digest


def test_without_sentencepiece_the_error_says_what_to_install(sentencepiece, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(TokenizerError, match="sentencepiece") as raised:
        Tokenizer.from_directory(sentencepiece)
    assert raised.value.hint == "pip install griffinlm[sentencepiece]"


def test_files_that_cannot_be_opened_are_refused(byte_level, tmp_path):
    for name in ("chat_template.jinja", "tokenizer_config.json", "tokenizer.json"):
        for path in byte_level.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()
        assert f"{name} cannot be read" in outcome(tmp_path)
        (tmp_path / name).rmdir()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja"])
@pytest.mark.parametrize("contents", [b"\xff\xfe", b"\xed\xa0\x80", b"\x80{}"])
def test_files_that_are_not_utf8_are_refused(byte_level, tmp_path, name, contents):
    if name != "tokenizer.model":
        (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    (tmp_path / name).write_bytes(contents)
    assert name in outcome(tmp_path)


@pytest.mark.parametrize("contents", ["", "[]", "null", "5", "{", "[" * 100_000, '{"bos_token": 1e999}', "9" * 9999])
def test_a_configuration_that_is_no_table_of_tokens_is_refused(byte_level, tmp_path, contents):
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(contents)
    assert "tokenizer_config.json" in outcome(tmp_path)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"bos_token": 5}, "bos_token is 5"),
        ({"bos_token": ""}, "bos_token is ''"),
        ({"eos_token": {"content": None}}, "eos_token is"),
        ({"pad_token": "[PAD]"}, "lacks: '[PAD]'"),
        ({"bos_token": "\ud800"}, "lacks: '\ufffd'"),
        ({"additional_special_tokens": "<x>"}, "additional_special_tokens is '<x>'"),
        ({"additional_special_tokens": ["<x>"]}, "lacks: '<x>'"),
        ({"added_tokens_decoder": {"3": {"special": True}}}, "added_tokens_decoder is"),
        ({"chat_template": 5}, "chat_template is 5"),
        ({"chat_template": [{"name": "tools", "template": ""}]}, "chat_template is"),
    ],
)
def test_wrong_values_in_the_configuration_are_named(byte_level, tmp_path, config, fault):
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    write_config(tmp_path, **config)
    assert fault in outcome(tmp_path)


def test_tokens_named_as_tables_are_those_named_as_text(byte_level, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    write_config(tmp_path, bos_token={"content": "<bos>", "lstrip": False}, eos_token={"content": "<eos>"})
    assert Tokenizer.from_directory(tmp_path).digest == Tokenizer.from_directory(byte_level).digest


def test_tokens_that_the_configuration_calls_special_are_control_tokens(sentencepiece, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((sentencepiece / "tokenizer.model").read_bytes())
    before = Tokenizer.from_directory(tmp_path)
    (token_id,) = before.encode("<b>")
    tokens = {str(token_id): {"content": "<b>", "special": True}, "9": {"content": "\n\n", "special": False}}
    write_config(tmp_path, added_tokens_decoder=tokens)
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert token_id not in tokenizer.encode("<b>")
    assert tokenizer.decode([*tokenizer.encode("<b>"), token_id]) == "<b>"
    assert tokenizer.encode("\n\n") == before.encode("\n\n")


def test_limits_written_into_a_tokenizer_do_not_cut_text(byte_level, tmp_path):
    pipeline = byte_level_pipeline()
    pipeline.enable_truncation(3)
    pipeline.enable_padding(length=50)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    text = "a little griffin on a hill"
    assert Tokenizer.from_directory(tmp_path).encode(text) == Tokenizer.from_directory(byte_level).encode(text)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda pipeline: setattr(pipeline, "decoder", decoders.WordPiece()), "decoder WordPiece"),
        (lambda pipeline: setattr(pipeline, "model", models.WordLevel({"a": 0}, "a")), "WordLevel model"),
        (lambda pipeline: setattr(pipeline, "pre_tokenizer", pre_tokenizers.ByteLevel()), "put none in front"),
    ],
)
def test_pipelines_of_another_kind_are_refused(tmp_path, change, fault):
    pipeline = byte_level_pipeline()
    change(pipeline)
    pipeline.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerError, match=fault):
        Tokenizer.from_directory(tmp_path)


def test_text_with_bytes_that_byte_level_tokens_lack_is_refused(tmp_path):
    pipeline = Pipeline(models.BPE({"a": 0, "Ġ": 1}, []))
    pipeline.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pipeline.decoder = decoders.ByteLevel()
    pipeline.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_directory(tmp_path)
    assert tokenizer.encode("a a") == [0, 1, 0]
    with pytest.raises(TokenizerError, match="no token for some of 'ab'"):
        tokenizer.encode("ab")


@pytest.mark.parametrize("options", [{"add_dummy_prefix": True}, {"remove_extra_whitespaces": True}])
def test_sentencepiece_models_that_change_spaces_are_refused(tmp_path, options):
    pytest.importorskip("sentencepiece")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(**options))
    assert "must keep spaces" in outcome(tmp_path)


def test_a_pipeline_that_would_drop_text_is_refused(tmp_path):
    pipeline = byte_fallback_pipeline()
    values = json.loads(pipeline.to_str())
    values["model"] |= {"unk_token": None, "byte_fallback": False}
    Pipeline.from_str(json.dumps(values)).save(str(tmp_path / "tokenizer.json"))
    assert "would lose text" in outcome(tmp_path)


def test_a_panic_of_the_library_is_refused_in_one_line(byte_level, monkeypatch):
    class PanicError(BaseException):
        """Like the library's PanicException, no Exception."""

    def panic(data: bytes) -> None:
        raise PanicError("called `unwrap`\non a `None` value")

    monkeypatch.setattr(json_backend.tokenizers, "Tokenizer", SimpleNamespace(from_buffer=panic))
    assert outcome(byte_level).endswith("cannot be read: called `unwrap` on a `None` value")


@given(seed=st.integers(0, 2**32))
def test_mutated_files_load_or_are_refused_in_one_line(directory, tmp_path_factory, seed):
    dice = random.Random(seed)
    target = tmp_path_factory.mktemp("mutated")
    for path in directory.iterdir():
        (target / path.name).write_bytes(mutated_bytes(path.read_bytes(), dice))
    outcome(target)


@given(seed=st.integers(0, 2**32), value=json_values)
def test_any_value_anywhere_in_tokenizer_json_loads_or_is_refused_in_one_line(
    byte_level, tmp_path_factory, seed, value
):
    values = copy.deepcopy(json.loads((byte_level / "tokenizer.json").read_text()))
    container, key = random.Random(seed).choice(list(places(values)))
    container[key] = value
    target = tmp_path_factory.mktemp("changed")
    (target / "tokenizer.json").write_text(json.dumps(values))
    outcome(target)


@given(config=st.dictionaries(config_fields, json_values, max_size=3))
def test_any_values_in_the_configuration_load_or_are_refused_in_one_line(byte_level, tmp_path_factory, config):
    target = tmp_path_factory.mktemp("configured")
    (target / "tokenizer.json").write_bytes((byte_level / "tokenizer.json").read_bytes())
    (target / "tokenizer_config.json").write_text(json.dumps(config))
    outcome(target)
