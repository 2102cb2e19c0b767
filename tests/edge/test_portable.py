"""The graph that gathers embeddings itself computes what the engine does, from its two files alone."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tolerances import assert_agree

from griffinlm.edge import linear, portable
from griffinlm.edge.engine import activation_levels
from griffinlm.state import block_layout

from .models import CONFIGS, LOCAL, RECIPE_OF, engines

NUM_TOKENS = 9


def session_of(checkpoint, folder: Path, window_dtype: str = "float32") -> onnxruntime.InferenceSession:
    portable.write_portable_graph(portable.build_portable_graph(checkpoint, window_dtype), folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(folder / portable.GRAPH_FILE, options)


def feeds(config, tokens: np.ndarray, window_dtype: str = "float32") -> dict[str, np.ndarray]:
    """The inputs for documents that begin here; logits are wanted of all tokens."""
    num_rows, num_tokens = tokens.shape
    arrays = block_layout(config, num_rows, None, window_dtype, "float32")
    return {
        "token_ids": tokens,
        "positions": np.tile(np.arange(num_tokens), (num_rows, 1)),
        "num_before": np.zeros(num_rows, np.int64),
        "logit_index": np.argwhere(np.ones_like(tokens)),
        **{name: np.zeros(spec.shape, spec.dtype) for name, spec in arrays.items()},
    }


def engine_logits(both, tokens: np.ndarray) -> np.ndarray:
    logits = both.executor(len(tokens)).prefill(range(len(tokens)), tokens, None, "all")
    assert logits is not None
    return logits


@pytest.fixture
def same_levels(monkeypatch):
    """Both round activations in the steps of this machine's engine."""
    monkeypatch.setattr(portable, "ACTIVATION_LEVELS", activation_levels())


@pytest.mark.usefixtures("same_levels")
@pytest.mark.parametrize("weights", RECIPE_OF)
@pytest.mark.parametrize("name", LOCAL)
def test_the_graph_of_token_ids_equals_the_engine(name, weights, tmp_path):
    both = engines(CONFIGS[name], weights)
    tokens = both.tokens(2, NUM_TOKENS)
    (logits,) = session_of(both.checkpoint, tmp_path).run(["logits"], feeds(both.config, tokens))
    assert_agree(logits.reshape(2, NUM_TOKENS, -1), engine_logits(both, tokens), *both.row)


@pytest.mark.usefixtures("same_levels")
@pytest.mark.parametrize("weights", ["int8", "int4-block32", "mixed"])
def test_an_embedding_in_parts_equals_a_whole_one(weights, tmp_path, monkeypatch):
    config = CONFIGS["Griffin"]
    config = type(config).from_dict({**config.to_dict(), "vocab_size": 24})
    both = engines(config, weights)
    tokens = np.arange(24)[None]
    whole = engine_logits(both, tokens)
    monkeypatch.setattr(linear, "LARGEST_PART_BYTES", 80)
    session = session_of(both.checkpoint, tmp_path)
    graph = onnx.load(tmp_path / portable.GRAPH_FILE, load_external_data=False).graph
    names = {tensor.name for tensor in graph.initializer}
    assert {"embedding.weight.0", "embedding.weight.1"} <= names
    (logits,) = session.run(["logits"], feeds(config, tokens))
    assert_agree(logits.reshape(whole.shape), whole, *both.row)


def test_the_embedding_is_stored_once(tmp_path):
    both = engines(CONFIGS["Griffin"])
    session_of(both.checkpoint, tmp_path)
    graph = onnx.load(tmp_path / portable.GRAPH_FILE).graph
    large = sum(len(t.raw_data) for t in graph.initializer)
    assert large < 4 * both.config.num_parameters + 4096


@pytest.mark.parametrize("window_dtype", ["float16", "int8"])
def test_padding_may_have_any_id(window_dtype, tmp_path):
    config = CONFIGS["Griffin"]
    both = engines(config, "float32", window_dtype)
    session = session_of(both.checkpoint, tmp_path, window_dtype)
    given = feeds(config, both.tokens(2, NUM_TOKENS), window_dtype)
    given["positions"][1, 4:] = -1
    outputs = [output.name for output in session.get_outputs()]
    names = [name for name in outputs if name.endswith((".hidden.new", ".convolution.new"))]
    first = session.run(names, given)
    given["token_ids"][1, 4:] = 0
    for one, other in zip(first, session.run(names, given), strict=True):
        np.testing.assert_array_equal(one, other)
