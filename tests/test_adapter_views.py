"""A loaded model with adapters: views that share its weights, each with an identity and a beginning of its own."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from adapters import ALPHA, merged, random_factors, write_adapter
from safetensors.numpy import load_file, save_file
from tolerances import assert_agree

import griffinlm
from griffinlm import GriffinError, State
from griffinlm.checkpoint import open_checkpoint, write_checkpoint
from griffinlm.conversation import Conversation
from griffinlm.language_model import LanguageModel
from griffinlm.state.sealed import checksum

IDS = [5, 80, 81, 7, 100, 258, 3, 9, 9, 60]
TEXT = "the hawk and the hill"
GREEDY = {"temperature": 0.0, "max_tokens": 12}


@pytest.fixture(scope="module")
def paths(tiny_model_directory, tmp_path_factory) -> dict[str, Path]:
    """Two low-rank adapters and two tuned states: what BOS leaves, and that with other numbers in the recurrence."""
    folder, base = tmp_path_factory.mktemp("adapters"), griffinlm.load(tiny_model_directory)
    found = {
        name: write_adapter(folder / name, base.config, random_factors(base.config, seed, size=0.2))
        for seed, name in enumerate(("a", "b"))
    }
    assert base.tokenizer.bos_id is not None
    start = base.read([base.tokenizer.bos_id])
    arrays, random = start.arrays(), np.random.default_rng(0)
    for name in [name for name in arrays if name.endswith(".hidden")]:
        arrays[name] = arrays[name] + random.standard_normal(arrays[name].shape).astype(np.float32)
    for name, state in (("untuned", start), ("tuned", State(arrays, base.identity))):
        found[name] = folder / f"{name}.safetensors"
        state.save(found[name])
    return found


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(tiny_model_directory, paths, request) -> LanguageModel:
    return griffinlm.load(tiny_model_directory, engine=request.param, adapters=paths)


def close(found, expected) -> None:
    assert_agree(found, expected, "model, adapter", "float32", "onnx")


def load_merged(source: Path, adapter_seed: int, folder: Path, engine: str) -> LanguageModel:
    checkpoint = open_checkpoint(source)
    read = merged(checkpoint.tensor, random_factors(checkpoint.config, adapter_seed, size=0.2), ALPHA / 2)
    tensors = ((name, read(name)) for name in checkpoint.config.parameter_shapes())
    write_checkpoint(checkpoint.config, tensors, folder / "merged", "griffinlm", None, checkpoint.tokenizer_directory)
    return griffinlm.load(folder / "merged", engine=engine)


def test_view_equals_a_model_of_merged_weights(model, tiny_model_directory, tmp_path):
    """Whatever is asked of it."""
    engine = "onnx" if "Onnx" in type(model.engine).__name__ else "torch"
    whole, view = load_merged(tiny_model_directory, 1, tmp_path, engine), model.with_adapter("b")
    close(view.forward([IDS, IDS[::-1]])[0], whole.forward([IDS, IDS[::-1]])[0])
    close(view.score(TEXT), whole.score(TEXT))
    found, expected = view.read(TEXT).arrays(), whole.read(TEXT).arrays()
    for name, values in expected.items():
        close(found[name], values)
    assert view.generate(TEXT, **GREEDY).text == whole.generate(TEXT, **GREEDY).text
    assert "".join(view.stream(TEXT, **GREEDY)) == whole.generate(TEXT, **GREEDY).text
    assert not np.allclose(view.score(TEXT), model.score(TEXT), atol=1e-2)


def test_several_answers_on_shared_slots_are_all_of_the_adapter(model):
    view = model.with_adapter("a")
    together = view.generate([TEXT, "a griffin"], num_answers=3, seed=3, max_tokens=7)
    for prompt, answers in zip([TEXT, "a griffin"], together, strict=True):
        for index, answer in enumerate(answers):
            assert answer.token_ids == view.generate(prompt, seed=3 + index, max_tokens=7).token_ids


def test_model_itself_computes_the_bits_of_one_loaded_without_adapters(model, tiny_model_directory):
    engine = "onnx" if "Onnx" in type(model.engine).__name__ else "torch"
    plain = griffinlm.load(tiny_model_directory, engine=engine)
    assert model.adapter is None
    assert model.adapter_names == ("a", "b", "untuned", "tuned")
    assert plain.adapter_names == ()
    np.testing.assert_array_equal(model.forward([IDS])[0], plain.forward([IDS])[0])
    assert model.identity.fingerprint == plain.identity.fingerprint
    assert model.initial_state() is None
    assert model.initial_ids == []


def test_views_share_the_engine_and_are_one_for_each_name(model):
    view = model.with_adapter("a")
    assert view.engine is model.engine
    assert view.adapter == "a"
    assert view.adapter_names == model.adapter_names
    assert model.with_adapter("a") is view
    assert model.with_adapter("b").with_adapter("a") is view
    assert view.with_adapter(None) is model
    assert len({model.with_adapter(name).identity.fingerprint for name in (None, *model.adapter_names)}) == 5


def test_state_of_one_adapter_is_refused_by_the_others(model, tmp_path):
    views = [model.with_adapter(name) for name in (None, "a", "tuned")]
    for owner in views:
        state = owner.read(TEXT)
        state.save(tmp_path / "state")
        for other in views:
            if other is owner:
                assert State.load(tmp_path / "state", other).arrays().keys() == state.arrays().keys()
                other.generate("", state=state.with_pending([9]), max_tokens=1)
                continue
            with pytest.raises(GriffinError, match="belongs to another model"):
                other.forward([IDS], state)
            with pytest.raises(GriffinError, match="belongs to another model: adapter"):
                State.load(tmp_path / "state", other)


def test_state_file_of_before_adapters_is_one_without(model, tmp_path):
    """Files without the field hold the fingerprint that their checksum is of."""
    file = tmp_path / "state"
    model.read(TEXT).save(file)
    arrays = load_file(file)
    fingerprint = dataclasses.asdict(model.identity.fingerprint)
    del fingerprint["adapter"]
    record = {"fingerprint": fingerprint, "checksum": checksum(arrays, fingerprint)}
    save_file(arrays, file, {"griffinlm": json.dumps(record)})
    assert State.load(file, model).num_tokens[0] > 1
    with pytest.raises(GriffinError, match="adapter none instead of"):
        State.load(file, model.with_adapter("a"))


def test_untuned_state_equals_the_model_whatever_is_asked(model):
    """With the BOS of a prompt left out, since the state has read it."""
    view, bos = model.with_adapter("untuned"), model.tokenizer.bos_id
    assert view.initial_ids == [bos]
    close(view.forward([IDS, IDS[::-1]])[0], model.forward([[bos, *IDS], [bos, *IDS[::-1]]])[0][:, 1:])
    for prompt in (TEXT, [bos, *IDS]):
        close(view.score(prompt), model.score(prompt))
        for name, values in model.read(prompt).arrays().items():
            close(view.read(prompt).arrays()[name], values)
        for options in (GREEDY, {"seed": 7, "max_tokens": 12, "temperature": 1.3}):
            assert view.generate(prompt, **options).token_ids == model.generate(prompt, **options).token_ids
    assert view.score([bos]).shape == (0,)
    close(view.score(IDS), model.score([bos, *IDS])[1:])


def test_conversation_with_an_untuned_state_equals_one_with_the_model(model):
    said = []
    for speaker in (model, model.with_adapter("untuned")):
        conversation = Conversation(speaker, **GREEDY)
        said.append(["".join(conversation.say(text)) for text in ("the hawk", "the hill", "and they hunt")])
    assert said[0] == said[1]


def test_tuned_state_equals_forward_from_that_state(model, tiny_model_directory, paths):
    view, bos = model.with_adapter("tuned"), model.tokenizer.bos_id
    start = State.load(paths["tuned"], model)
    expected, after = model.forward([IDS], start)
    found, state = view.forward([IDS])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(view.forward([IDS], view.new_state())[0], expected)
    assert view.new_state(3).rows == 3
    assert view.new_state().num_tokens.tolist() == [1]
    for name, values in after.arrays().items():
        np.testing.assert_array_equal(state.arrays()[name], values)
        close(view.read([bos, *IDS]).arrays()[name], values)
    text = model.generate(TEXT, state=start, **GREEDY)
    assert view.generate(TEXT, **GREEDY).token_ids == text.token_ids
    assert view.generate([TEXT] * 2, **GREEDY)[1].token_ids == text.token_ids
    ids = [bos, *model.tokenizer.encode(TEXT)]
    logits, _ = model.forward([ids[1:]], start)
    rest = logits[0] - np.log(np.exp(logits[0].astype(np.float64)).sum(-1, keepdims=True))
    scores = view.score(TEXT)
    close(scores[1:], rest[np.arange(len(ids) - 2), ids[2:]])
    close(scores[:1], model.score(TEXT)[:1])
    assert not np.allclose(found, model.forward([[bos, *IDS]])[0][:, 1:], atol=1e-2)


def test_changing_what_an_initial_state_gave_changes_no_later_beginning(model):
    view = model.with_adapter("tuned")
    for array in view.initial_state().arrays().values():
        array[...] = 0
    assert view.initial_state().num_tokens.tolist() == [1]


def test_prompt_without_a_token_after_bos_is_refused_where_bos_is_read(model):
    with pytest.raises(GriffinError, match="prompt 0 is empty"):
        model.with_adapter("tuned").generate("", max_tokens=1)


def test_unknown_adapter_is_refused(model):
    with pytest.raises(GriffinError, match="there is no adapter 'c'; loaded are a, b, untuned, tuned"):
        model.with_adapter("c")


def refusal(directory: Path, adapters) -> str:
    with pytest.raises(GriffinError) as caught:
        griffinlm.load(directory, adapters=adapters)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_adapters_that_are_none_are_refused(tiny_model_directory, tiny_gemma_directory, paths, tmp_path):
    load, base = tiny_model_directory, griffinlm.load(tiny_model_directory)
    assert "there is no adapter '/nowhere'" in refusal(load, {"a": "/nowhere"})
    assert "an adapter is called 'a b'" in refusal(load, {"a b": paths["a"]})
    assert "an adapter is called ''" in refusal(load, {"": paths["a"]})
    assert "adapters is a list" in refusal(load, [paths["a"]])
    (tmp_path / "a.bin").write_bytes(b"x")
    assert "it must be a directory of PEFT's, or a state" in refusal(load, {"a": tmp_path / "a.bin"})
    assert "is no state file" in refusal(load, {"a": paths["a"] / "adapter_model.safetensors"})
    assert "is no adapter directory" in refusal(load, {"a": load})
    assert "global attention" in refusal(tiny_gemma_directory, {"a": paths["tuned"]})
    for state, found in (
        (base.read(TEXT), "1 rows of"),
        (base.new_state(), "1 rows of 0 tokens"),
        (State.stack([State.load(paths["tuned"], base)] * 2), "2 rows of 1, 1 tokens"),
    ):
        state.save(tmp_path / "state.safetensors")
        assert found in refusal(load, {"a": tmp_path / "state.safetensors"})
    arrays = State.load(paths["tuned"], base).arrays()
    State({**arrays, "layers.0.hidden": arrays["layers.0.hidden"] * np.nan}, base.identity).save(
        tmp_path / "n.safetensors"
    )
    assert "NaN" in refusal(load, {"a": tmp_path / "n.safetensors"})


def test_tuned_state_of_a_model_without_a_begin_token_is_refused(tiny_model_without_tokenizer, tmp_path):
    griffinlm.load(tiny_model_without_tokenizer).read([1]).save(tmp_path / "state.safetensors")
    assert "no tokenizer" in refusal(tiny_model_without_tokenizer, {"a": tmp_path / "state.safetensors"})


def test_tuned_state_of_another_window_is_refused(tiny_model_directory, paths):
    with pytest.raises(GriffinError, match="window_dtype float32 instead of float16"):
        griffinlm.load(tiny_model_directory, window_dtype="float16", adapters={"a": paths["tuned"]})
