"""Is a training step of Griffin and Hawk as fast as the transformer's, and how does that change with the length?

The paper's figure 3: models of 400M and 1B shapes, rows of 2,048, 4,096 and 8,192 tokens, the same number of tokens a
step. A step is forward, backward and fused AdamW, products in bfloat16, blocks compiled by torch. The transformer is
multi-query with torch's own causal attention.
"""

import gc
import sys

import torch

from gpu.measuring import Bench, Record
from gpu.models import causal_sdpa, config_of, random_model
from griffinlm.cost import training_operations
from griffinlm.model import blocks
from griffinlm.train.objective import Objective

SIZES = {"400M": ("griffin-400m", "mqa-320m", "hawk-400m"), "1B": ("griffin-1.3b", "mqa-1.1b", "hawk-1.3b")}
LENGTHS = ((2048, 8192), (4096,))
"""The ends of all sizes first: where time runs out, the middle is missing."""
STEP_TOKENS = 16_384
SMOKE_TOKENS = 24
LOSS_CHUNK_TOKENS = 2048
OWN_ATTENTION = blocks.attention


def train(bench: Bench, preset: str, length: int, step_tokens: int) -> Record:
    """Seconds a step; where memory is short, blocks are computed again in the backward pass, and the row says so."""
    try:
        return _train(bench, preset, length, step_tokens, recomputes=False)
    except torch.OutOfMemoryError:
        gc.collect()
        torch.cuda.empty_cache()
    return _train(bench, preset, length, step_tokens, recomputes=True)


def _train(bench: Bench, preset: str, length: int, step_tokens: int, recomputes: bool) -> Record:
    torch._dynamo.reset()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    config = config_of(bench, preset)
    blocks.attention = causal_sdpa if preset.startswith("mqa") else OWN_ATTENTION
    # The state behind a row is used by nobody, whatever the model.
    blocks.write_ring = lambda ring, new, positions: ring
    model = random_model(config, bench.device, torch.float32).train()
    model.gradient_checkpointing = recomputes
    for block in model.layers:
        block.compile(dynamic=False, backend="aot_eager" if bench.smoke else "inductor")
    objective = Objective(model, LOSS_CHUNK_TOKENS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    rows = max(step_tokens // length, 1)
    tokens = torch.randint(config.vocab_size, (rows, length), device=bench.device)
    labels = tokens.roll(-1, 1)
    losses = []

    def step() -> None:
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            loss = objective(tokens, None, labels, num_items_in_batch=tokens.numel())["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())

    seconds = bench.seconds(step, repeats=4, warm_up=2)
    values = torch.stack(losses).tolist()
    if not all(value == value and value < float("inf") for value in values):
        raise RuntimeError(f"a loss is not finite: {values}")
    return {
        "seconds_per_step": seconds,
        "tokens_per_second": tokens.numel() / seconds,
        "operations_per_second": rows * training_operations(config, length, recomputes) / seconds,
        "rows": rows,
        "recomputes_blocks": recomputes,
        "peak_bytes": torch.cuda.max_memory_allocated() if bench.device.type == "cuda" else None,
    }


def main() -> int:
    bench = Bench("training", __doc__)
    torch._dynamo.config.recompile_limit = 64
    # The transformer has a fused kernel for its attention, or there is no figure.
    torch.backends.cuda.enable_math_sdp(False)
    # Tiny models are the same in all sizes.
    sizes, lengths = (("400M",), ((SMOKE_TOKENS,),)) if bench.smoke else (tuple(SIZES), LENGTHS)
    wanted = [(size, length) for some in lengths for size in sizes for length in some]
    for size, length in wanted:
        step_tokens = length if bench.smoke else STEP_TOKENS
        for preset in SIZES[size]:
            what = {"size": size, "model": preset, "tokens": length}
            bench.measure(what, lambda p=preset, t=length, s=step_tokens: train(bench, p, t, s))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
