"""Parameters over many devices: FSDP2, filling sharded parameters, and reading them whole."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from griffinlm.config import ModelConfig
from griffinlm.model import Griffin
from griffinlm.model.recursion import tie
from griffinlm.model.state import to_array, to_tensor
from griffinlm.train.objective import Objective


def build_objective(
    config: ModelConfig,
    tensors: Iterable[tuple[str, np.ndarray]],
    loss_chunk_tokens: int,
    device: torch.device,
    precision: str,
) -> Objective:
    """A model with float32 parameters on its device, sharded where there are several processes.

    Every block is a unit of FSDP2. The embedding, which is the head too, and the final norm are one unit together, the
    outermost, which stays whole from the forward pass through the backward pass. Layers that share parameters belong to
    it, because two units cannot share one. Parameters are made and filled one by one, so that no process ever holds the
    whole model.

    Args:
        tensors: every parameter by its name, the same in all processes.
        precision: type in which several processes gather parameters and compute; gradients are summed in float32.
    """
    with torch.device("meta"):
        objective = Objective(Griffin(config), loss_chunk_tokens)
    if world_size() > 1:
        mesh = init_device_mesh(device.type, (world_size(),))
        policy = MixedPrecisionPolicy(param_dtype=getattr(torch, precision), reduce_dtype=torch.float32)
        for block in objective.griffin.layers if config.recursion is None else ():
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(objective, mesh=mesh, mp_policy=policy)
        objective.is_distributed_loading_by_transformers = True
    objective.to_empty(device=device)
    tie(objective.griffin, config)
    named = dict(objective.griffin.named_parameters())
    with torch.no_grad():
        for name, values in tensors:
            _fill(named[name], to_tensor(np.ascontiguousarray(values)).to(device, torch.float32))
    return objective


def _fill(parameter: nn.Parameter, values: Tensor) -> None:
    if isinstance(parameter, DTensor):
        # Every process has the values; none has to be told.
        values = distribute_tensor(values, parameter.device_mesh, parameter.placements, src_data_rank=None)
    parameter.copy_(values)


def whole_tensors(griffin: Griffin) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter as an array; a step of the iterator is a step of all processes."""
    for name, parameter in griffin.named_parameters():
        yield name, to_array(parameter.full_tensor() if isinstance(parameter, DTensor) else parameter)


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def num_started() -> int:
    """How many processes torchrun has started, whether they have joined or not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this is; the first writes what all share."""
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Waits until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
