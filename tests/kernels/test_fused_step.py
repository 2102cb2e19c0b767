"""A step by fused kernels, interpreted or on a GPU = a step by the model's own operators: logits and states."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from device import DEVICE
from small_models import PATTERN_VOCAB, PATTERNS, pattern_config, random_model
from tolerances import assert_agree
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from griffinlm.config import ModelConfig, RecursionConfig
from griffinlm.kernels.token_step import launch
from griffinlm.model import fused_step
from griffinlm.model.blocks import Layout
from griffinlm.model.decoding import FUSED, PLAIN, TokenReader, choose_reader, read_token
from griffinlm.model.fused_step import is_fused
from griffinlm.model.griffin import Griffin
from griffinlm.model.state import new_state, to_named

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned")

State = dict[str, Tensor]
NUM_SLOTS, CAPACITY, NUM_TOKENS = 4, 16, 9


def small_config(pattern: str, recursion: RecursionConfig | None = None) -> ModelConfig:
    """With a cap, and without biases where attention is global."""
    return replace(pattern_config(pattern, recursion), use_bias=pattern != "Gemma", logit_soft_cap=2.0)


@torch.inference_mode()
def read_by(reader: TokenReader, model: Griffin, num_rows: int, window_dtype: str = "float32") -> tuple[Tensor, State]:
    """Logits of tokens one by one in slots in no order, and what all slots then hold; the last one is nobody's."""
    capacity = CAPACITY if model.config.needs_capacity else None
    precision = str(model.embedding.weight.dtype).removeprefix("torch.")
    state = new_state(model.config, NUM_SLOTS, capacity, window_dtype, precision, DEVICE)
    slots = torch.tensor([2, 0, 1][:num_rows], device=DEVICE)
    tokens = ((slots * 7 + step + 3) % PATTERN_VOCAB for step in range(NUM_TOKENS))
    read = torch.stack([read_token(model, state, slots, given, reader) for given in tokens])
    return read, to_named(model.config, state)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_steps_by_fused_kernels_equal_those_of_the_models_operators(pattern, num_rows):
    model = random_model(small_config(pattern), seed=1).to(DEVICE)
    (found, state), (expected, expected_state) = (read_by(reader, model, num_rows) for reader in (FUSED, PLAIN))
    assert_agree(found, expected, "model", "float32", "torch")
    for name, kept in expected_state.items():
        assert_agree(state[name], kept, "model", "float32", "torch", name)


@pytest.mark.parametrize("tie", ["matrices", "all"])
def test_loops_that_share_layers_are_fused_too(tie):
    config = small_config("Griffin", RecursionConfig(num_loops=2, tie=tie))
    model = random_model(config, seed=1).to(DEVICE)
    (found, state), (expected, expected_state) = (read_by(reader, model, 2) for reader in (FUSED, PLAIN))
    assert_agree(found, expected, "model", "float32", "torch")
    assert_agree(state["num_tokens"], expected_state["num_tokens"], "model", "float32", "torch")


def test_loops_that_skip_read_at_positions_of_their_own():
    config = small_config("Griffin", RecursionConfig(num_loops=2, skips=True))
    model = random_model(config, seed=1).to(DEVICE)
    states = []
    for reader in (FUSED, PLAIN):
        state = new_state(config, 2, device=DEVICE)
        assert state.num_skipped is not None
        state.num_tokens[:], state.num_skipped[0] = 8, 3
        slots = torch.tensor([1, 0], device=DEVICE)
        logits = [read_token(model, state, slots, slots + step, reader) for step in range(4)]
        states.append({"logits": torch.stack(logits), **to_named(config, state)})
    for name, expected in states[1].items():
        assert_agree(states[0][name], expected, "model", "float32", "torch", name)


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("window_dtype", ["bfloat16", "float16"])
def test_in_bfloat16_nothing_is_lost_that_the_models_operators_keep(num_rows, window_dtype):
    """Both beside the same weights in float32: fewer numbers are rounded, so on average the distance is no larger."""
    model = random_model(small_config("Griffin"), seed=1).to(torch.bfloat16).to(DEVICE)
    found, plain = (read_by(reader, model, num_rows, window_dtype)[0] for reader in (FUSED, PLAIN))
    expected = read_by(PLAIN, model.float(), num_rows)[0]
    distances = [float((logits - expected).square().mean().sqrt()) for logits in (found, plain)]
    assert 0.0 < distances[0] <= distances[1]
    assert distances[1] <= 0.02 * float(expected.abs().max())


def test_steps_are_fused_where_it_is_worth_while():
    config = small_config("Griffin")
    for dtype, most in ((torch.bfloat16, 32), (torch.float32, 1)):
        assert [is_fused(config, dtype, rows) for rows in (1, most, most + 1)] == [True, True, False]
    assert not is_fused(config, torch.float64, 1)
    # A norm's scale is applied before its division by the root of the mean, which could be too much for float16.
    assert not is_fused(config, torch.float16, 1)
    for rank in (0, 2):
        recursive = small_config("Griffin", RecursionConfig(num_loops=2, rank=rank))
        assert is_fused(recursive, torch.bfloat16, 4) == (rank == 0)
    x = torch.zeros(1, 1, 4, dtype=torch.bfloat16, device=DEVICE)
    assert choose_reader(config, x) is (FUSED if x.is_cuda else PLAIN)
    assert choose_reader(config, x.cpu()) is PLAIN


class Operators(TorchDispatchMode):
    """Collects the names of torch's operators that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_blocks_are_read_by_the_kernels_alone(monkeypatch):
    """Five kernels a recurrent block, attention and four an attention block, one for the logits; torch makes views."""
    launched = []

    def hidden(name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            launched.append(name)
            # What the interpreter does is no part of the step.
            with _disable_current_modes():
                return getattr(launch, name)(*arguments, **options)

        return call

    names = ("linear", "gated_hidden", "recurrent_inputs", "recurrent_outputs", "attention_inputs")
    monkeypatch.setattr(fused_step, "_kernels", lambda: SimpleNamespace(**{name: hidden(name) for name in names}))
    model = random_model(small_config("Griffin"), seed=1).to(DEVICE)
    state = new_state(model.config, 2, device=DEVICE)
    slots, positions = torch.tensor([1, 0], device=DEVICE), torch.tensor([[3], [4]], device=DEVICE)
    layout = Layout(positions, positions == 0, positions[:, 0], None)
    x, operators = torch.ones(2, 1, model.config.width, device=DEVICE), Operators()

    def read(x: Tensor) -> None:
        for step, block in zip(model.config.plan(), model.layers, strict=True):
            x = FUSED.block(block, x, layout, state.blocks[step.depth], slots)
        FUSED.logits(model, x)

    # What is computed once is there after the first time.
    read(x)
    launched.clear()
    with operators:
        read(x)
    num_recurrent, num_attention = (model.config.block_kinds.count(kind) for kind in ("recurrent", "local_attention"))
    assert len(launched) == 5 * num_recurrent + 4 * num_attention + 1
    computing = [name for name in operators.names if not name.startswith(("aten::select", "aten::unsqueeze"))]
    assert computing == ["griffinlm::decode_attention", "aten::view"] * num_attention
