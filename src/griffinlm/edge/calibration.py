"""What the inputs of every matrix are like on real text: which channels matter when weights are rounded."""

from collections.abc import Iterable, Sequence

import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.config import ModelConfig
from griffinlm.edge.call import Call, Taps
from griffinlm.edge.engine import OnnxEngine, activation_levels, new_session, require_room
from griffinlm.edge.graph import Graph
from griffinlm.edge.linear import Linears
from griffinlm.edge.model import add_model
from griffinlm.edge.scan import MAX_CHUNK_TOKENS
from griffinlm.progress import progress

TAP = ".energy"


def input_energy(checkpoint: Checkpoint, documents: Iterable[Sequence[int]]) -> dict[str, np.ndarray]:
    """Mean square of every input channel of every matrix, over all tokens of the documents, in float32.

    That of a matrix which layers share is over all of them.

    Args:
        checkpoint: not quantized. documents: token ids, at least one token in all; each document is read by itself.

    Returns:
        By parameter name, [K] (of a gate all its channels, [h * b_in]).
    """
    require_room(checkpoint)
    graph = Graph()
    linears = Linears(graph, checkpoint, activation_levels())
    add_model(graph, linears, checkpoint.config, "float32")
    taps: dict[str, int] = {}
    for name, values in linears.inputs.items():
        num_inputs = _num_inputs(checkpoint.config, name)
        squares = [graph.node("ReduceSumSquare", value, graph.integers([0]), keepdims=0) for value in values]
        graph.output(name + TAP, graph.node("Mean", *squares), "float32", [num_inputs])
        taps[name + TAP] = num_inputs
    session = new_session(graph.build("calibration"), checkpoint, None)
    sums = {name: np.zeros(size) for name, size in taps.items()}

    def add(call: Call) -> None:
        for name, total in sums.items():
            total += call.tapped[name]

    engine = OnnxEngine(checkpoint, session, "float32", Taps(taps, add))
    num_tokens = 0
    for document in progress(documents, "calibrating"):
        ids = np.asarray([document], np.int64)
        executor = engine.executor(1, max(1, ids.size) if checkpoint.config.needs_capacity else None)
        for start in range(0, ids.size, MAX_CHUNK_TOKENS):
            executor.prefill([0], ids[:, start : start + MAX_CHUNK_TOKENS], None, "all")
        num_tokens += ids.size
    return {name.removesuffix(TAP): (total / max(num_tokens, 1)).astype(np.float32) for name, total in sums.items()}


def _num_inputs(config: ModelConfig, name: str) -> int:
    shape = config.parameter_shapes()[name]
    return shape[1] if len(shape) == 2 else shape[0] * shape[1]
