"""The library's face: whatever way tokens reach the model, it says the same."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree

import griffinlm
from griffinlm import GriffinError, State
from griffinlm.checkpoint import initial_tensors, open_checkpoint, write_checkpoint, write_quantized
from griffinlm.loading import find_model
from griffinlm.quantization import RECIPES

IDS = [5, 80, 81, 7, 100, 258, 3, 9, 9, 60, 11, 12, 90]


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(tiny_model_directory, request):
    return griffinlm.load(tiny_model_directory, engine=request.param)


@pytest.fixture(scope="module", params=["onnx", "torch"])
def gemma(tmp_path_factory, request):
    config = griffinlm.ModelConfig.preset("tiny-gemma")
    path = tmp_path_factory.mktemp("gemma") / "model"
    write_checkpoint(config, initial_tensors(config, 0), path, "griffinlm")
    return griffinlm.load(path, engine=request.param)


def same(a: State, b: State) -> bool:
    one, other = a.arrays(), b.arrays()
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def close(found, expected) -> None:
    assert_agree(found, expected, "model", "float32", "torch")


def agree(a: State, b: State) -> None:
    for name, values in a.arrays().items():
        close(values, b.arrays()[name])


def test_forward_leaves_the_state_it_is_given(model):
    _, state = model.forward([IDS])
    before = state.copy()
    first, after = model.forward([[1, 2, 3]], state)
    second, again = model.forward([[1, 2, 3]], state)
    assert same(state, before)
    assert same(after, again)
    np.testing.assert_array_equal(first, second)
    assert first.shape == (1, 3, model.config.vocab_size)
    assert first.dtype == np.float32


def test_forward_in_rows_equals_rows_one_by_one(model):
    rows = np.array([IDS, IDS[::-1]])
    together, state = model.forward(rows)
    for i, row in enumerate(rows):
        alone, one = model.forward([row])
        close(together[i : i + 1], alone)
        agree(state.row(i), one)


def test_forward_with_padding_equals_the_row_alone(model):
    tokens = np.array([[0, 0, *IDS], [*IDS, 0, 0]])
    places = np.arange(len(IDS))
    positions = np.array([[-1, -1, *places], [*places, -1, -1]])
    logits, state = model.forward(tokens, positions=positions)
    alone, one = model.forward([IDS])
    close(logits[:1, 2:], alone)
    close(logits[1:, :-2], alone)
    agree(state.row(0), one)
    agree(state.row(1), one)
    last, _ = model.forward(tokens, positions=positions, logits="last")
    close(last[1:], alone[:, -1:])


def test_chunks_equal_the_whole(model, monkeypatch):
    whole, state = model.forward([IDS * 3], logits="last")
    monkeypatch.setattr("griffinlm.language_model.FORWARD_CHUNK_TOKENS", 4)
    chunked, other = model.forward([IDS * 3], logits="last")
    close(chunked, whole)
    agree(other, state)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 3}, {"seed": 3, "top_k": 40, "top_p": 0.9, "temperature": 0.8}]
)
def test_saved_in_the_middle_equals_uninterrupted(model, tmp_path, options):
    whole = model.generate("the cat", max_tokens=40, min_tokens=40, **options)
    first = model.generate("the cat", max_tokens=13, min_tokens=13, **options)
    first.state.save(tmp_path / "s")
    loaded = State.load(tmp_path / "s", model)
    second = model.generate("", state=loaded, max_tokens=27, min_tokens=27, **options)
    assert first.token_ids + second.token_ids == whole.token_ids
    assert (loaded.pending == first.token_ids[-1]).all()
    agree(second.state, whole.state)


@given(data=st.data())
def test_generation_cut_anywhere_equals_uninterrupted(model, data):
    cut = data.draw(st.integers(1, 19))
    seed = data.draw(st.integers(0, 1000))
    whole = model.generate(IDS, max_tokens=20, min_tokens=20, seed=seed)
    first = model.generate(IDS, max_tokens=cut, min_tokens=cut, seed=seed)
    second = model.generate([], state=first.state, max_tokens=20 - cut, min_tokens=20 - cut, seed=seed)
    assert first.token_ids + second.token_ids == whole.token_ids


def test_a_batch_equals_its_prompts_alone(model):
    prompts = ["the cat", "a", "one two three four five six seven"]
    together = model.generate(prompts, max_tokens=15, seed=5)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = model.generate(prompt, max_tokens=15, seed=5)
        assert answer.token_ids == alone.token_ids
        assert answer.text == alone.text
        assert answer.finish_reason == alone.finish_reason
        agree(answer.state, alone.state)


def test_every_row_of_a_batch_stops_at_its_own_end(model):
    prompts = [[5, 6], [7, 8, 9], [200], [31, 32, 33, 34]]
    together = model.generate(prompts, max_tokens=400, seed=1, temperature=3.0)
    lengths = [len(answer.token_ids) for answer in together]
    assert len(set(lengths)) > 1
    for answer in together:
        ended = [token in model.tokenizer.end_ids for token in answer.token_ids]
        assert not any(ended[:-1])
        assert ended[-1] == (answer.finish_reason == "stop")


def test_two_conversations_side_by_side_equal_each_alone(model):
    def turns(prompts):
        states = [None] * len(prompts)
        said = [[] for _ in prompts]
        for turn in range(3):
            for i, prompt in enumerate(prompts):
                answer = model.generate(f"{prompt} {turn}", state=states[i], max_tokens=6, seed=i)
                states[i] = answer.state
                said[i] += answer.token_ids
        return said

    assert turns(["left", "right"]) == [turns(["left"])[0], *[_second(model)]]


def _second(model):
    state, said = None, []
    for turn in range(3):
        answer = model.generate(f"right {turn}", state=state, max_tokens=6, seed=1)
        state = answer.state
        said += answer.token_ids
    return said


def test_a_second_call_equals_the_first(model):
    assert model.generate("a", max_tokens=9, seed=1).token_ids == model.generate("a", max_tokens=9, seed=1).token_ids


def test_streamed_pieces_are_the_text(model):
    whole = model.generate("the", max_tokens=30, seed=2)
    stream = model.stream("the", max_tokens=30, seed=2)
    assert "".join(stream) == whole.text
    assert stream.generation.token_ids == whole.token_ids


def test_a_stop_string_never_shows_and_its_state_goes_on(model):
    whole = model.generate("the", max_tokens=60, min_tokens=60, seed=2)
    stop = whole.text[20:24]
    stopped = model.generate("the", max_tokens=60, min_tokens=60, seed=2, stop=stop)
    assert stopped.finish_reason == "stop"
    assert stopped.text == whole.text[: whole.text.index(stop)]
    assert stopped.token_ids == whole.token_ids[: len(stopped.token_ids)]
    rest = 60 - len(stopped.token_ids)
    goes_on = model.generate("", state=stopped.state, max_tokens=rest, min_tokens=rest, seed=2)
    assert stopped.token_ids + goes_on.token_ids == whole.token_ids


def test_read_then_generate_equals_generate(model):
    ids = model.tokenizer.encode("the cat sat")
    state = model.read([model.tokenizer.bos_id, *ids[:-1]])
    resumed = model.generate([ids[-1]], state=state, max_tokens=12, seed=4)
    assert resumed.token_ids == model.generate("the cat sat", max_tokens=12, seed=4).token_ids


def test_bos_stands_only_where_no_state_is_given(model):
    fresh = model.read("abc")
    num_ids = len(model.tokenizer.encode("abc"))
    assert fresh.num_tokens[0] == num_ids + 1
    assert model.read("abc", fresh).num_tokens[0] == 2 * num_ids + 1


def test_read_consumes_the_pending_token_and_forward_refuses_it(model):
    state = model.generate("a", max_tokens=1, min_tokens=1, seed=0).state
    assert state.pending[0] >= 0
    with pytest.raises(GriffinError, match="pending token"):
        model.forward([[1]], state)
    read = model.read("b", state)
    assert read.pending[0] == -1
    assert read.num_tokens[0] == state.num_tokens[0] + 1 + len(model.tokenizer.encode("b"))


def test_score_is_the_log_softmax_of_forward(model, monkeypatch):
    text = "the cat sat on the mat"
    ids = [model.tokenizer.bos_id, *model.tokenizer.encode(text)]
    logits, _ = model.forward([ids])
    shifted = logits[0].astype(np.float64)
    expected = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    expected = expected[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(model.score(text), expected, atol=1e-4)
    monkeypatch.setattr("griffinlm.language_model.FORWARD_CHUNK_TOKENS", 3)
    np.testing.assert_allclose(model.score(text), expected, atol=1e-4)


def test_log_probabilities_of_an_answer_are_its_score(model):
    answer = model.generate(IDS, max_tokens=8, min_tokens=8, seed=1, log_probabilities=2)
    scores = model.score(IDS + answer.token_ids)[len(IDS) - 1 :]
    assert [entry.token for entry in answer.log_probabilities] == answer.token_ids
    np.testing.assert_allclose([e.log_probability for e in answer.log_probabilities], scores, atol=1e-4)
    assert all(len(entry.alternatives) == 2 for entry in answer.log_probabilities)


def test_the_state_has_the_same_size_at_every_length(model):
    sizes = {model.generate("a", max_tokens=n, min_tokens=n, seed=0).state.nbytes for n in (1, 10, 100)}
    assert sizes == {model.new_state().nbytes}


@pytest.mark.parametrize(
    ("engine", "window_dtype"),
    [("onnx", "float16"), ("onnx", "int8"), ("torch", "float16"), ("torch", "bfloat16")],
)
def test_every_window_type_goes_on_as_uninterrupted(tiny_model_directory, tmp_path, engine, window_dtype):
    model = griffinlm.load(tiny_model_directory, engine=engine, window_dtype=window_dtype)
    whole = model.generate(IDS, max_tokens=30, min_tokens=30, seed=1)
    first = model.generate(IDS, max_tokens=10, min_tokens=10, seed=1)
    first.state.save(tmp_path / "state")
    loaded = State.load(tmp_path / "state", model)
    second = model.generate([], state=loaded, max_tokens=20, min_tokens=20, seed=1)
    assert first.token_ids + second.token_ids == whole.token_ids
    wide = griffinlm.load(tiny_model_directory)
    assert first.state.nbytes < wide.new_state().nbytes
    with pytest.raises(GriffinError, match="window_dtype"):
        State.load(tmp_path / "state", wide)


@pytest.mark.parametrize("window_dtype", ["float32", "float16"])
def test_a_saved_conversation_goes_on_with_the_other_engine(tiny_model_directory, tmp_path, window_dtype):
    models = [griffinlm.load(tiny_model_directory, engine=e, window_dtype=window_dtype) for e in ("onnx", "torch")]
    assert models[0].identity.fingerprint == models[1].identity.fingerprint
    for one, other in (models, models[::-1]):
        whole = one.generate("the cat", max_tokens=40, min_tokens=40, seed=3)
        first = one.generate("the cat", max_tokens=13, min_tokens=13, seed=3)
        first.state.save(tmp_path / "state")
        loaded = State.load(tmp_path / "state", other)
        assert same(loaded, first.state)
        second = other.generate("", state=loaded, max_tokens=27, min_tokens=27, seed=3)
        assert first.token_ids + second.token_ids == whole.token_ids


@pytest.mark.parametrize("engine", ["onnx", "torch"])
def test_a_quantized_directory_runs_and_keeps_its_own_states(tiny_model_directory, tmp_path, engine):
    original = open_checkpoint(tiny_model_directory)
    write_quantized(original, RECIPES["int4"], tmp_path / "int4")
    narrow = griffinlm.load(tmp_path / "int4", engine=engine)
    first = narrow.generate("the cat", max_tokens=10, min_tokens=10, seed=3)
    whole = narrow.generate("the cat", max_tokens=30, min_tokens=30, seed=3)
    first.state.save(tmp_path / "state")
    second = narrow.generate("", state=State.load(tmp_path / "state", narrow), max_tokens=20, min_tokens=20, seed=3)
    assert first.token_ids + second.token_ids == whole.token_ids
    with pytest.raises(GriffinError, match="belongs to another model: weights"):
        State.load(tmp_path / "state", griffinlm.load(tiny_model_directory))


def test_quantized_on_load_equals_the_quantized_directory(tiny_model_directory, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_quantized(open_checkpoint(tiny_model_directory), RECIPES["int8"], tmp_path / "int8")
    stored = griffinlm.load(tmp_path / "int8")
    for _ in range(2):
        quantized = griffinlm.load(tiny_model_directory, weights="int8")
        assert quantized.identity.fingerprint == stored.identity.fingerprint
        np.testing.assert_array_equal(quantized.forward([IDS])[0], stored.forward([IDS])[0])
    for other in ("int4", "float32"):
        with pytest.raises(GriffinError, match=f"weights is '{other}'; .* holds int8-channel"):
            griffinlm.load(tmp_path / "int8", weights=other)


def test_the_weights_that_a_directory_holds_may_be_named():
    bundled = griffinlm.load("eyas-recursive")
    named = griffinlm.load("eyas-recursive", weights="int8")
    assert named.identity.fingerprint == bundled.identity.fingerprint


def test_bfloat16_weights_run_and_keep_their_own_states(tiny_model_directory, model):
    half = griffinlm.load(tiny_model_directory, weights="bfloat16")
    answer = half.generate(IDS, max_tokens=5, min_tokens=5, seed=1)
    assert answer.state.arrays()["layers.0.hidden"].dtype == np.float32
    with pytest.raises(GriffinError, match="belongs to another model"):
        model.read([1], answer.state)


def test_global_attention_takes_a_capacity_and_refuses_to_pass_it(gemma):
    state = gemma.new_state(capacity=4)
    _, state = gemma.forward([[1, 2, 3]], state)
    _, state = gemma.forward([[4]], state)
    with pytest.raises(GriffinError, match="reaches 5 tokens; the state's capacity is 4"):
        gemma.forward([[5]], state)
    with pytest.raises(GriffinError, match="capacity"):
        gemma.new_state()
    assert len(gemma.generate([1, 2], max_tokens=7, seed=0).token_ids) == 7


def test_room_for_more_than_one_answer(gemma):
    whole = gemma.generate([1, 2], max_tokens=12, seed=0)
    first = gemma.generate([1, 2], max_tokens=5, seed=0, capacity=40)
    second = gemma.generate([], state=first.state, max_tokens=7, seed=0)
    assert first.token_ids + second.token_ids == whole.token_ids
    with pytest.raises(GriffinError, match="capacity"):
        gemma.generate([], state=first.state, max_tokens=7, capacity=99)
    with pytest.raises(GriffinError, match="prompt and answer may reach 14 tokens; the capacity is 13"):
        gemma.generate([1, 2], max_tokens=12, capacity=13)


def test_a_fixed_size_state_takes_no_capacity(model):
    with pytest.raises(GriffinError, match="fixed size"):
        model.new_state(capacity=10)


def test_without_a_tokenizer_only_text_complains(gemma):
    assert gemma.generate([1, 2, 3], max_tokens=3, seed=0).text == ""
    for use in (lambda: gemma.generate("a"), lambda: gemma.score("a"), lambda: gemma.tokenizer):
        with pytest.raises(GriffinError, match="no tokenizer"):
            use()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda m: m.forward([1, 2]), "shape"),
        (lambda m: m.forward([[]]), "shape"),
        (lambda m: m.forward([[1.5]]), "whole numbers"),
        (lambda m: m.forward([[-1]]), "token id -1"),
        (lambda m: m.forward([[10_000]]), "token id 10000"),
        (lambda m: m.forward([[1, 2]], positions=[[0, 2]]), "position 2 continues no document; here it must be 1"),
        (lambda m: m.forward([[1]], positions=[[3]]), "position 3"),
        (lambda m: m.forward([[1]], positions=[[-2]]), "below -1"),
        (lambda m: m.forward([[1]], positions=[[0, 1]]), "positions are"),
        (lambda m: m.forward([[1]], logits="some"), "logits is 'some'"),
        (lambda m: m.forward([[1]], m.new_state(rows=2)), "2 rows"),
        (lambda m: m.new_state(2.5), "rows is 2.5; it must be a whole number"),
        (lambda m: m.new_state(10**9), r"a state of 1000000000 rows takes \d+ bytes"),
        (lambda m: m.forward([[1]], "state"), "griffinlm.State"),
        (lambda m: m.generate([]), "prompt 0 is empty"),
        (lambda m: m.generate("", state=m.new_state()), "prompt 0 is empty"),
        (lambda m: m.generate("a", max_tokens=0), "max_tokens is 0"),
        (lambda m: m.generate("a", max_tokens=4, min_tokens=5), "min_tokens is 5; it must be at most max_tokens, 4"),
        (lambda m: m.generate("a", stop=""), None),
        (lambda m: m.generate("a", stop=["x", ""]), "stop is ''"),
        (lambda m: m.generate("a", stop="x\ud800"), "half a surrogate pair"),
        (lambda m: m.generate("a", temperatur=1), "unknown option 'temperatur'"),
        (lambda m: m.generate("a", temperature=-1), "temperature is -1"),
        (lambda m: m.generate([999_999]), "token id 999999"),
        (lambda m: m.generate([1 << 70]), f"token id {1 << 70}"),
        (lambda m: m.generate("a", capacity=9), "capacity is 9"),
        (lambda m: m.generate("a", stop=5), "stop is 5"),
        (lambda m: m.score([1, 999_999]), "token id 999999"),
        (lambda m: m.score([1, -3]), "token id -3"),
        (lambda m: m.forward([[1, 2], [3]]), "different lengths"),
        (lambda m: m.generate([1.5]), "a prompt is list"),
        (lambda m: m.generate(None), "a prompt is NoneType"),
        (lambda m: m.generate(b"abc"), "a prompt is bytes"),
        (lambda m: m.score([5, "a"]), "a prompt is list"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model, arguments, message):
    if message is None:
        arguments(model)
        return
    with pytest.raises(GriffinError, match=message) as caught:
        arguments(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "jax"}, "engine is 'jax'"),
        ({"weights": "int5"}, "weights is 'int5'"),
        ({"weights": 8}, "weights is 8"),
        ({"weights": "int4", "engine": "torch"}, "weights is 'int4'"),
        ({"weights": "bfloat16", "engine": "onnx"}, "weights is 'bfloat16'"),
        ({"window_dtype": "int5"}, "window_dtype is 'int5'"),
        ({"window_dtype": "int8", "engine": "torch"}, "window_dtype is 'int8'"),
        ({"device": "cuda", "engine": "onnx"}, "device is 'cuda'"),
        ({"device": "abacus"}, "device is 'abacus'"),
        ({"threads": 0}, "threads is 0"),
        ({"threads": "2"}, "threads is '2'"),
    ],
)
def test_what_an_engine_does_not_have_is_a_one_line_error(tiny_model_directory, options, message):
    with pytest.raises(GriffinError, match=message) as caught:
        griffinlm.load(tiny_model_directory, **options)
    assert "\n" not in str(caught.value)


def test_an_unknown_model_says_what_to_do():
    with pytest.raises(GriffinError, match="there is no model 'nothing'") as caught:
        griffinlm.load("nothing")
    assert caught.value.hint is not None


def test_a_path_is_never_a_bundled_name(tmp_path, monkeypatch, tiny_model_directory):
    (tmp_path / "eyas").symlink_to(tiny_model_directory)
    monkeypatch.chdir(tmp_path)
    assert find_model(Path("./eyas")) == Path("eyas")
    assert find_model("./eyas") == Path("eyas")
    assert find_model("eyas") != Path("eyas")


def test_a_state_holds_nothing_of_an_earlier_document(model):
    """Also where the new document is shorter than convolution and window: every array is that of a fresh state."""
    for num_new in (1, 2, 3, 20):
        tokens = [*IDS, *range(num_new)]
        positions = [[*range(len(IDS)), *range(num_new)]]
        _, used = model.forward([tokens], positions=positions)
        _, fresh = model.forward([tokens[len(IDS) :]])
        agree(used, fresh)


def test_padding_may_hold_any_id(model):
    logits, state = model.forward([[99_999, 5, -7, 6]], positions=[[-1, 0, -1, 1]])
    expected, one = model.forward([[5, 6]])
    close(logits[:, [1, 3]], expected)
    agree(state, one)


def test_a_state_belongs_to_a_configuration_too(model, tmp_path, tiny_model_directory):
    checkpoint = open_checkpoint(tiny_model_directory)
    config = dataclasses.replace(checkpoint.config, logit_soft_cap=3.0)
    write_checkpoint(config, checkpoint.tensors(), tmp_path / "m", "griffinlm", None, checkpoint.tokenizer_directory)
    other = griffinlm.load(tmp_path / "m")
    model.read("a").save(tmp_path / "s")
    with pytest.raises(GriffinError, match="another model: weights"):
        State.load(tmp_path / "s", other)
    with pytest.raises(GriffinError, match="another model"):
        other.read("b", model.read("a"))


def test_ids_that_the_tokenizer_does_not_have_are_never_chosen(tmp_path, tiny_model_directory):
    checkpoint = open_checkpoint(tiny_model_directory)
    extra = 40
    config = dataclasses.replace(checkpoint.config, vocab_size=checkpoint.config.vocab_size + extra)

    def padded():
        for name, values in checkpoint.tensors():
            yield name, np.concatenate([values, values[:extra]]) if name == "embedding.weight" else values

    write_checkpoint(config, padded(), tmp_path / "m", "griffinlm", None, checkpoint.tokenizer_directory)
    larger = griffinlm.load(tmp_path / "m")
    answer = larger.generate("a", max_tokens=300, min_tokens=300, temperature=50.0, seed=0, repetition_penalty=1.1)
    assert max(answer.token_ids) < larger.tokenizer.vocab_size


def test_numpy_numbers_are_numbers(model):
    plain = model.generate("a", max_tokens=3, seed=1, temperature=0.5)
    given = model.generate("a", max_tokens=np.int64(3), seed=np.int64(1), temperature=np.float32(0.5))
    assert given.token_ids == plain.token_ids
