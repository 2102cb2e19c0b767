"""Does a model learn the same through the kernels and torch's compiler as through plain operators of torch?

A Griffin of 4.9 million parameters reads the source text of this checkout as bytes for 500 steps, products in bfloat16:
once by the kernels with blocks compiled, once by `chunked.rg_lru` and the attention that docs/numerics.md defines, and
once more by those from weights moved by a rounding error, which shows how far apart equal computations drift.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from gpu.measuring import Bench, Record
from gpu.models import plain_operators
from griffinlm.config import ModelConfig
from griffinlm.model.griffin import Griffin
from griffinlm.train.objective import Objective

ROOT = Path(__file__).parents[2]
STEPS, ROWS, ROW_TOKENS = 500, 8, 256
SMOKE_STEPS, SMOKE_ROWS, SMOKE_ROW_TOKENS = 3, 1, 12
LEARNING_RATE, WARM_UP_STEPS = 1e-3, 20
MEAN_STEPS = 20
"""Steps whose mean is a point of the curve."""
ROUNDING = 2**-9
"""Relative, of bfloat16."""
MOST_DISTANCE = 0.03
"""Nats between two points of the curves, which begin at 5.5."""
SHAPE = {
    "vocab_size": 256,
    "width": 256,
    "num_layers": 6,
    "block_pattern": ["recurrent", "recurrent", "local_attention"],
    "mlp_hidden": 768,
    "recurrent": {"width": 256, "num_gate_blocks": 4, "num_conv_taps": 4, "initial_decay_range": "decay"},
    "attention": {
        "num_heads": 4,
        "head_size": 64,
        "window_tokens": 128,
        "rope_fraction": 0.5,
        "rope_wavelength": 10000.0,
    },
    "use_bias": True,
    "embedding_scale": 16.0,
    "logit_soft_cap": 30.0,
    "norm_epsilon": 1e-06,
}
SMOKE_SHAPE = {"width": 32, "mlp_hidden": 32, "num_layers": 3, "embedding_scale": 6.0}
DECAY_PARAMETERS = (-9.0, -4.3)


def text(num_bytes: int) -> Tensor:
    """The source text of the checkout from its beginning, again and again, as bytes."""
    paths = sorted((ROOT / "src").rglob("*.py"))
    found = torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in paths)), dtype=torch.uint8).long()
    return found.repeat(-(-num_bytes // len(found)))[:num_bytes]


def losses(bench: Bench, start: dict[str, Tensor], config: ModelConfig, is_compiled: bool) -> list[float]:
    """Means of the loss over so many steps, from these weights."""
    steps, rows, width = (SMOKE_STEPS, SMOKE_ROWS, SMOKE_ROW_TOKENS) if bench.smoke else (STEPS, ROWS, ROW_TOKENS)
    model = Griffin(config).to(bench.device).train()
    model.load_state_dict(start)
    if is_compiled:
        for block in model.layers:
            block.compile(dynamic=False, backend="aot_eager" if bench.smoke else "inductor")
    objective = Objective(model, rows * width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 1.0))
    tokens, found = text(steps * rows * width).to(bench.device).reshape(steps, rows, width), []
    for ids in tokens:
        labels = torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -100)], dim=1)
        with torch.autocast(bench.device.type, dtype=torch.bfloat16):
            loss = objective(ids, None, labels, num_items_in_batch=rows * (width - 1))["loss"]
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        found.append(loss.detach())
    return [float(part.mean()) for part in torch.stack(found).split(MEAN_STEPS)]


def drawn(bench: Bench, config: ModelConfig) -> dict[str, Tensor]:
    """Random matrices of norm 1 a row, decays over their range, and zeros."""
    found = {name: torch.zeros_like(tensor) for name, tensor in Griffin(config).state_dict().items()}
    for name, tensor in found.items():
        if name.endswith("a_param"):
            tensor.copy_(torch.linspace(*DECAY_PARAMETERS, len(tensor)))
        elif tensor.ndim > 1:
            tensor.normal_(std=tensor.shape[-1] ** -0.5)
    return {name: tensor.to(bench.device) for name, tensor in found.items()}


def main() -> int:
    bench = Bench("loss_curve", __doc__)
    width = SMOKE_SHAPE["width"]
    smaller = {**SMOKE_SHAPE, "recurrent": {**SHAPE["recurrent"], "width": width}} if bench.smoke else {}
    config = ModelConfig.from_dict({**SHAPE, **smaller})
    start = drawn(bench, config)
    moved = {name: tensor * (1 + ROUNDING * torch.randn_like(tensor)) for name, tensor in start.items()}
    curves: dict[str, list[float]] = {}

    def run(program: str, weights: dict[str, Tensor], is_compiled: bool) -> Record:
        curves[program] = losses(bench, weights, config, is_compiled)
        apart = [abs(a - b) for a, b in zip(curves[program], curves["plain"], strict=True)]
        if not max(apart) <= MOST_DISTANCE and is_compiled:
            raise RuntimeError(f"the kernels' losses are {max(apart):.3g} nats from those of plain operators")
        return {"losses": curves[program], "last_loss": curves[program][-1], "largest_distance": max(apart)}

    with plain_operators():
        bench.measure({"program": "plain"}, lambda: run("plain", start, False))
        bench.measure({"program": "plain, moved by rounding"}, lambda: run("plain, moved by rounding", moved, False))
    bench.measure({"program": "kernels"}, lambda: run("kernels", start, True))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
