"""A continuation's score is that of the whole text read alone, whoever shares its context or its batch."""

import numpy as np
import pytest
from fake_model import fake_model
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_agree

import griffinlm
from griffinlm.errors import GriffinError
from griffinlm.evaluate import continuations
from griffinlm.evaluate.continuations import score_continuations
from griffinlm.language_model import LanguageModel
from griffinlm.state import State

TINY_VOCAB_SIZE = 288
CONTEXTS = ["the hawk and the", "g", "they do not grow and the hill is older than the griffin who hunts over it"]
ENDINGS = [" griffin", " hill they hunt over, and", "x", ""]

tokens = st.lists(st.integers(0, TINY_VOCAB_SIZE - 1), min_size=1, max_size=9)


@pytest.fixture(scope="module", params=["onnx griffin", "torch griffin", "onnx gemma"])
def model(request, tiny_model_directory, tiny_gemma_directory) -> LanguageModel:
    engine, kind = request.param.split()
    return griffinlm.load(tiny_model_directory if kind == "griffin" else tiny_gemma_directory, engine=engine)


@pytest.fixture(scope="module")
def griffin(tiny_model_directory) -> LanguageModel:
    return griffinlm.load(tiny_model_directory)


def engine_of(model) -> str:
    return "torch" if "Torch" in type(model.engine).__name__ else "onnx"


def pairs_of(model) -> list[tuple[list[int], list[int]]]:
    encode, bos_id = model.tokenizer.encode, model.tokenizer.bos_id
    return [([bos_id, *encode(context)], encode(ending)) for context in CONTEXTS for ending in ENDINGS]


def assert_each_is_as_alone(model, pairs, batch_rows):
    found = score_continuations(model, pairs, batch_rows)
    assert len(found) == len(pairs)
    for score, (context, ending) in zip(found, pairs, strict=True):
        alone = model.score([*context, *ending])[len(context) - 1 :]
        assert score.log_probabilities.shape == score.is_best.shape == alone.shape
        assert_agree(score.log_probabilities, alone, "model", "float32", engine_of(model))


@pytest.mark.parametrize("batch_rows", [1, 2, 5, 100])
def test_shared_and_batched_scores_equal_those_of_each_whole_text_alone(model, batch_rows):
    assert_each_is_as_alone(model, pairs_of(model), batch_rows)


@pytest.mark.parametrize("chunk_tokens", [1, 3])
def test_chunks_of_contexts_and_continuations_change_nothing(model, monkeypatch, chunk_tokens):
    monkeypatch.setattr(continuations, "FORWARD_CHUNK_TOKENS", chunk_tokens)
    monkeypatch.setattr(continuations, "SCORED_LOGITS_AT_MOST", chunk_tokens * 4 * TINY_VOCAB_SIZE)
    assert_each_is_as_alone(model, pairs_of(model), 4)


@given(st.lists(st.tuples(tokens, st.lists(st.integers(0, TINY_VOCAB_SIZE - 1), max_size=5)), max_size=5))
def test_any_pairs_of_ids_score_as_alone(griffin, pairs):
    assert_each_is_as_alone(griffin, pairs, 3)


def test_scores_after_a_tuned_state_equal_those_of_each_whole_text_alone(tiny_model_directory, tmp_path):
    base = griffinlm.load(tiny_model_directory)
    state = base.read([base.tokenizer.bos_id])
    random = np.random.default_rng(0)
    arrays = {
        name: random.standard_normal(array.shape).astype(array.dtype) if name.endswith(".hidden") else array
        for name, array in state.arrays().items()
    }
    State(arrays, base.identity).save(tmp_path / "tuned.safetensors")
    loaded = griffinlm.load(tiny_model_directory, adapters={"tuned": tmp_path / "tuned.safetensors"})
    tuned, pairs = loaded.with_adapter("tuned"), pairs_of(base)
    assert_each_is_as_alone(tuned, pairs, 5)
    scores, untuned = score_continuations(tuned, pairs), score_continuations(base, pairs)
    assert np.abs(scores[0].log_probabilities - untuned[0].log_probabilities).max() > 0.01
    with pytest.raises(GriffinError, match="BOS alone"):
        score_continuations(tuned, [([base.tokenizer.bos_id], [5])])


def test_what_the_model_writes_at_temperature_0_is_its_best_and_nothing_else_is(model):
    context = [model.tokenizer.bos_id, *model.tokenizer.encode(CONTEXTS[0])]
    written = model.generate(context, max_tokens=6, temperature=0).token_ids
    other = [*written[:-1], (written[-1] + 1) % TINY_VOCAB_SIZE]
    best, worse = score_continuations(model, [(context, written), (context, other)])
    assert best.is_best.all()
    assert worse.is_best.tolist() == [True] * (len(other) - 1) + [False]


def test_a_shared_context_is_read_once_and_a_last_token_never():
    vocab_size, num_read = 7, []

    def next_logits(read):
        return np.zeros(vocab_size, np.float32)

    model = fake_model(vocab_size, next_logits)
    forward = model.forward

    def counting(token_ids, state=None, positions=None, logits="all"):
        num_read.append(int((positions >= 0).sum()))
        return forward(token_ids, state, positions, logits)

    model.forward = counting
    score_continuations(model, [([1, 2, 3], [4]), ([1, 2, 3], [5, 6, 1]), ([1, 2, 3], []), ([2], [3, 3])], 2)
    assert sum(num_read) == (3 + 1) + (0 + 2 + 0 + 1)


@pytest.mark.parametrize(
    ("pair", "message"),
    [(([], [1]), "context 0 is empty"), (([1], [TINY_VOCAB_SIZE]), "token id 288"), (([-1], []), "token id -1")],
)
def test_what_cannot_be_scored_is_refused(tiny_model_without_tokenizer, pair, message):
    with pytest.raises(GriffinError, match=message):
        score_continuations(griffinlm.load(tiny_model_without_tokenizer), [pair])
