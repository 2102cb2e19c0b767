"""transformers' RecurrentGemma and Gemma with random weights: one step of generation, and reading a prompt."""

from typing import Any

import torch

from gpu.measuring import Bench

TINY: dict[str, Any] = {
    "num_hidden_layers": 3,
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
}
SIZES: dict[str, dict[str, Any]] = {
    "recurrentgemma-2b": {"intermediate_size": 15_360, "num_key_value_heads": 1},
    "gemma-2b": {
        "num_hidden_layers": 18,
        "vocab_size": 256_000,
        "hidden_size": 2048,
        "intermediate_size": 16_384,
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "head_dim": 256,
    },
}
LARGEST_WEIGHT = 0.02


def random_peer(bench: Bench, preset: str) -> Any:
    """The model of transformers' class, with small random parameters."""
    import transformers

    name = "RecurrentGemma" if preset.startswith("recurrent") else "Gemma"
    sizes = dict(TINY) if bench.smoke else SIZES[preset]
    if bench.smoke and name == "RecurrentGemma":
        sizes |= {"attention_window_size": 8}
        del sizes["head_dim"]
    config = getattr(transformers, f"{name}Config")(**sizes, max_position_embeddings=65_536)
    with torch.device(bench.device):
        kept = torch.get_default_dtype()
        torch.set_default_dtype(bench.dtype)
        try:
            model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        finally:
            torch.set_default_dtype(kept)
    for parameter in model.parameters():
        parameter.data.uniform_(-LARGEST_WEIGHT, LARGEST_WEIGHT)
    return model


class Generation:
    """Conversations of a transformers model, their caches filled with random numbers up to a position."""

    def __init__(self, model: Any, rows: int, position: int) -> None:
        from transformers import DynamicCache

        self._model, self._rows, self._position = model, rows, position
        config = model.config
        is_recurrent = config.model_type == "recurrent_gemma"
        if is_recurrent:
            model._setup_cache(config, rows, model.device, model.dtype)
        self._cache = DynamicCache(config=config)
        # Versions of transformers name the recurrent layers differently.
        kinds = config.layers_block_type if is_recurrent else ["attention"] * config.num_hidden_layers
        num_kept = min(position, config.attention_window_size) if is_recurrent else position
        shape = (rows, config.num_key_value_heads, num_kept, config.head_dim)
        for layer, kind in enumerate(kinds):
            if "sliding" in kind or kind == "attention":
                new = [torch.randn(shape, device=model.device, dtype=model.dtype) for _ in range(2)]
                self._cache.update(new[0], new[1], layer)
        self._tokens = torch.zeros(rows, 1, dtype=torch.int64, device=model.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Reads a token of every row and draws the next one."""
        positions = torch.full_like(self._tokens, self._position)
        out = self._model(self._tokens, position_ids=positions, past_key_values=self._cache, use_cache=True)
        self._tokens = torch.multinomial(torch.softmax(out.logits[:, -1].float(), dim=-1), 1)
        self._position += 1


@torch.inference_mode()
def read_prompt(model: Any, tokens: torch.Tensor) -> None:
    """Up to the logits of the last token."""
    from transformers import DynamicCache

    if model.config.model_type == "recurrent_gemma":
        model._setup_cache(model.config, len(tokens), model.device, model.dtype)
    cache = DynamicCache(config=model.config)
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    model(tokens, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
