"""Compiles every Triton kernel for GPUs that need not be there; prints a JSON line of what ptxas says of each.

python compile_kernels.py 80 90
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from griffinlm.kernels.linear_scan import launch
from griffinlm.kernels.linear_scan import triton as kernels
from griffinlm.kernels.local_attention import triton as local_attention
from griffinlm.kernels.soft_cap import triton as soft_cap
from griffinlm.kernels.token_draw import triton as token_draw
from griffinlm.kernels.token_step import launch as token_step_launch
from griffinlm.kernels.token_step import triton as token_step

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
FLOAT32 = (
    "entering",
    "final",
    "product",
    "end",
    "start",
    "initial",
    "dsoftplus",
    "dinitial",
    "sums",
    "maxima",
    "totals",
    "hidden",
    "frequencies",
)
DRAWN = {"temperatures": "fp64", "numbers": "fp64", "tokens": "i32", "out": "i64"}
"""Types of the arguments of kernels that draw, whose type of activations is `draw`."""
INTEGERS = {"reset": "u8", "lengths": "i64", "slots": "i64", "positions": "i64"}
NOT_DIVISIBLE = ("num_tokens", "num_heads", "num_chunks", "num_splits", "num_rows", "num_frequencies", "num_parts")
FLOATS = ("scale", "epsilon", "soft_cap", "cap")
PROCESSORS = 132
OVERLAPPING_CAPABILITY = 90
"""From which on a kernel can begin while the one before ends."""

Case = tuple[str, Any, dict[str, Any], dict[str, int], str]
"""What it is, the kernel, its constants, the compiler's options, and the type of activations, or `autocast`."""


def cases(capability: int) -> Iterator[Case]:
    for dtype, has_lengths in (("bf16", True), ("bf16", False), ("fp32", True), ("autocast", True)):
        yield from scan_cases(dtype, has_lengths)
    for is_reverse in (False, True):
        sizes = {"MOST_CHUNKS": 16, "BLOCK": launch.CARRY_CHANNELS, "REVERSE": is_reverse}
        yield f"carry {'reverse' if is_reverse else 'forward'}", kernels.carry_kernel, sizes, {}, "fp32"
    for dtype, tile in (("bf16", local_attention.TILE_OF_16_BITS), ("fp32", local_attention.TILE_OF_FLOAT32)):
        num_keys, num_warps, num_stages = tile
        sizes = {"HEADS": 16, "HEAD": 256, "BLOCK": num_keys, "SPLIT": 128}
        options = {"num_warps": num_warps, "num_stages": num_stages}
        yield f"split {dtype}", local_attention.split_kernel, sizes, options, dtype
        most = {"SPLITS": local_attention.MOST_SPLITS, "HEAD": 256}
        yield f"join {dtype}", local_attention.join_kernel, most, {}, dtype
    for dtype, num_rows in (("fp32", 1), ("bf16", 1), ("bf16", 16), ("bf16", 32), ("bf16", 64)):
        yield from token_step_cases(dtype, num_rows)
    if capability >= OVERLAPPING_CAPABILITY:
        for num_rows in (1, 16):
            yield from token_step_cases("bf16", num_rows, overlaps=True)
    for dtype in ("bf16", "fp32"):
        yield f"soft_cap {dtype}", soft_cap.soft_cap_kernel, {"TILE": soft_cap.TILE}, {}, dtype
    yield "draw_parts", token_draw.parts_kernel, {}, {}, "draw"
    yield "draw_join", token_draw.join_kernel, {"PARTS": 64}, {}, "draw"


def scan_cases(dtype: str, has_lengths: bool) -> Iterator[Case]:
    gradients = ("dx", "dinput_gate", "drecurrence_gate", "dsoftplus", "dinitial")
    for direction, many, outputs in (
        ("forward", launch.FORWARD, ("y", "final")),
        ("backward", launch.BACKWARD, gradients),
    ):
        kernel = getattr(kernels, f"{direction}_kernel")
        for what, tiling in (("few", launch.FEW_TOKENS), ("many", many), ("summary", many)):
            constants = launch.constants(tiling._replace(chunk_tokens=512))
            options = {"num_warps": constants.pop("num_warps")}
            unused = ("entering", *outputs) if what == "summary" else ("product", "end")
            unused = unused if has_lengths else (*unused, "lengths")
            constants |= {"SUMMARY": what == "summary", **{f"{name}_ptr": None for name in unused}}
            yield f"{direction} {what} {dtype}{' lengths' if has_lengths else ''}", kernel, constants, options, dtype


def token_step_cases(dtype: str, num_rows: int, overlaps: bool = False) -> Iterator[Case]:
    """The kernels of a decoder's step at the sizes of RecurrentGemma-2B."""
    for what, kernel, width, num_outputs, others in (
        ("out", "linear", 7680, 2560, {"HAS_CAP": False, "norm_ptr": None}),
        ("logits", "linear", 2560, 256_000, {"HAS_CAP": True, "bias_ptr": None, "residual_ptr": None}),
        ("hidden", "gated_hidden", 2560, 7680, {}),
        ("recurrent_inputs", "recurrent_inputs", 2560, 2560, {"TAPS": 4}),
        ("recurrent_outputs", "recurrent_outputs", 256, 256, {}),
        ("attention_inputs", "attention_inputs", 2560, 1536, {}),
    ):
        if what == "recurrent_outputs":
            tile = token_step_launch.choose_gate_tile(num_rows, width)
        else:
            number = torch.bfloat16 if dtype == "bf16" else torch.float32
            tile = token_step_launch.choose_tile(num_rows, number, width, num_outputs, PROCESSORS)
        constants = token_step_launch.constants(tile, width) | others | {"EARLY": overlaps}
        options = {"num_warps": constants.pop("num_warps"), "launch_pdl": overlaps}
        how = ", overlapped" if overlaps else ""
        yield f"{what} {dtype} {num_rows} rows{how}", getattr(token_step, f"{kernel}_kernel"), constants, options, dtype


def type_of(name: str, dtype: str) -> str:
    """Triton's name of an argument's type."""
    if name in FLOATS:
        return "fp32"
    if not name.endswith("_ptr"):
        return "i32"
    name = name.removesuffix("_ptr")
    if dtype == "draw":
        return f"*{DRAWN.get(name, 'fp32')}"
    if dtype == "autocast":
        # The bias of a gate is a float32 parameter, so the sum is float32 too.
        dtype = "fp32" if "gate" in name else "bf16"
    return f"*{INTEGERS.get(name) or ('fp32' if name in FLOAT32 else dtype)}"


def report(case: Case, capability: int) -> dict[str, Any]:
    """Registers, spilled bytes, shared memory and what the code has, of a kernel compiled for one kind of GPU."""
    what, kernel, constants, options, dtype = case
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else type_of(name, dtype) for name in names}
    # Pointers, widths and head sizes are multiples of 16 in every published model.
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(names)
        if signature[name] not in ("constexpr", "fp32") and name not in NOT_DIVISIBLE
    }
    source = ASTSource(kernel, signature, constants, attributes)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    ptx = compiled.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", ptx)
    assert architecture is not None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "kernel.ptx")
        path.write_text(ptx, encoding="utf-8")
        command = [PTXAS, "-v", "--gpu-name", architecture[1], "-o", path.with_suffix(".cubin"), path]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    registers = re.search(r"Used (\d+) registers", said)
    assert spills is not None
    assert registers is not None
    return {
        "kernel": what,
        "capability": capability,
        "registers": int(registers[1]),
        "num_threads": 32 * options.get("num_warps", 4),
        "spill_bytes": int(spills[1]) + int(spills[2]),
        "shared_bytes": compiled.metadata.shared,
        "is_pipelined": "cp.async" in ptx,
        "has_tensor_cores": "mma" in ptx,
        "waits": ptx.count("griddepcontrol.wait"),
        "reads_before_waiting": bool(re.search(r"(ld\.global|cp\.async)(?s:.*)griddepcontrol\.wait", ptx)),
        "has_atomics": " atom." in ptx or " red." in ptx,
    }


if __name__ == "__main__":
    for capability in map(int, sys.argv[1:]):
        for case in cases(capability):
            print(json.dumps(report(case, capability)), flush=True)
