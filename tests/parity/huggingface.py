"""The transformers package's RecurrentGemma and Gemma as `Reader`s.

Its RecurrentGemma counts the query's own token into the window, so it is given a window one longer than DeepMind's, and
it keeps memory on the modules: one reader needs one fresh model, and reads one unpadded prompt and then single tokens.
"""

from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, GemmaConfig, GemmaForCausalLM, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from griffinlm.config import ModelConfig

from .reading import Call, Memory, Reading, reachable

Original = RecurrentGemmaForCausalLM | GemmaForCausalLM


def settings(config: ModelConfig) -> RecurrentGemmaConfig | GemmaConfig:
    """The package's own configuration, as a published one would say it: the window is DeepMind's."""
    attention, recurrent = config.attention, config.recurrent
    common: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": 1,
    }
    if recurrent is None:
        assert attention is not None
        return GemmaConfig(
            intermediate_size=config.mlp_hidden,
            num_attention_heads=attention.num_heads,
            head_dim=attention.head_size,
            **common,
        )
    kinds = {"recurrent": "recurrent", "local_attention": "attention"}
    window = {} if attention is None else {"attention_window_size": attention.window_tokens}
    return RecurrentGemmaConfig(
        intermediate_size=2 * config.mlp_hidden,
        num_attention_heads=recurrent.num_gate_blocks,
        lru_width=recurrent.width,
        conv1d_width=recurrent.num_conv_taps,
        logits_soft_cap=config.logit_soft_cap,
        block_types=[kinds[kind] for kind in config.block_pattern],
        **window,
        **common,
    )


def save_original(config: ModelConfig, directory: Path, seed: int) -> None:
    """Writes a checkpoint as transformers does: its own initial values, with noise so that nothing stays zero."""
    torch.manual_seed(seed)
    kind = GemmaForCausalLM if config.recurrent is None else RecurrentGemmaForCausalLM
    model = kind(settings(config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("recurrent_param"):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(directory)


def load_original(config: ModelConfig, directory: Path) -> Original:
    """A fresh model in float32 from a checkpoint directory; every tensor must be found and used."""
    kind = GemmaForCausalLM if config.recurrent is None else RecurrentGemmaForCausalLM
    window_tokens = None if config.attention is None else config.attention.window_tokens
    window = {} if window_tokens is None else {"attention_window_size": window_tokens + 1}
    model, found = kind.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, **window
    )
    faults = {name: values for name, values in found.items() if values}
    assert not faults, f"transformers does not find in {directory} what it expects: {faults}"
    return model.eval()


class HuggingFaceReader:
    """A model of transformers with a cache of its own; `capacity` is the size of the ring that memory is shown as."""

    def __init__(self, model: Original, capacity: int) -> None:
        self.model = model
        self.capacity = capacity
        self.cache = DynamicCache(config=model.config)
        self.num_tokens = 0

    @torch.no_grad()
    def read(self, call: Call) -> Reading:
        """Reads on from the cache and from what the modules hold; the positions are those of one document."""
        output = self.model(call.tokens, past_key_values=self.cache, use_cache=True)
        self.num_tokens += call.tokens.shape[1]
        return Reading(output.logits, self._memory(len(call.tokens)))

    def _memory(self, num_rows: int) -> Memory:
        arrays = {"num_tokens": torch.full((num_rows,), self.num_tokens)}
        for depth, layer in enumerate(self.model.model.layers):
            prefix = f"layers.{depth}"
            block = getattr(layer, "temporal_block", None)
            if hasattr(block, "rg_lru"):
                arrays[f"{prefix}.hidden"] = block.rg_lru.recurrent_states
                arrays[f"{prefix}.convolution"] = block.conv1d_state.transpose(1, 2)
            else:
                arrays[f"{prefix}.keys"] = self._ring(self.cache.layers[depth].keys)
                arrays[f"{prefix}.values"] = self._ring(self.cache.layers[depth].values)
        return reachable(arrays)

    def _ring(self, newest: torch.Tensor) -> torch.Tensor:
        """The last entries [B, 1, n, H], in order of time, as slots [B, capacity, H] by position mod capacity."""
        newest = newest[:, 0, -self.capacity :]
        ring = newest.new_zeros(newest.shape[0], self.capacity, newest.shape[2])
        ring[:, torch.arange(self.num_tokens - newest.shape[1], self.num_tokens) % self.capacity] = newest
        return ring
