"""How near does the RG-LRU come to the bandwidth of memory, and how far behind are a loop and other scans?

Forward and backward of gates, decay, normaliser and scan in one kernel at 8 x 8,192 x 2,560 in bfloat16. They are
replayed as CUDA graphs, since Python takes as long to launch a kernel. Peers are given decays and inputs that are
computed already, so they do less. Equality with the definition is looked at first.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from gpu.measuring import Bench, Record
from griffinlm.kernels.linear_scan import reference
from griffinlm.kernels.linear_scan.operator import fused_rg_lru, fused_rg_lru_backward
from griffinlm.model.cuda_graph import Program

SHAPES = ((8, 8192, 2560), (1, 8192, 2560), (1, 65_536, 2560))
SMOKE_SHAPES = ((1, 9, 8),)
CHECKED_SHAPES = ((2, 37, 20), (1, 1000, 2560))
"""One chunk of odd size, and a sequence that is split."""
SMOKE_CHECKED_SHAPES = ((1, 5, 4),)
LOOP_TOKENS = 256
ALLOWED = {torch.float32: 2e-6, torch.bfloat16: 8e-3}
"""The tolerances of docs/numerics.md."""
FORWARD_NUMBERS, BACKWARD_NUMBERS = 4, 8
"""Read and written of every channel of a token: x, two gates and y; the same with dy and three gradients."""


def draw(bench: Bench, shape: tuple[int, int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    rows, tokens, width = shape
    x, input_gate, recurrence_gate = (torch.randn(shape, device=bench.device).to(dtype) for _ in range(3))
    return {
        "x": x,
        "input_gate": input_gate,
        "recurrence_gate": recurrence_gate,
        "a_param": torch.linspace(-9.0, -4.3, width, device=bench.device),
        "reset": torch.zeros(rows, tokens, dtype=torch.bool, device=bench.device),
        "initial": torch.zeros(rows, width, device=bench.device),
    }


def check(bench: Bench, shape: tuple[int, int, int]) -> Record:
    """The kernel is the definition, in values and gradients."""
    inputs = draw(bench, shape, bench.dtype)
    names = ("x", "input_gate", "recurrence_gate", "a_param", "initial")
    found = {}
    for form in (fused_rg_lru, reference.rg_lru):
        precise = form is reference.rg_lru
        given: dict[str, Any] = {
            n: t.detach().clone().to(torch.float64 if precise and t.is_floating_point() else t.dtype)
            for n, t in inputs.items()
        }
        leaves = [given[name].requires_grad_() for name in names]
        y, final = form(**given, lengths=None)
        found[precise] = [y, final, *torch.autograd.grad(y.double().sum() + final.double().square().sum(), leaves)]
    worst = 0.0
    for ours, expected in zip(found[False], found[True], strict=True):
        ours, expected = ours.detach().double(), expected.detach()
        worst = max(worst, float((ours - expected).abs().max() / expected.abs().max().clamp(min=1.0)))
    if not worst <= 4 * ALLOWED[bench.dtype]:
        raise RuntimeError(f"the kernel is {worst:.2g} from its definition")
    return {"largest_disagreement": worst}


def ours(bench: Bench, shape: tuple[int, int, int], bandwidth: float) -> dict[str, Any]:
    inputs = draw(bench, shape, bench.dtype)
    num_bytes = inputs["x"].numel() * inputs["x"].element_size()
    y, final = fused_rg_lru(**inputs, lengths=None)
    given = {"y": y, "dy": torch.randn_like(y), "dfinal": torch.randn_like(final)}
    forward = bench.seconds(Program(lambda: fused_rg_lru(**inputs, lengths=None)[0], bench.device), repeats=20)
    run = Program(lambda: fused_rg_lru_backward(**inputs, lengths=None, **given)[0], bench.device)
    backward = bench.seconds(run, repeats=20)
    return {
        "forward_seconds": forward,
        "backward_seconds": backward,
        "forward_share_of_copy": FORWARD_NUMBERS * num_bytes / forward / bandwidth,
        "backward_share_of_copy": BACKWARD_NUMBERS * num_bytes / backward / bandwidth,
    }


def loop(bench: Bench, shape: tuple[int, int, int]) -> dict[str, Any]:
    """The definition over the first tokens; the time of all is as many times more."""
    num_tokens = min(LOOP_TOKENS, shape[1])
    inputs = draw(bench, (shape[0], num_tokens, shape[2]), bench.dtype)
    seconds = bench.seconds(lambda: reference.rg_lru(**inputs), repeats=3)
    return {"forward_seconds": seconds * shape[1] / num_tokens, "timed_tokens": num_tokens}


def accelerated_scan(bench: Bench, shape: tuple[int, int, int]) -> dict[str, Any]:
    from accelerated_scan.warp import scan  # pyright: ignore[reportMissingImports]

    rows, tokens, width = shape
    decays, inputs = (torch.rand(rows, width, tokens, device=bench.device, dtype=bench.dtype) for _ in range(2))
    return {"forward_seconds": bench.seconds(lambda: scan(decays, inputs))}


def hgrn(bench: Bench, shape: tuple[int, int, int]) -> dict[str, Any]:
    from fla.ops.hgrn import chunk_hgrn, fused_recurrent_hgrn  # pyright: ignore[reportMissingImports]

    x = torch.randn(shape, device=bench.device, dtype=bench.dtype)
    log_decay = -torch.rand(shape, device=bench.device, dtype=bench.dtype)
    return {
        "forward_seconds": min(bench.seconds(lambda f=f: f(x, log_decay)) for f in (chunk_hgrn, fused_recurrent_hgrn))
    }


def main() -> int:
    bench = Bench("scan", __doc__)
    bandwidth = bench.facts["copy_bytes_per_second"] = bench.copy_bandwidth()
    for shape in SMOKE_CHECKED_SHAPES if bench.smoke else CHECKED_SHAPES:
        what = {"program": "check", "shape": shape}
        if bench.measure(what, lambda shape=shape: check(bench, shape)) is None:
            return bench.finish()
    shapes = SMOKE_SHAPES if bench.smoke else SHAPES
    for shape in shapes:
        bench.measure({"program": "griffinlm", "shape": shape}, lambda shape=shape: ours(bench, shape, bandwidth))
    bench.measure({"program": "torch loop", "shape": shapes[0]}, lambda: loop(bench, shapes[0]))
    for name, peer in (("accelerated-scan", accelerated_scan), ("flash-linear-attention hgrn", hgrn)):
        what = {"program": name, "shape": shapes[0], "computes": "the scan alone"}
        bench.measure(what, lambda peer=peer: peer(bench, shapes[0]), is_peer=True)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
