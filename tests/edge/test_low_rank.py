"""Low-rank terms in the graph: beside weights of every format, for the rows that are named, at no cost for others."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from griffinlm.checkpoint import Checkpoint
from griffinlm.checkpoint.adapter import LowRank
from griffinlm.edge import engine as engine_module
from griffinlm.edge.engine import activation_levels, build_engine, new_session, require_room
from griffinlm.edge.graph import Graph
from griffinlm.edge.linear import Linears
from griffinlm.edge.low_rank import NO_ADAPTER, adapted_rows, num_bytes
from griffinlm.edge.memory import NotEnoughMemoryError
from griffinlm.edge.model import build_graph

from .models import CONFIGS, RECIPE_OF, config_of, write_model

GRIFFIN = config_of("Griffin", 3)
LINEAR, GATE = "layers.0.mlp.up", "layers.0.recurrent.rg_lru.input_gate"


def term(shape: tuple[int, ...], rank: int, seed: int) -> LowRank:
    random = np.random.default_rng(seed)

    def normal(*size: int) -> np.ndarray:
        return random.standard_normal(size).astype(np.float32)

    if len(shape) == 2:
        return LowRank(normal(rank, shape[1]), normal(shape[0], rank))
    return LowRank(normal(shape[0], rank, shape[1]), normal(shape[0], shape[2], rank))


def added(term: LowRank, x: np.ndarray) -> np.ndarray:
    """up (down x) of rows [..., K] in float64."""
    x = x.astype(np.float64)
    if term.down.ndim == 2:
        return x @ term.down.T @ term.up.T
    blocks = x.reshape(len(x), term.down.shape[0], -1)
    return np.einsum("mhi,hri,hjr->mhj", blocks, term.down, term.up).reshape(len(x), -1)


def product(checkpoint: Checkpoint, name: str, adapters: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What a graph of one linear makes of `x`."""
    graph, shape = Graph(), checkpoint.config.parameter_shapes()[f"{name}.weight"]
    linears = Linears(graph, checkpoint, activation_levels(), adapters)
    num_inputs = inputs["x"].shape[1]
    x = graph.input("x", "float32", ["rows", num_inputs])
    if len(shape) == 2:
        y = linears.linear(x, name, bias=True)
    else:
        y = linears.block_diagonal(x, name, graph.nodes("Split", x, count=shape[0], num_outputs=shape[0], axis=1))
    graph.output("y", y, "float32", ["rows", "outputs"])
    return new_session(graph.build("product"), checkpoint, 1).run(None, inputs)[0]


@pytest.mark.parametrize("name", [LINEAR, GATE])
@pytest.mark.parametrize("weights", sorted(RECIPE_OF))
def test_term_is_added_in_float32_beside_weights_of_every_format(weights, name, tmp_path):
    """Adapters of different ranks, one without this matrix, on rows in no order; the others keep their bits."""
    checkpoint = write_model(GRIFFIN, tmp_path, weights)
    shape = GRIFFIN.parameter_shapes()[f"{name}.weight"]
    adapters = {"a": {f"{name}.weight": term(shape, 2, 0)}, "b": {}, "c": {f"{name}.weight": term(shape, 3, 1)}}
    adapters["b"]["layers.0.mlp.down.weight"] = term(GRIFFIN.parameter_shapes()["layers.0.mlp.down.weight"], 1, 2)
    num_inputs = shape[1] if len(shape) == 2 else shape[0] * shape[1]
    x = np.random.default_rng(3).standard_normal((6, num_inputs)).astype(np.float32)
    of_row = np.array([2, NO_ADAPTER, 0, 1, 2, NO_ADAPTER])
    rows = adapted_rows(of_row, np.ones((6, 1), bool))
    base = product(checkpoint, name, None, {"x": x})
    found = product(checkpoint, name, adapters, {"x": x, **rows._asdict()})
    for row, (place, adapter) in enumerate(zip(of_row, "c-abc-", strict=True)):
        if place == NO_ADAPTER or adapter == "b":
            np.testing.assert_array_equal(found[row], base[row])
        else:
            expected = base[row] + added(adapters[adapter][f"{name}.weight"], x[[row]])[0]
            np.testing.assert_allclose(found[row], expected, rtol=1e-5, atol=1e-5)
            assert not np.allclose(found[row], base[row])


@given(
    st.lists(st.integers(NO_ADAPTER, 3), min_size=1, max_size=5).flatmap(
        lambda adapters: st.tuples(
            st.just(adapters),
            st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=len(adapters), max_size=len(adapters)),
        )
    )
)
def test_groups_name_every_real_token_of_a_row_with_an_adapter_once(case):
    adapters, is_real = np.array(case[0]), np.array(case[1])
    rows = adapted_rows(adapters, is_real)
    expected = {row * 3 + column: adapters[row] for row, column in np.argwhere(is_real) if adapters[row] != NO_ADAPTER}
    flat, length = rows.adapter_rows.reshape(-1), rows.adapter_rows.shape[1]
    found = {
        int(row): int(rows.adapter_ids[place // length])
        for row, place in zip(rows.adapted_rows[:, 0], rows.adapted_places, strict=True)
    }
    assert found == expected
    assert len(rows.adapted_rows) == len(expected)
    assert flat[rows.adapted_places].tolist() == rows.adapted_rows[:, 0].tolist()
    assert len(set(rows.adapter_ids.tolist())) == len(rows.adapter_ids)
    assert all(
        expected[row] == id for id, group in zip(rows.adapter_ids, rows.adapter_rows, strict=True) for row in group
    )


def test_graph_of_a_model_without_adapters_is_as_before(tmp_path):
    checkpoint = write_model(GRIFFIN, tmp_path)
    plain, empty, adapted = (
        build_graph(checkpoint, "float32", 127, adapters).proto
        for adapters in (None, {}, {"a": {f"{LINEAR}.weight": term((17, 13), 2, 0)}})
    )
    assert empty.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    # One choice for the linear, and one value that tells whether any row needs it.
    operators = [node.op_type for node in adapted.graph.node]
    before = [node.op_type for node in plain.graph.node]
    assert operators.count("If") == before.count("If") + 1
    assert len(operators) <= len(before) + 4


def test_tuned_states_add_nothing_to_the_graph(tmp_path):
    checkpoint = write_model(GRIFFIN, tmp_path)
    engine = build_engine(checkpoint, "float32", 1, {"state": {}})
    assert not any(value.name.startswith("adapt") for value in engine.session.get_inputs())


def test_memory_check_counts_the_terms_with_their_ranks_filled_up(tmp_path, monkeypatch):
    checkpoint = write_model(GRIFFIN, tmp_path)
    adapters = {
        "a": {f"{LINEAR}.weight": term((17, 13), 2, 0)},
        "b": {f"{LINEAR}.weight": term((17, 13), 5, 0), f"{GATE}.weight": term((3, 5, 5), 1, 0)},
    }
    assert num_bytes(adapters) == 4 * 2 * (5 * (17 + 13) + 3 * (5 + 5))
    asked = []
    monkeypatch.setattr(engine_module, "require_memory", lambda size, what: asked.append(size))
    require_room(checkpoint)
    require_room(checkpoint, num_bytes(adapters))
    assert asked[1] - asked[0] == num_bytes(adapters)

    def refuse(size: int, what: str) -> None:
        if size > asked[0]:
            raise NotEnoughMemoryError(what)

    monkeypatch.setattr(engine_module, "require_memory", refuse)
    build_engine(checkpoint, "float32", 1)
    with pytest.raises(NotEnoughMemoryError):
        build_engine(checkpoint, "float32", 1, adapters)


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_rows_without_an_adapter_keep_their_bits_on_a_quantized_model(weights, tmp_path):
    config = CONFIGS["Griffin"]
    checkpoint = write_model(config, tmp_path, weights)
    shapes = config.parameter_shapes()
    names = [f"{LINEAR}.weight", f"{GATE}.weight", "layers.2.attention.query.weight", "layers.1.mlp.down.weight"]
    adapters = {"a": {name: term(shapes[name], 2, seed) for seed, name in enumerate(names)}}
    engine, base = build_engine(checkpoint, "float32", 1, adapters), build_engine(checkpoint, "float32", 1)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (3, 9))
    executor, plain = engine.executor(3), base.executor(3)
    executor.use_adapter(1, "a")
    found, expected = (one.prefill([0, 1, 2], tokens, None, "all") for one in (executor, plain))
    np.testing.assert_array_equal(found[[0, 2]], expected[[0, 2]])
    assert not np.allclose(found[1], expected[1], atol=1e-2)
