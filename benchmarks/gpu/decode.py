"""How long does a token take at 1 to 64 conversations, and how near is that to the bandwidth of memory?

RecurrentGemma-2B and Gemma-2B shapes in bfloat16 after 4,096 tokens: reading a token, its logits and the draw of the
next one are one CUDA graph: of our fused kernels, beside it of the same ones where each begins while the one before
ends, of plain operators, and of blocks made into kernels by torch.compile. The bound is the time in which a copy moves
the weights and the states.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from gpu.measuring import Bench, Record
from gpu.models import (
    config_of,
    decoding_by,
    filled_state,
    overlapping,
    plain_operators,
    random_model,
    sampling_step,
    sdpa_at,
    shortened,
    state_bytes,
)
from griffinlm.kernels.local_attention.operator import decode_attention
from griffinlm.model.decoding import FUSED, PLAIN, TokenReader, compiled_reader, read_token
from griffinlm.model.griffin import Griffin

MODELS = ("recurrentgemma-2b", "gemma-2b")
BATCHES = (1, 2, 4, 8, 16, 32, 64)
COMPARED_BATCHES = (1, 16, 32, 64)
OVERLAPPING_CAPABILITY = (9, 0)
POSITION, ROOM = 4096, 64
CHECKED_LAYERS, CHECKED_TOKENS, ALLOWED = 3, 5, 5e-2
"""Two ways of computing a few layers in bfloat16 stay as near as that, relative to the largest logit."""


@torch.inference_mode()
def check(bench: Bench, preset: str, reader: TokenReader | None = None) -> Record:
    """Tokens one by one in place give the logits of one call by plain operators, for one row and for two."""
    config = config_of(bench, preset)
    config = config if bench.smoke else shortened(config, CHECKED_LAYERS)
    model = random_model(config, bench.device, bench.dtype)
    tokens = torch.randint(config.vocab_size, (2, CHECKED_TOKENS), device=bench.device)
    with plain_operators():
        expected = model(tokens)[0]
    found = torch.empty_like(expected)
    for slots in (torch.arange(2, device=bench.device), torch.tensor([1], device=bench.device)):
        state = filled_state(model, 2, 0, CHECKED_TOKENS)
        for kept in (kept for block in state.blocks for kept in block):
            kept.zero_()
        # On a CPU the kernels run in Triton's interpreter.
        with decoding_by(decode_attention):
            for t in range(CHECKED_TOKENS):
                found[slots, t] = read_token(model, state, slots, tokens[slots, t], reader)
        distance = float((found - expected).abs().max() / expected.abs().max())
        if not distance <= ALLOWED:
            raise RuntimeError(f"{preset}: the step of {len(slots)} rows is {distance:.2g} from the call")
    return {"largest_disagreement": distance}


@torch.inference_mode()
def step_seconds(
    bench: Bench, model: Griffin, rows: int, position: int, by_sdpa: bool = False, reader: TokenReader | None = None
) -> float:
    """Of one step of so many rows at that position, where one follows the other."""
    state = filled_state(model, rows, position, ROOM)
    with decoding_by(sdpa_at(position)) if by_sdpa else nullcontext():
        step = sampling_step(model, state, reader)
        seconds = bench.seconds(step)
        if int(step().min()) < 0:
            raise RuntimeError("the best logit of a row is not finite")
    return seconds


def decode(
    bench: Bench, model: Griffin, rows: int, position: int, bandwidth: float, reader: TokenReader | None = None
) -> dict[str, Any]:
    seconds = step_seconds(bench, model, rows, position, reader=reader)
    element = model.embedding.weight.element_size()
    weights = sum(parameter.numel() for parameter in model.parameters()) * element
    bound = (weights + rows * state_bytes(model.config, position, element)) / bandwidth
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": rows / seconds,
        "bound_seconds": bound,
        "share_of_bound": bound / seconds,
    }


def measure(bench: Bench, preset: str, program: str, batches: Sequence[int], reader: TokenReader | None = None) -> None:
    """Rows of a model read in one way, if that way is right."""
    what: Record = {"model": preset, "program": program}
    if bench.measure(what | {"program": f"{program}, check"}, lambda: check(bench, preset, reader)) is None:
        return
    bandwidth = bench.facts["copy_bytes_per_second"]
    model = random_model(config_of(bench, preset), bench.device, bench.dtype)
    position = 9 if bench.smoke else POSITION
    for rows in batches[:2] if bench.smoke else batches:
        bench.measure(
            what | {"rows": rows, "position": position},
            lambda rows=rows: decode(bench, model, rows, position, bandwidth, reader),
        )


def main() -> int:
    bench = Bench("decode", __doc__)
    bench.facts["copy_bytes_per_second"] = bench.copy_bandwidth()
    measure(bench, MODELS[0], "griffinlm", BATCHES, FUSED)
    measure(bench, MODELS[1], "griffinlm", COMPARED_BATCHES, FUSED)
    if not bench.smoke and torch.cuda.get_device_capability() >= OVERLAPPING_CAPABILITY:
        with overlapping():
            measure(bench, MODELS[0], "griffinlm, overlapped", COMPARED_BATCHES, FUSED)
    measure(bench, MODELS[0], "griffinlm, plain operators", COMPARED_BATCHES, PLAIN)
    compiled = compiled_reader("aot_eager" if bench.smoke else "inductor")
    measure(bench, MODELS[0], "griffinlm, compiled", COMPARED_BATCHES, compiled)
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
