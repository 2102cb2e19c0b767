"""How fast is a prompt read? RecurrentGemma-2B and Gemma-2B shapes in bfloat16, up to the logits of the last token.

Gemma's attention is torch's own causal kernel; transformers' classes run uncompiled, as ours do.
"""

import sys
from collections.abc import Callable

import torch

from gpu.measuring import Bench, Record
from gpu.models import causal_sdpa, config_of, random_model
from gpu.peers import random_peer, read_prompt
from griffinlm.cost import reading_operations
from griffinlm.model import blocks

RUNS = (
    ("griffinlm", "recurrentgemma-2b"),
    ("griffinlm", "gemma-2b"),
    ("transformers", "gemma-2b"),
    ("transformers", "recurrentgemma-2b"),
)
"""The slowest last, where time runs out."""
SHAPES = ((1, 2048), (8, 2048), (1, 16_384), (4, 8192))
SMOKE_SHAPES = ((1, 12), (2, 9))
OWN_ATTENTION = blocks.attention


def figures(bench: Bench, preset: str, shape: tuple[int, int], seconds: float) -> Record:
    operations = shape[0] * (reading_operations(config_of(bench, preset), shape[1])._replace(head=0)).total
    tokens_per_second = shape[0] * shape[1] / seconds
    return {"seconds": seconds, "tokens_per_second": tokens_per_second, "operations_per_second": operations / seconds}


def reader(bench: Bench, program: str, preset: str) -> Callable[[tuple[int, int]], Record]:
    """What reads a prompt of a shape; the model is made at the first one."""
    config, made = config_of(bench, preset), []

    def read(shape: tuple[int, int]) -> Record:
        if not made:
            is_ours = program == "griffinlm"
            made.append(random_model(config, bench.device, bench.dtype) if is_ours else random_peer(bench, preset))
        tokens = torch.randint(config.vocab_size, shape, device=bench.device)
        with torch.inference_mode():
            if program == "griffinlm":
                seconds = bench.seconds(lambda: made[0](tokens, logits="last"))
            else:
                seconds = bench.seconds(lambda: read_prompt(made[0], tokens), warm_up=1)
        return figures(bench, preset, shape, seconds)

    return read


def main() -> int:
    bench = Bench("prefill", __doc__)
    shapes = SMOKE_SHAPES if bench.smoke else SHAPES
    for program, preset in RUNS:
        blocks.attention = causal_sdpa if preset == "gemma-2b" else OWN_ATTENTION
        # Ours has a fused kernel for its attention, or there is no figure.
        torch.backends.cuda.enable_math_sdp(program != "griffinlm")
        read = reader(bench, program, preset)
        for shape in shapes:
            what = {"model": preset, "program": program, "rows": shape[0], "tokens": shape[1]}
            bench.measure(what, lambda s=shape, read=read: read(s), is_peer=program == "transformers")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
