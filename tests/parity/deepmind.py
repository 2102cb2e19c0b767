"""DeepMind's torch package as a `Reader`. Imports it, and with it jax and flax."""

import torch
from recurrentgemma import torch as recurrentgemma

from griffinlm.config import ModelConfig

from .reading import Call, Memory, Reading, reachable


def original(config: ModelConfig) -> recurrentgemma.Griffin:
    """DeepMind's model of this configuration, with its own initial values.

    Without gradient checkpointing, which changes no number.
    """
    kinds = {
        "recurrent": recurrentgemma.TemporalBlockType.RECURRENT,
        "local_attention": recurrentgemma.TemporalBlockType.ATTENTION,
    }
    if config.attention is not None:
        num_heads, window_tokens = config.attention.num_heads, config.attention.window_tokens
    else:
        assert config.recurrent is not None
        num_heads, window_tokens = config.recurrent.num_gate_blocks, 1
    assert window_tokens is not None
    settings = recurrentgemma.GriffinConfig(
        vocab_size=config.vocab_size,
        width=config.width,
        mlp_expanded_width=config.mlp_hidden,
        num_heads=num_heads,
        block_types=tuple(kinds[kind] for kind in config.block_kinds),
        embeddings_scale_by_sqrt_dim=config.embedding_scale != 1.0,
        attention_window_size=window_tokens,
        logits_soft_cap=config.logit_soft_cap or 0.0,
        lru_width=None if config.recurrent is None else config.recurrent.width,
    )
    return recurrentgemma.Griffin(settings, gradient_checkpointing=False)


def random_original(config: ModelConfig, seed: int) -> recurrentgemma.Griffin:
    """DeepMind's model with its own initial values, and noise so that no bias or scale stays zero."""
    torch.manual_seed(seed)
    model = original(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("a_param"):
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
    return model


class DeepMindReader:
    """DeepMind's model with the cache it returned last."""

    def __init__(self, model: recurrentgemma.Griffin) -> None:
        self.model = model
        self.cache: dict | None = None

    @torch.no_grad()
    def read(self, call: Call) -> Reading:
        """Reads on from the cache of the last call."""
        logits, cache = self.model(call.tokens, call.positions, self.cache)
        self.cache = cache
        return Reading(logits, memory(cache, call))


def memory(cache: dict, call: Call) -> Memory:
    """The reachable part of the cache after a call. It holds a count only where it holds attention."""
    arrays = {"num_tokens": call.positions[:, -1] + 1}
    for depth in range(len(cache)):
        block, prefix = cache[f"blocks.{depth}"], f"layers.{depth}"
        if isinstance(block, recurrentgemma.RecurrentBlockCache):
            arrays[f"{prefix}.hidden"] = block.rg_lru_state
            arrays[f"{prefix}.convolution"] = block.conv1d_state
        else:
            torch.testing.assert_close(block.num_tokens.long(), arrays["num_tokens"], rtol=0, atol=0)
            arrays[f"{prefix}.keys"] = block.keys[:, :, 0]
            arrays[f"{prefix}.values"] = block.values[:, :, 0]
    return reachable(arrays)
