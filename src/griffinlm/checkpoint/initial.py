"""Initial values of every parameter, in numpy, so that both engines can start from the same random model."""

import math
from collections.abc import Iterator

import numpy as np

from griffinlm.config import EMBEDDING, LOW_RANK, ModelConfig

CONV_VARIANCE = 0.01
SMALLEST_DECAY, LARGEST_DECAY = 0.9, 0.999


def initial_tensors(config: ModelConfig, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Draws the parameters of a new model one by one, as float32, in the order of `config.parameter_shapes()`.

    | parameter | value |
    | --- | --- |
    | embedding; query, key, value, linear_x, linear_y, gate, up | N(0, 1 / fan_in) |
    | linear_out, output, down | N(0, 2 / (num_layers fan_in)) |
    | gates of the RG-LRU | N(0, 1 / block width) |
    | convolution | N(0, 0.01 / taps) |
    | down and up of a layer's term beside a shared matrix | N(0, 1 / fan_in), and 0 |
    | a_param | a uniform on the ring [0.9, 0.999] by area; a^8 where the configuration says so |
    | biases, norm scales | 0 |

    These are the values of DeepMind's PyTorch code. Each parameter has its own random stream, drawn from the seed and
    its place in the order.
    """
    for index, (name, shape) in enumerate(config.parameter_shapes().items()):
        yield name, initial_tensor(config, name, shape, np.random.default_rng([seed, index]))


def initial_tensor(config: ModelConfig, name: str, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Draws one parameter as `initial_tensors` does, float32."""
    if name.endswith("a_param"):
        return _a_param(config, shape, random)
    if name.endswith((".bias", ".scale", f"{LOW_RANK}.up")):
        return np.zeros(shape, np.float32)
    values = random.standard_normal(shape, dtype=np.float32)
    values *= math.sqrt(initial_variance(config, name, shape))
    return values


def initial_variance(config: ModelConfig, name: str, shape: tuple[int, ...]) -> float:
    """The variance of a parameter whose initial values are normal."""
    if name == EMBEDDING:
        return 1.0 / config.width
    if name.endswith("conv.weight"):
        return CONV_VARIANCE / shape[0]
    if name.endswith(("linear_out.weight", "output.weight", "down.weight")):
        return 2.0 / (config.num_layers * shape[-1])
    # Linear weights and down are [out, in]; a gate's blocks are square.
    return 1.0 / shape[-1]


def _a_param(config: ModelConfig, shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    """Solves softplus(a_param) = -log a for a drawn decay a (or for its eighth root)."""
    assert config.recurrent is not None
    decay = np.sqrt(random.uniform(SMALLEST_DECAY**2, LARGEST_DECAY**2, shape))
    if config.recurrent.initial_decay_range == "decay_to_the_eighth":
        decay = decay**0.125
    return np.log(1.0 / decay - 1.0).astype(np.float32)
