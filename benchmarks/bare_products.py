"""What the matrix products of a model cost by themselves: the floor under a step of the onnx engine.

One session with nothing in it but the products of one step, in the engine's own form, and the same number of rows.

    python benchmarks/bare_products.py --preset recurrentgemma-2b --weights int4 --rows 8 --threads 2
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np

from griffinlm.checkpoint import Checkpoint
from griffinlm.edge.engine import activation_levels, new_session
from griffinlm.edge.graph import Graph
from griffinlm.edge.linear import Linears
from griffinlm.errors import GriffinError
from griffinlm.evaluate.benchmark_weights import random_checkpoint
from griffinlm.quantization.recipe import GATES, is_matrix

NUM_STEPS, NUM_DISCARDED = 15, 3


def bare_session(checkpoint: Checkpoint, threads: int) -> Any:
    """A session that multiplies one input of every width with every matrix that takes it."""
    graph, config = Graph(), checkpoint.config
    linears = Linears(graph, checkpoint, activation_levels())
    inputs: dict[int, str] = {}

    def rows(width: int) -> str:
        if width not in inputs:
            inputs[width] = graph.input(f"x{width}", "float32", ["rows", width])
        return inputs[width]

    for name, shape in config.parameter_shapes().items():
        if not is_matrix(name):
            continue
        if name.endswith(GATES):
            num_blocks, width = shape[0], shape[0] * shape[1]
            parts = graph.nodes("Split", rows(width), count=num_blocks, num_outputs=num_blocks, axis=1)
            out = linears.block_diagonal(rows(width), name.removesuffix(".weight"), parts)
            graph.output(f"{name}.out", out, "float32", ["rows", width])
        else:
            graph.output(f"{name}.out", linears.product(rows(shape[1]), name), "float32", ["rows", shape[0]])
    return new_session(graph.build("products"), checkpoint, threads)


def median_seconds(session: Any, num_rows: int) -> float:
    binding, generator = session.io_binding(), np.random.default_rng(0)
    kept = [generator.standard_normal((num_rows, one.shape[1]), np.float32) for one in session.get_inputs()]
    for one, values in zip(session.get_inputs(), kept, strict=True):
        binding.bind_cpu_input(one.name, values)
    for one in session.get_outputs():
        binding.bind_output(one.name)
    seconds = []
    for _ in range(NUM_STEPS):
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[NUM_DISCARDED:]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", default="recurrentgemma-2b")
    parser.add_argument("--weights", default="int4")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    try:
        checkpoint = random_checkpoint(options.preset, "onnx", options.weights)
        seconds = median_seconds(bare_session(checkpoint, options.threads), options.rows)
    except GriffinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rate = {"ms_per_step": round(seconds * 1e3, 2), "tokens_per_second": round(options.rows / seconds, 3)}
    print(json.dumps({**vars(options), **rate}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
