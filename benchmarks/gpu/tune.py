"""Are the tiles in use the fastest? Searches around each for a faster one; changes nothing.

From the tile in use it goes to the fastest of its neighbours, which differ in one size by a factor of 2, and on from
there until none is faster. The kernels are those of a decoder's step at RecurrentGemma-2B's sizes and the RG-LRU. Calls
follow each other in one CUDA graph over matrices that fill the cache several times; a tile whose result is another one
does not count. The last table has what to put into the `launch.py` of a kernel.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gpu.measuring import Bench
from gpu.scan import ALLOWED, BACKWARD_NUMBERS, FORWARD_NUMBERS, draw
from gpu.summary import table
from griffinlm.kernels.device import num_processors
from griffinlm.kernels.linear_scan import launch as scan
from griffinlm.kernels.token_step import launch as step
from griffinlm.kernels.token_step.reference import Linear, Norm
from griffinlm.model.cuda_graph import Program

COLD_BYTES = 1 << 29
"""Matrices of a graph together: several times what a cache holds."""
ROWS = (1, 16, 32)
SCAN_SHAPES = ((8, 8192, 2560), (1, 8192, 2560))
MOST_ROUNDS, MOST_NEIGHBOURS = 4, 16
SMOKE_ROUNDS, SMOKE_NEIGHBOURS = 1, 2
STEP_SIZES = ("num_outputs", "num_inputs", "num_warps", "num_stages")
SCAN_SIZES = ("num_groups", "group_tokens", "num_channels", "num_warps", "num_stages")
SHOWN = ("kernel", "rows", "in_use", "seconds", "share_of_copy", "fastest", "times_as_fast")


class Case(NamedTuple):
    """A kernel at one size, and its tile in use."""

    name: str
    rows: int
    tile: Any
    sizes: Sequence[str]
    """Fields of the tile that may change."""
    num_bytes: int
    """That a call moves."""
    calls: Sequence[Callable[[Any], Tensor]]
    """The same call over other matrices each, by a tile."""


def step_cases(bench: Bench, rows: int) -> Iterator[Case]:
    """The kernels of a decoder's step, by the matrices that they read."""
    width, hidden, vocab, block, head = (20, 24, 30, 5, 4) if bench.smoke else (2560, 7680, 256_000, 256, 256)
    num_blocks, num_heads = width // block, width // head
    slots = torch.arange(rows, device=bench.device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=bench.device, dtype=bench.dtype)

    def linear(*shape: int) -> Linear:
        return Linear(normal(*shape).div_(shape[-1] ** 0.5), normal(*shape[:-1]))

    def gates(_: int, __: int) -> Linear:
        return Linear(normal(num_blocks, block, block).div_(block**0.5), normal(num_blocks, block))

    x, wide, norm = normal(rows, width), normal(rows, hidden), Norm(normal(width), 1e-6)
    state = torch.zeros(rows, width, device=bench.device)
    taps, tails, frequencies = linear(4, width), normal(rows, 3, width), torch.ones(head // 4, device=bench.device)
    taps = taps._replace(bias=normal(width))
    given: dict[str, tuple[Callable[..., Linear], list[tuple[int, int]], Callable[..., Any]]] = {
        "linear, down": (linear, [(width, hidden)], lambda w: step.linear(wide, w, None, x)),
        "linear, out": (linear, [(width, width)], lambda w: step.linear(x, w, None, x)),
        "linear, logits": (linear, [(vocab, width)], lambda w: step.linear(x, w, norm, None, 30.0, torch.float32)),
        "gated_hidden": (linear, [(hidden, width)] * 2, lambda g, u: step.gated_hidden(x, norm, g, u)),
        "recurrent_inputs": (
            linear,
            [(width, width)] * 2,
            lambda i, g: step.recurrent_inputs(x, norm, i, g, taps, tails, slots, slots)[1],
        ),
        "recurrent_outputs": (
            gates,
            [(width, block)] * 2,
            lambda i, r: step.recurrent_outputs(x, x, i, r, state[0], state, slots, slots * 0),
        ),
        "attention_inputs": (
            linear,
            [(num_heads * head, width), (head, width), (head, width)],
            lambda q, k, v: step.attention_inputs(x, norm, q, k, v, slots, frequencies)[0],
        ),
    }
    for name, (make, shapes, call) in given.items():
        num_bytes = sum(first * second for first, second in shapes) * bench.dtype.itemsize
        num_copies = 2 if bench.smoke else max(2, COLD_BYTES // num_bytes)
        copies = [[make(*shape) for shape in shapes] for _ in range(num_copies)]
        calls = [lambda tile, c=call, w=matrices: _by(tile, lambda: c(*w)) for matrices in copies]
        processors = num_processors(bench.device)
        if name == "recurrent_outputs":
            tile = step.choose_gate_tile(rows, block)
        elif name == "attention_inputs":
            tile = step.choose_tile(rows, bench.dtype, width, (num_heads + 2) * head // 2, processors)
        else:
            tile = step.choose_tile(rows, bench.dtype, shapes[0][1], shapes[0][0], processors)
        yield Case(name, rows, tile, STEP_SIZES, num_bytes, calls)


def _by(tile: step.Tile, call: Callable[[], Any]) -> Any:
    """The call where every kernel has this tile."""
    kept = step.choose_tile, step.choose_gate_tile
    step.choose_tile = step.choose_gate_tile = lambda *_: tile
    try:
        return call()
    finally:
        step.choose_tile, step.choose_gate_tile = kept


def scan_cases(bench: Bench, shape: tuple[int, int, int]) -> Iterator[Case]:
    x, input_gate, recurrence_gate, a_param, reset, initial = draw(bench, shape, bench.dtype).values()
    inputs = (x, input_gate, recurrence_gate, a_param, reset, initial, None)
    outputs = (torch.randn_like(x), torch.randn_like(x), torch.randn_like(initial))
    num_bytes, processors = x.numel() * bench.dtype.itemsize, num_processors(bench.device)
    name = "x".join(map(str, shape))
    tile = scan.choose_tiling(scan.FORWARD, *shape, processors)
    calls = [lambda tile: scan.forward(*inputs, tile)[0]]
    yield Case(f"scan forward {name}", shape[0], tile, SCAN_SIZES, FORWARD_NUMBERS * num_bytes, calls)
    tile = scan.choose_tiling(scan.BACKWARD, *shape, processors)
    calls = [lambda tile: scan.backward(*inputs, *outputs, tile)[0]]
    yield Case(f"scan backward {name}", shape[0], tile, SCAN_SIZES, BACKWARD_NUMBERS * num_bytes, calls)


def cases(bench: Bench) -> Iterator[Case]:
    """All, those with a target first; one is there at a time."""
    yield from step_cases(bench, ROWS[0])
    for shape in ((1, 9, 8),) if bench.smoke else SCAN_SHAPES:
        yield from scan_cases(bench, shape)
    for rows in ROWS[1:2] if bench.smoke else ROWS[1:]:
        yield from step_cases(bench, rows)


def neighbours(tile: Any, sizes: Sequence[str]) -> Iterator[Any]:
    """Tiles with one size doubled or halved; stages are counted by one."""
    for name in sizes:
        value = getattr(tile, name)
        for other in (value - 1, value + 1) if name == "num_stages" else (value // 2, 2 * value):
            if other >= 1:
                yield tile._replace(**{name: other})


def search(bench: Bench, case: Case, bandwidth: float) -> dict[str, Any] | None:
    """The tile in use and the fastest found, with their times; None where the one in use could not be timed."""
    seconds: dict[Any, float] = {}
    expected: list[Tensor] = []
    """The result of the tile in use, which is timed first."""

    def timed(tile: Any) -> dict[str, Any]:
        result = case.calls[0](tile).double()
        expected[:] = expected or [result]
        distance = float((result - expected[0]).abs().max() / expected[0].abs().max().clamp(min=1.0))
        if not distance <= ALLOWED[bench.dtype]:
            raise RuntimeError(f"the result is {distance:.2g} from that of the tile in use")

        def run() -> Tensor:
            return [call(tile) for call in case.calls][-1]

        found = bench.seconds(Program(run, bench.device)) / len(case.calls)
        return {"seconds": found, "share_of_copy": case.num_bytes / found / bandwidth}

    def measure(tile: Any) -> None:
        if tile not in seconds:
            what = {"kernel": case.name, "rows": case.rows, "tile": list(tile), "in_use": tile == case.tile}
            row = bench.measure(what, lambda: timed(tile), is_peer=tile != case.tile)
            seconds[tile] = float("inf") if row is None else row["seconds"]

    measure(case.tile)
    if seconds[case.tile] == float("inf"):
        return None
    best = case.tile
    rounds, most = (SMOKE_ROUNDS, SMOKE_NEIGHBOURS) if bench.smoke else (MOST_ROUNDS, MOST_NEIGHBOURS)
    for _ in range(rounds):
        for tile in islice(neighbours(best, case.sizes), most):
            measure(tile)
        fastest = min(seconds, key=seconds.__getitem__)
        if fastest == best:
            break
        best = fastest
    return {
        "kernel": case.name,
        "rows": case.rows,
        "in_use": _sizes(case.tile),
        "seconds": seconds[case.tile],
        "share_of_copy": case.num_bytes / seconds[case.tile] / bandwidth,
        "fastest": _sizes(best),
        "times_as_fast": seconds[case.tile] / seconds[best],
    }


def _sizes(tile: Any) -> str:
    return " ".join(map(str, tile))


def main() -> int:
    bench = Bench("tune", __doc__)
    bandwidth = bench.facts["copy_bytes_per_second"] = bench.copy_bandwidth()
    found = bench.facts["summary"] = []
    for case in cases(bench):
        result = search(bench, case, bandwidth)
        found.extend([] if result is None else [result])
    status = bench.finish()
    print(f"\ntiles\n{table(found, SHOWN)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
