"""Times transformers' RecurrentGemma in bfloat16 with random weights: prefill, and decoding at positions.

Run as `python -m peers.transformers_runs MODEL JSON`; needs torch and transformers. Prints one JSON object a line.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from transformers import (  # pyright: ignore[reportMissingImports]
    DynamicCache,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from .settings import Settings, measured

CONFIGS: dict[str, dict[str, Any]] = {
    "recurrentgemma-2b": {"intermediate_size": 15_360, "num_key_value_heads": 1},
    "tiny-recurrentgemma": {
        "num_hidden_layers": 3,
        "vocab_size": 512,
        "hidden_size": 128,
        "intermediate_size": 768,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "attention_window_size": 32,
    },
}

"""Values that differ from the class's own; `intermediate_size` counts both branches of the gated MLP."""


def random_model(config: RecurrentGemmaConfig) -> RecurrentGemmaForCausalLM:
    """A model whose parameters are small random numbers; drawing them as transformers does takes minutes."""
    with torch.device("meta"):
        # Any: the annotations of transformers deny what its own documentation does.
        model: Any = RecurrentGemmaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu").eval()
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.uniform_(-0.02, 0.02)
    model.model.normalizer.fill_(config.hidden_size**0.5)
    for module in model.modules():
        if hasattr(module, "compute_default_rope_parameters"):
            frequencies, _ = module.compute_default_rope_parameters(config)
            module.inv_freq = module.original_inv_freq = frequencies
    return model


class Conversation:
    """A model with the memory of one conversation: recurrent states on its modules, keys and values in a cache."""

    def __init__(self, model: RecurrentGemmaForCausalLM) -> None:
        self.model: Any = model
        self.config: Any = model.config
        self.model._setup_cache(model.config, 1, model.device, model.dtype)
        self.cache = DynamicCache(config=model.config)

    def set_position(self, position: int) -> None:
        """Fills the window with random keys and values, as many as the tokens before `position` would have left."""
        config, num_kept = self.config, min(position, self.config.attention_window_size)
        for layer, kind in enumerate(config.layers_block_type):
            if kind == "sliding_attention" and num_kept:
                rows = torch.randn(2, 1, config.num_key_value_heads, num_kept, config.head_dim, dtype=torch.bfloat16)
                self.cache.update(rows[0], rows[1], layer)

    def compute(self, start: int, num_tokens: int) -> float:
        """Feeds random tokens at positions start..; gives the milliseconds until the last one's logits are there."""
        tokens = torch.randint(0, self.config.vocab_size, (1, num_tokens))
        positions = torch.arange(start, start + num_tokens)[None]
        begin = time.perf_counter()
        logits = self.model(
            tokens, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=1
        ).logits
        milliseconds = 1e3 * (time.perf_counter() - begin)
        if not torch.isfinite(logits).all():
            raise RuntimeError("transformers gave logits that are not finite")
        return milliseconds


@torch.inference_mode()
def measure(model: RecurrentGemmaForCausalLM, settings: Settings) -> Iterator[dict[str, Any]]:
    num_prefill = settings.prefill_tokens
    Conversation(model).compute(0, 2)
    times = [Conversation(model).compute(0, num_prefill) for _ in range(settings.prefill_repeats)]
    yield measured("prefill", times, tokens=num_prefill)
    for position in settings.positions:
        conversation = Conversation(model)
        conversation.set_position(position)
        times = [conversation.compute(position + step, 1) for step in range(settings.decode_tokens + 1)][1:]
        yield measured("decode", times, tokens=1, position=position)


def main() -> None:
    settings = Settings.parse(sys.argv[2])
    torch.set_num_threads(settings.threads)
    torch.manual_seed(0)
    model = random_model(RecurrentGemmaConfig(**CONFIGS[sys.argv[1]]))
    for found in measure(model, settings):
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
