"""Under torch.compile: a training step is one graph with the step's own loss and gradients, and blocks read tokens."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from device import DEVICE, HAS_GPU
from small_models import random_model
from tolerances import assert_agree
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from griffinlm.config import ModelConfig
from griffinlm.model.decoding import PLAIN, compiled_reader, read_token
from griffinlm.model.state import new_state, to_named
from griffinlm.train.objective import Objective

BACKEND = "inductor" if HAS_GPU else "aot_eager"
PACKED = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8], [4, 5, 6, 7, 8, 9, 10, 0, 1, 2, -1, -1]])


def objective(is_recomputed: bool) -> Objective:
    """Of a Griffin with a block of every kind that trains."""
    config = dataclasses.replace(ModelConfig.preset("tiny-griffin"), num_layers=3)
    model = random_model(config, seed=1).to(DEVICE)
    model.gradient_checkpointing = is_recomputed
    return Objective(model, loss_chunk_tokens=8)


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(250, (2, 12), generator=torch.Generator().manual_seed(0))
    labels = torch.where(PACKED >= 0, tokens.roll(-1, 1), -100)
    return tokens.to(DEVICE), PACKED.to(DEVICE), labels.to(DEVICE)


def test_training_step_is_one_graph():
    torch._dynamo.reset()
    explained = torch._dynamo.explain(objective(is_recomputed=False))(*batch())
    assert (explained.graph_count, explained.graph_break_count) == (1, 0), explained.break_reasons


@pytest.mark.parametrize("is_recomputed", [False, True])
def test_compiled_step_equals_the_step(is_recomputed):
    """Packed documents, and padding at the end of a row; `fullgraph` refuses a graph break."""
    plain = objective(is_recomputed)
    torch._dynamo.reset()
    compiled = torch.compile(plain, fullgraph=True, backend=BACKEND)
    parameters = dict(plain.named_parameters())
    losses, gradients = [], []
    for step in (plain, compiled):
        loss = step(*batch(), num_items_in_batch=20)["loss"]
        losses.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, list(parameters.values())))
    assert_agree(losses[1], losses[0], "model", "float32", "torch")
    for name, found, expected in zip(parameters, gradients[1], gradients[0], strict=True):
        assert_agree(found, expected, "model", "float32", "torch", name)


@torch.inference_mode()
def test_tokens_read_by_compiled_blocks_equal_those_read_plainly():
    """Rows in any number, behind the window too; every kind of block is compiled for one row and for more."""
    model = random_model(ModelConfig.preset("tiny-griffin"), seed=1).to(DEVICE)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for num_rows in (1, 2, 3, 4):
        states, read = [], []
        slots = torch.arange(num_rows, device=DEVICE)
        for reader in (PLAIN, compiled_reader(BACKEND)):
            states.append(new_state(model.config, 4, None, device=DEVICE))
            tokens = (slots * 7 + step + 3 for step in range(12))
            read.append(torch.stack([read_token(model, states[-1], slots, given, reader) for given in tokens]))
        assert_agree(read[1], read[0], "model", "float32", "torch")
        others = to_named(model.config, states[1])
        for name, kept in to_named(model.config, states[0]).items():
            assert_agree(others[name], kept, "model", "float32", "torch", name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2 * len(set(model.config.block_kinds))


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    backend = "nccl" if HAS_GPU else "gloo"
    dist.init_process_group(backend, f"file://{tmp_path}/processes", rank=0, world_size=1)
    yield init_device_mesh(DEVICE.type, (1,))
    dist.destroy_process_group()


def test_step_of_sharded_and_compiled_blocks_equals_the_step(one_process):
    """FSDP2 around blocks that are compiled each, as on several devices."""
    plain, sharded = objective(is_recomputed=False), objective(is_recomputed=False)
    torch._dynamo.reset()
    for block in sharded.griffin.layers:
        block.compile(fullgraph=True, backend=BACKEND)
        fully_shard(block, mesh=one_process)
    fully_shard(sharded, mesh=one_process)
    for step in (plain, sharded):
        step(*batch(), num_items_in_batch=20)["loss"].backward()
    expected = dict(plain.named_parameters())
    for name, parameter in sharded.named_parameters():
        assert isinstance(parameter.grad, DTensor)
        assert_agree(parameter.grad.full_tensor(), expected[name].grad, "model", "float32", "torch", name)
