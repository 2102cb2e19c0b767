"""`--adapter` computes with what the path holds; a path that holds nothing of the kind is refused in one line."""

import pytest
from adapters import random_factors, write_adapter

import griffinlm

ANSWER = ("--max-tokens", 12, "--temperature", 0)


@pytest.fixture(scope="module")
def adapter(tiny_model_directory, tmp_path_factory):
    config = griffinlm.load(tiny_model_directory).config
    return write_adapter(tmp_path_factory.mktemp("adapters") / "a", config, random_factors(config, 0))


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_generate_with_an_adapter_says_what_the_library_says(griffin, tiny_model_directory, adapter, engine):
    line = ("generate", "the hawk", "--model", tiny_model_directory, "--engine", engine, *ANSWER)
    model = griffinlm.load(tiny_model_directory, engine=engine, adapters={"a": adapter})
    expected = model.with_adapter("a").generate("the hawk", max_tokens=12, temperature=0.0)
    found = griffin(*line, "--adapter", adapter, "--json").json
    assert found["token_ids"] == expected.token_ids
    assert found["token_ids"] != griffin(*line, "--json").json["token_ids"]


def test_tuned_state_is_where_an_answer_begins(griffin, tiny_model_directory, tmp_path):
    """That of a model itself changes nothing."""
    model = griffinlm.load(tiny_model_directory)
    model.read([model.tokenizer.bos_id]).save(tmp_path / "untuned.safetensors")
    line = ("generate", "the hawk", "--model", tiny_model_directory, *ANSWER, "--json")
    assert griffin(*line, "--adapter", tmp_path / "untuned.safetensors").json == griffin(*line).json


def test_chat_and_evaluate_take_an_adapter(griffin, tiny_model_directory, adapter, tmp_path):
    chat = ("chat", "--model", tiny_model_directory, *ANSWER)
    with_adapter, without = (griffin(*chat, *more, stdin=b"the hawk\n") for more in (("--adapter", adapter), ()))
    assert with_adapter.status == without.status == 0
    assert with_adapter.out != without.out
    (tmp_path / "a.txt").write_text("the hawk and the hill")
    evaluate = ("evaluate", tiny_model_directory, "--text", tmp_path / "a.txt", "--json")
    figures = [griffin(*evaluate, *more).json["bits_per_byte"] for more in (("--adapter", adapter), ())]
    assert figures[0] != figures[1]


def test_saved_state_goes_on_under_its_adapter_alone(griffin, tiny_model_directory, adapter, tmp_path):
    line, state = ("generate", "--model", tiny_model_directory, *ANSWER), tmp_path / "state"
    assert griffin(*line, "the hawk", "--adapter", adapter, "--state-out", state).status == 0
    assert griffin(*line, " and", "--adapter", adapter, "--state-in", state).status == 0
    assert "belongs to another model: adapter" in griffin.fails(*line, " and", "--state-in", state)


def test_paths_that_hold_no_adapter_are_refused(griffin, tiny_model_directory, adapter, tmp_path):
    line = ("generate", "the hawk", "--model", tiny_model_directory, "--adapter")
    assert "there is no adapter" in griffin.fails(*line, tmp_path / "nowhere")
    assert "is no adapter directory" in griffin.fails(*line, tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04")
    assert "a pickle" in griffin.fails(*line, tmp_path)
    assert "is no state file" in griffin.fails(*line, adapter / "adapter_model.safetensors")
