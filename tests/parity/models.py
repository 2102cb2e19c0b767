"""Small configurations that differ in every option an original has, random weights for them, and our reader."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from griffinlm.checkpoint.initial import initial_tensors
from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig
from griffinlm.model.griffin import Griffin, GriffinState
from griffinlm.model.state import new_state, to_named
from griffinlm.presets import GRIFFIN_PATTERN, HAWK_PATTERN, TRANSFORMER_PATTERN, bfloat16_sqrt

from .reading import Call, Reading, reachable

RECURRENTGEMMA = ModelConfig(
    vocab_size=61,
    width=24,
    num_layers=5,
    block_pattern=GRIFFIN_PATTERN,
    mlp_hidden=16,
    recurrent=RecurrentConfig(width=24, num_gate_blocks=2),
    attention=AttentionConfig(num_heads=2, head_size=12, window_tokens=8),
    embedding_scale=bfloat16_sqrt(24),
    logit_soft_cap=30.0,
)
GRIFFIN_WIDE_RECURRENCE = ModelConfig(
    vocab_size=47,
    width=24,
    num_layers=4,
    block_pattern=GRIFFIN_PATTERN,
    mlp_hidden=28,
    recurrent=RecurrentConfig(width=33, num_gate_blocks=3),
    attention=AttentionConfig(num_heads=3, head_size=8, window_tokens=7),
)
ENDS_IN_ATTENTION = ModelConfig(
    vocab_size=53,
    width=40,
    num_layers=2,
    block_pattern=("recurrent", "local_attention"),
    mlp_hidden=24,
    recurrent=RecurrentConfig(width=40, num_gate_blocks=2),
    attention=AttentionConfig(num_heads=2, head_size=20, window_tokens=5),
    embedding_scale=bfloat16_sqrt(40),
    logit_soft_cap=5.0,
)
ONLY_ATTENTION_WINDOW_OF_ONE = ModelConfig(
    vocab_size=53,
    width=32,
    num_layers=2,
    block_pattern=("local_attention",),
    mlp_hidden=24,
    attention=AttentionConfig(num_heads=4, head_size=8, window_tokens=1),
    embedding_scale=bfloat16_sqrt(32),
)
HAWK = ModelConfig(
    vocab_size=43,
    width=16,
    num_layers=3,
    block_pattern=HAWK_PATTERN,
    mlp_hidden=20,
    recurrent=RecurrentConfig(width=24, num_gate_blocks=4),
    logit_soft_cap=30.0,
)
GEMMA = ModelConfig(
    vocab_size=61,
    width=24,
    num_layers=3,
    block_pattern=TRANSFORMER_PATTERN,
    mlp_hidden=40,
    attention=AttentionConfig(num_heads=4, head_size=8, rope_fraction=1.0),
    use_bias=False,
    embedding_scale=24**0.5,
)


def random_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Initial values with noise on top, so that no bias, scale or convolution tap is too small to be missed."""
    random = np.random.default_rng(seed)
    for name, values in initial_tensors(config, seed):
        noise = random.standard_normal(values.shape, dtype=np.float32)
        yield name, values if name.endswith("a_param") else values + np.float32(0.2) * noise


def griffin(config: ModelConfig, tensors: Iterable[tuple[str, np.ndarray]]) -> Griffin:
    """Our model with these parameters, in evaluation mode."""
    model = Griffin(config)
    model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in tensors})
    return model.eval()


class GriffinReader:
    """Our model, starting without a state, or with empty memory for `capacity` tokens where attention is global."""

    def __init__(self, model: Griffin, capacity: int | None = None) -> None:
        self.model = model
        self.capacity = capacity
        self.state: GriffinState | None = None

    @torch.no_grad()
    def read(self, call: Call) -> Reading:
        """Reads on from the state that the last call left."""
        if self.state is None and self.capacity is not None:
            self.state = new_state(self.model.config, len(call.tokens), self.capacity)
        logits, state = self.model(call.tokens, self.state, call.positions)
        self.state = state
        return Reading(logits, reachable(to_named(self.model.config, state)))
