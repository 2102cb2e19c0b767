"""How fast is a prompt read? RecurrentGemma-2B and Gemma-2B shapes in bfloat16, up to the logits of the last token.

Gemma's attention is torch's own causal kernel; transformers' classes run uncompiled, as ours do.
"""

import sys
from typing import Any

import torch

from gpu.measuring import Bench
from gpu.models import causal_sdpa, config_of, random_model
from gpu.peers import random_peer, read_prompt
from griffinlm.cost import reading_operations
from griffinlm.model import blocks

MODELS = ("recurrentgemma-2b", "gemma-2b")
SHAPES = ((1, 2048), (8, 2048), (1, 16_384), (4, 8192))
SMOKE_SHAPES = ((1, 12), (2, 9))
OWN_ATTENTION = blocks.attention


def figures(bench: Bench, preset: str, shape: tuple[int, int], seconds: float) -> dict[str, Any]:
    operations = shape[0] * (reading_operations(config_of(bench, preset), shape[1])._replace(head=0)).total
    tokens_per_second = shape[0] * shape[1] / seconds
    return {"seconds": seconds, "tokens_per_second": tokens_per_second, "operations_per_second": operations / seconds}


def main() -> int:
    bench = Bench("prefill", __doc__)
    shapes = SMOKE_SHAPES if bench.smoke else SHAPES
    for program in ("griffinlm", "transformers"):
        for preset in MODELS:
            made: list[Any] = []
            blocks.attention = causal_sdpa if preset == "gemma-2b" else OWN_ATTENTION

            def read(
                shape: tuple[int, int], preset: str = preset, program: str = program, made: list[Any] = made
            ) -> dict[str, Any]:
                config = config_of(bench, preset)
                if not made and program == "griffinlm":
                    made.append(random_model(config, bench.device, bench.dtype))
                elif not made:
                    made.append(random_peer(bench, preset))
                tokens = torch.randint(config.vocab_size, shape, device=bench.device)
                with torch.inference_mode():
                    if program == "griffinlm":
                        seconds = bench.seconds(lambda: made[0](tokens, logits="last"), repeats=3)
                    else:
                        seconds = bench.seconds(lambda: read_prompt(made[0], tokens), repeats=3, warm_up=1)
                return figures(bench, preset, shape, seconds)

            for shape in shapes:
                what = {"model": preset, "program": program, "rows": shape[0], "tokens": shape[1]}
                bench.measure(what, lambda s=shape, read=read: read(s), is_peer=program == "transformers")
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
