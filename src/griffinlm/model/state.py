"""The torch form of a state, and the way between it and named numpy arrays."""

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from griffinlm.config import ModelConfig
from griffinlm.kernels.local_attention.reference import ring_positions
from griffinlm.model.blocks import AttentionState, RecurrentState
from griffinlm.model.griffin import GriffinState
from griffinlm.state import NOTHING_PENDING, block_layout


def new_state(
    config: ModelConfig,
    rows: int,
    capacity: int | None = None,
    window_dtype: str = "float32",
    activation_dtype: str = "float32",
    device: str | torch.device = "cpu",
) -> GriffinState:
    """The state of rows that have read nothing; arguments as in `griffinlm.state.block_layout`."""
    layout = block_layout(config, rows, capacity, window_dtype, activation_dtype)
    arrays = {n: torch.zeros(s.shape, dtype=getattr(torch, s.dtype.name), device=device) for n, s in layout.items()}
    counters = {"num_tokens": torch.zeros(rows, dtype=torch.int64, device=device)}
    if config.skips:
        counters["num_skipped"] = counters["num_tokens"].new_zeros(rows, config.num_loops - 1)
    return from_named(config, {**counters, **arrays})


def to_named(config: ModelConfig, state: GriffinState) -> dict[str, Tensor]:
    """The tensors of a state by the names of `griffinlm.state.state_layout`, not copied."""
    named = {"num_tokens": state.num_tokens}
    if state.num_skipped is not None:
        named["num_skipped"] = state.num_skipped
    for step in config.plan():
        block = state.blocks[step.depth]
        named.update({f"{step.state}.{field}": tensor for field, tensor in block._asdict().items()})
    return named


def from_named(config: ModelConfig, named: Mapping[str, Tensor]) -> GriffinState:
    """The state made of named tensors, not copied."""
    blocks = []
    for step in config.plan():
        kind = RecurrentState if step.kind == "recurrent" else AttentionState
        blocks.append(kind(*(named[f"{step.state}.{field}"] for field in kind._fields)))
    return GriffinState(named["num_tokens"], tuple(blocks), named["num_skipped"] if config.skips else None)


def tensors(state: GriffinState) -> Iterable[Tensor]:
    """Every tensor of a state, in a fixed order."""
    yield state.num_tokens
    if state.num_skipped is not None:
        yield state.num_skipped
    for block in state.blocks:
        yield from block


def without_earlier_documents(config: ModelConfig, state: GriffinState) -> GriffinState:
    """The same state with zeros where nothing of the present document stands.

    Ring slots and convolution inputs of an earlier document are never read again, but they would travel with the state.
    """
    blocks = []
    for step in config.plan():
        block, num_tokens = state.blocks[step.depth], num_read(config, state, step.depth)
        if isinstance(block, RecurrentState):
            past = block.convolution.shape[1]
            age = torch.arange(past, 0, -1, device=num_tokens.device)
            unread = (age[None] > num_tokens[:, None])[..., None]
            blocks.append(block._replace(convolution=block.convolution.masked_fill(unread, 0.0)))
        else:
            unwritten = (ring_positions(num_tokens, block.keys.shape[1]) < 0)[..., None]
            blocks.append(AttentionState(*(ring.masked_fill(unwritten, 0.0) for ring in block)))
    return state._replace(blocks=tuple(blocks))


def num_read(config: ModelConfig, state: GriffinState, layer: int) -> Tensor:
    """[B], tokens of each row's document that a layer has read."""
    loop = config.loop_of(layer)
    return (
        state.num_tokens if state.num_skipped is None or not loop else state.num_tokens - state.num_skipped[:, loop - 1]
    )


def to_numpy(named: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Copies of tensors as the arrays of a `State` with nothing pending."""
    arrays = {name: to_array(tensor) for name, tensor in named.items()}
    return {**arrays, "pending": np.full(len(arrays["num_tokens"]), NOTHING_PENDING, np.int64)}


def to_array(tensor: Tensor) -> np.ndarray:
    """A copy of the tensor as an array of its type."""
    tensor = tensor.detach().cpu().contiguous().clone()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of the array's type on the CPU, sharing its memory."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
