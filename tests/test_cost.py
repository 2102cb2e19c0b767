"""Costs counted from a configuration against torch's own counters on small models."""

import dataclasses
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from griffinlm.config import AttentionConfig, ModelConfig, RecurrentConfig, RecursionConfig
from griffinlm.cost import (
    Losses,
    num_visible_pairs,
    reading_operations,
    training_memory,
    training_operations,
)
from griffinlm.model import Griffin
from griffinlm.presets import PRESETS
from griffinlm.train.distillation import Distillation
from griffinlm.train.estimate import losses_of
from griffinlm.train.exits import ExitObjective
from griffinlm.train.exits_config import ExitsConfig
from griffinlm.train.objective import Objective

TINY = ("tiny-griffin", "tiny-hawk", "tiny-gemma")
RECURSIVE = {
    "recursive griffin": dataclasses.replace(
        PRESETS["tiny-griffin"], num_layers=7, recursion=RecursionConfig(2, rank=3)
    ),
    "recursive gemma": dataclasses.replace(PRESETS["tiny-gemma"], num_layers=4, recursion=RecursionConfig(2, "all", 5)),
}
CONFIGS = {**{preset: PRESETS[preset] for preset in TINY}, **RECURSIVE}
ACTIVATION_TOLERANCE = 0.1
"""Share by which the activations counted may differ from the tensors that are kept."""
PEAK_TOLERANCE = 0.15
"""Share by which the whole memory counted may differ from the growth of a process that trains."""


def attention_excess(config: ModelConfig, num_tokens: int) -> int:
    """Operations that a block of queries spends on pairs that no token sees, where one block holds all tokens."""
    num_blocks = sum(kind != "recurrent" for kind in config.block_kinds)
    if config.attention is None or not num_blocks:
        return 0
    inner = config.attention.num_heads * config.attention.head_size
    return 4 * inner * num_blocks * num_tokens**2 - reading_operations(config, num_tokens).attention


def counted(call) -> int:
    # The counter knows nothing of the CPU's fused attention.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


@given(num_tokens=st.integers(1, 60), window=st.one_of(st.none(), st.integers(1, 70)))
def test_visible_pairs_are_those_of_the_mask(num_tokens, window):
    distance = torch.arange(num_tokens)[:, None] - torch.arange(num_tokens)
    mask = (distance >= 0) & (distance <= (num_tokens if window is None else window))
    assert num_visible_pairs(num_tokens, window) == int(mask.sum())


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_tokens", [2, 5, 30])
def test_reading_operations_equal_those_that_torch_counts(name, num_tokens):
    config = CONFIGS[name]
    model, tokens = Griffin(config), torch.zeros(1, num_tokens, dtype=torch.int64)
    with torch.no_grad():
        found = counted(lambda: model(tokens))
    assert found == reading_operations(config, num_tokens).total + attention_excess(config, num_tokens)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_tokens", [2, 5, 30])
def test_training_operations_equal_those_that_torch_counts(name, num_tokens):
    config = CONFIGS[name]
    model, tokens = Objective(Griffin(config), 7), torch.zeros(1, num_tokens, dtype=torch.int64)
    positions = torch.arange(num_tokens)[None]
    found = counted(lambda: model(tokens, positions, tokens)["loss"].backward())
    excess = 3 * attention_excess(config, num_tokens)
    assert found == training_operations(config, num_tokens, recompute=False) + excess


@pytest.mark.parametrize("has_teacher", [False, True])
@pytest.mark.parametrize("loss", ["weighted", "aggressive"])
@pytest.mark.parametrize("name", RECURSIVE)
def test_operations_of_training_exits_equal_those_that_torch_counts(name, loss, has_teacher):
    config, exits, num_tokens = RECURSIVE[name], ExitsConfig(loss), 30
    teacher = dataclasses.replace(config, width=24, recursion=None) if has_teacher else None
    inner = Objective(Griffin(config), 7)
    if teacher is not None:
        inner = Distillation(inner.griffin, Griffin(teacher), 7, 0.5)
    model, tokens = ExitObjective(inner, exits, 10), torch.zeros(1, num_tokens, dtype=torch.int64)
    found = counted(lambda: model(tokens, torch.arange(num_tokens)[None], tokens)["loss"].backward())
    excess = 3 * attention_excess(config, num_tokens)
    excess += 0 if teacher is None else attention_excess(teacher, num_tokens)
    losses = losses_of(exits, config, teacher)
    assert losses.num_exits == 1
    assert found == training_operations(config, num_tokens, recompute=False, losses=losses) + excess


def test_the_head_asks_behind_every_loop_but_the_last_whether_tokens_leave():
    config = dataclasses.replace(RECURSIVE["recursive griffin"], num_layers=9, recursion=RecursionConfig(3))
    assert losses_of(ExitsConfig("weighted", skips=True), config, None) == Losses(num_exits=2, num_asked=2)
    assert losses_of(ExitsConfig("aggressive", skips=True), config, None) == Losses(num_exits=2, num_asked=4)


def test_a_teacher_and_exits_add_to_the_memory_what_they_keep():
    config, teacher = RECURSIVE["recursive griffin"], PRESETS["tiny-griffin"]
    plain = training_memory(config, 2, 32, "float32", loss_chunk_tokens=16)
    taught = training_memory(config, 2, 32, "float32", loss_chunk_tokens=16, losses=Losses(2, 2, teacher, 3))
    assert plain.teacher == 0
    assert taught.teacher == 4 * teacher.num_parameters
    # Two more gradients of the head, and the logits of a chunk that are learned.
    assert taught.logits - plain.logits == 4 * config.vocab_size * (2 * config.width + 16)
    assert taught.activations - plain.activations == 2 * 32 * 3 * 4 * config.width * 2
    assert taught[:4] == plain[:4]


def test_recurrentgemma_2b_reads_a_token_with_twice_its_parameters_and_its_windows():
    config = PRESETS["recurrentgemma-2b"]
    one = reading_operations(config, 1)
    # All matrices twice (norms, biases, convolutions and a_param are 0.04%), and one pair a head in 8 blocks.
    assert one.total == pytest.approx(2 * config.num_parameters, rel=1e-3)
    assert one.attention == 8 * 4 * 2560
    far = reading_operations(config, 2**20).attention / 2**20
    assert far == pytest.approx(8 * 4 * 2560 * 2049, rel=1e-2)


SIZES = ModelConfig(
    vocab_size=64,
    width=48,
    num_layers=4,
    block_pattern=("recurrent", "recurrent", "local_attention"),
    mlp_hidden=160,
    recurrent=RecurrentConfig(width=64, num_gate_blocks=4),
    attention=AttentionConfig(num_heads=3, head_size=16, window_tokens=40),
)


def kept_bytes(config: ModelConfig, rows: int, row_tokens: int, precision: str, recompute: bool) -> int:
    """Bytes of all tensors, weights and their casts left out, that the backward pass of the blocks finds."""
    model = Objective(Griffin(config), loss_chunk_tokens=16)
    model.griffin.gradient_checkpointing = recompute
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    matrices = {parameter.numel() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.numel() not in matrices:
            kept[storage.data_ptr()] = storage
        return tensor

    tokens = torch.zeros(rows, row_tokens, dtype=torch.int64)
    positions = torch.arange(row_tokens).expand(rows, -1)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"),
    ):
        model(tokens, positions, tokens)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "config",
    [SIZES, dataclasses.replace(SIZES, block_pattern=("recurrent",), attention=None)],
    ids=["griffin", "hawk"],
)
def test_activations_counted_are_the_tensors_kept(config, precision, recompute):
    rows, row_tokens = 8, 96
    deep = dataclasses.replace(config, num_layers=7)
    found = kept_bytes(deep, rows, row_tokens, precision, recompute) - kept_bytes(
        config, rows, row_tokens, precision, recompute
    )
    expected = (
        training_memory(deep, rows, row_tokens, precision, recompute=recompute).activations
        - training_memory(config, rows, row_tokens, precision, recompute=recompute).activations
    )
    assert expected == pytest.approx(found, rel=ACTIVATION_TOLERANCE)


def test_weights_gradients_and_moments_are_divided_among_devices():
    config = PRESETS["recurrentgemma-2b"]
    one, eight = (training_memory(config, 1, 2048, num_devices=number) for number in (1, 8))
    assert one.weights == one.gradients == one.optimizer // 2 == 4 * config.num_parameters
    for field in ("weights", "gradients", "optimizer"):
        assert getattr(eight, field) == pytest.approx(getattr(one, field) / 8, rel=1e-6)
    assert eight.activations == one.activations


@pytest.mark.parametrize("preset", TINY)
def test_operations_of_training_with_recomputed_blocks_equal_those_that_torch_counts(preset):
    config, num_tokens = PRESETS[preset], 30
    model, tokens = Objective(Griffin(config), 7), torch.zeros(1, num_tokens, dtype=torch.int64)
    model.griffin.gradient_checkpointing = True
    positions = torch.arange(num_tokens)[None]
    found = counted(lambda: model(tokens, positions, tokens)["loss"].backward())
    excess = 4 * attention_excess(config, num_tokens)
    assert found == training_operations(config, num_tokens, recompute=True) + excess


GROWTH_OF_A_TRAINING_PROCESS = """
import json, re, sys
import torch
from griffinlm.checkpoint import initial_tensors
from griffinlm.config import ModelConfig
from griffinlm.train.config import OptimizerConfig
from griffinlm.train.optimizer import build_optimizer
from griffinlm.train.sharding import build_objective

def train(config, row_tokens, recompute):
    objective = build_objective(config, initial_tensors(config, 0), 2048, torch.device("cpu"), "float32")
    objective.griffin.gradient_checkpointing = recompute
    optimizer = build_optimizer(objective.griffin.named_parameters(), OptimizerConfig(1e-3))
    tokens = torch.zeros(1, row_tokens, dtype=torch.int64)
    for _ in range(2):
        objective(tokens, torch.arange(row_tokens)[None], tokens)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

def bytes_of(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1])

torch.set_num_threads(1)
train(ModelConfig.preset("tiny-griffin"), 16, False)  # what any run loads
before = bytes_of("VmRSS")
train(ModelConfig.from_dict(json.loads(sys.argv[1])), 2048, sys.argv[2] == "True")
print(bytes_of("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a process its largest resident set")
@pytest.mark.parametrize("recompute", [False, True])
def test_memory_counted_is_the_growth_of_a_process_that_trains(recompute):
    eyas = PRESETS["eyas"]
    assert eyas.recurrent is not None
    recurrent = dataclasses.replace(eyas.recurrent, width=512)
    config = dataclasses.replace(eyas, width=512, mlp_hidden=1536, recurrent=recurrent)
    command = [sys.executable, "-c", GROWTH_OF_A_TRAINING_PROCESS, json.dumps(config.to_dict()), str(recompute)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = training_memory(config, 1, 2048, "float32", recompute=recompute).total
    assert expected == pytest.approx(int(done.stdout), rel=PEAK_TOLERANCE)
