"""The Triton RG-LRU, interpreted or on a GPU = the loop over time in float64: values, final state, every gradient."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from device import DEVICE, moved
from test_linear_scan import GRADIENTS, Inputs, draw, run
from tolerances import assert_agree
from torch import Tensor

from griffinlm.config import ModelConfig
from griffinlm.kernels.linear_scan import chunked, operator, reference
from griffinlm.kernels.linear_scan.operator import fused_rg_lru, fused_rg_lru_backward
from griffinlm.model import layers

pytestmark = pytest.mark.usefixtures("interpreted", "poisoned")

WHOLE = 2**15
ONE_BY_ONE = (WHOLE, 1, 1)
"""Tokens of a chunk, groups of a tile, tokens of a group: here each token by itself, in one chunk."""
IN_TILES = (WHOLE, 4, 2)
SPLIT = (8, 2, 2)
CUTS = pytest.mark.parametrize("how", [ONE_BY_ONE, IN_TILES, SPLIT], ids=["one by one", "in tiles", "split"])


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int, int]], None]:
    """Cuts sequences as told, and channels into blocks of 16."""

    def choose(how: tuple[int, int, int]) -> None:
        launch = operator._launch()
        tiling = launch.Tiling(*how, num_channels=16, num_warps=1, num_stages=1)

        def choose_tiling(_: Any, num_rows: int, num_tokens: int, *sizes: int) -> Any:
            whole = max(1 << (num_tokens - 1).bit_length(), tiling.num_groups * tiling.group_tokens)
            return tiling._replace(chunk_tokens=min(tiling.chunk_tokens, whole))

        monkeypatch.setattr(launch, "choose_tiling", choose_tiling)

    return choose


def fused(lengths: Tensor | None = None, **inputs: Tensor) -> tuple[Tensor, Tensor]:
    y, final = fused_rg_lru(**moved({**inputs, "lengths": lengths}))
    return y.cpu(), final.cpu()


def in_float64(inputs: Inputs) -> Inputs:
    return {n: v.double() if v is not None and v.is_floating_point() else v for n, v in inputs.items()}


def assert_fused_equals_loop(inputs: Inputs) -> None:
    dtype = inputs["x"].dtype
    y, final, gradients = run(fused, inputs)
    expected_y, expected_final, expected_gradients = run(reference.rg_lru, in_float64(inputs))
    assert (y.dtype, final.dtype) == (dtype, torch.float32)
    assert_agree(y, expected_y, "rg_lru", dtype, "triton", "y")
    assert_agree(final, expected_final, "rg_lru", torch.float32, "triton", "final state")
    for name, expected in expected_gradients.items():
        assert gradients[name].dtype == inputs[name].dtype
        assert_agree(gradients[name], expected, "rg_lru gradient", dtype, "triton", f"gradient of {name}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@CUTS
@pytest.mark.parametrize(("num_rows", "num_tokens", "width"), [(1, 1, 1), (3, 2, 5), (2, 21, 19)])
def test_fused_equals_loop_at_odd_sizes_whole_and_split(cut, dtype, how, num_rows, num_tokens, width):
    cut(how)
    assert_fused_equals_loop(draw(num_rows, num_tokens, width, dtype, seed=num_tokens))


@CUTS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_equals_loop_where_rows_have_lengths(cut, dtype, how):
    cut(how)
    inputs = draw(5, 13, 3, dtype)
    inputs["lengths"] = torch.tensor([0, 1, 6, 12, 13])
    assert_fused_equals_loop(inputs)
    y, final, gradients = run(fused, inputs)
    assert torch.equal(final[0], inputs["initial"][0])
    for row, length in enumerate(inputs["lengths"]):
        assert not y[row, length:].any()
        assert not any(gradients[name][row, length:].any() for name in ("x", "input_gate", "recurrence_gate"))


@CUTS
@pytest.mark.parametrize("every", [1, 3, 4])
def test_fused_equals_loop_where_documents_are_one_to_four_tokens(cut, how, every):
    """Documents of two and four start with every group and chunk, those of three anywhere in one."""
    cut(how)
    inputs = draw(2, 14, 3, torch.float32)
    inputs["reset"] = (torch.arange(14) % every == 0).expand(2, 14)
    assert_fused_equals_loop(inputs)


@pytest.mark.parametrize("a_param", [-200.0, -18.0, -12.0, 40.0])
@pytest.mark.parametrize("gate", [-60.0, 0.0, 60.0])
def test_extreme_decays_give_no_nan_and_equal_the_loop(cut, a_param, gate):
    """a_param -200 gives a = 1 exactly; at -12 and -18 its difference from 1 has few digits or none in float32."""
    cut(SPLIT)
    inputs = draw(1, 5, 4, torch.float32)
    inputs["a_param"] = torch.full((4,), a_param)
    inputs["recurrence_gate"] = torch.full((1, 5, 4), gate)
    assert_fused_equals_loop(inputs)


@pytest.mark.parametrize("a_param", [-20.0, -14.0, -9.0, -3.0, -0.6])
def test_scale_of_the_input_keeps_its_digits_next_to_a_decay_of_one(cut, a_param):
    """One token from an empty state: y is the scale alone, here to seven digits of itself."""
    cut(IN_TILES)
    inputs = draw(1, 1, 64, torch.float32, reset_share=0.0)
    inputs |= {"a_param": torch.full((64,), a_param), "initial": torch.zeros(1, 64)}
    inputs |= {"x": torch.ones(1, 1, 64), "input_gate": torch.full((1, 1, 64), 30.0)}
    inputs["recurrence_gate"] = torch.linspace(-6.0, 6.0, 64).reshape(1, 1, 64)
    y, _ = fused(**inputs)
    expected, _ = reference.rg_lru(**in_float64(inputs))
    assert_agree(y.double() / expected, torch.ones_like(expected), "rg_lru", torch.float32, "triton")


def test_split_equals_whole_and_repeats_its_bits(cut):
    inputs = draw(2, 29, 5, torch.float32)
    cut(IN_TILES)
    whole = run(fused, inputs)
    cut(SPLIT)
    split, again = run(fused, inputs), run(fused, inputs)
    for part, (found, repeated) in enumerate(zip(split[:2], again[:2], strict=True)):
        assert_agree(found, whole[part], "rg_lru", torch.float32, "triton")
        assert torch.equal(found, repeated)
    for name in GRADIENTS:
        assert_agree(split[2][name], whole[2][name], "rg_lru gradient", torch.float32, "triton", name)
        assert torch.equal(split[2][name], again[2][name])


def test_types_of_inputs_may_differ_and_each_gradient_has_its_own(cut):
    """As under autocast: gates of a matrix product in bfloat16, the rest in float32."""
    cut(SPLIT)
    inputs = draw(2, 9, 3, torch.float32)
    inputs |= {name: inputs[name].bfloat16() for name in ("input_gate", "recurrence_gate")}
    y, final, gradients = run(fused, inputs)
    expected_y, expected_final, expected_gradients = run(reference.rg_lru, in_float64(inputs))
    assert_agree(y, expected_y, "rg_lru", torch.float32, "triton")
    assert_agree(final, expected_final, "rg_lru", torch.float32, "triton")
    for name, expected in expected_gradients.items():
        assert gradients[name].dtype == inputs[name].dtype
        assert_agree(gradients[name], expected, "rg_lru gradient", gradients[name].dtype, "triton", name)


def test_inputs_need_not_be_contiguous_and_are_left_as_they_were(cut):
    cut(SPLIT)
    inputs = draw(3, 9, 5, torch.float32)
    expected = run(fused, inputs)
    before = {n: v.clone() for n, v in inputs.items()}
    strided = {n: torch.stack([v, v], dim=-1).flatten(-2)[..., ::2] for n, v in inputs.items()}
    assert not strided["x"].is_contiguous()
    y, final, gradients = run(fused, strided)
    assert torch.equal(y, expected[0])
    assert torch.equal(final, expected[1])
    assert all(torch.equal(gradient, expected[2][name]) for name, gradient in gradients.items())
    assert all(torch.equal(inputs[name], value) for name, value in before.items())


@pytest.mark.parametrize("lengths", [None, torch.tensor([0, 5])])
def test_operator_keeps_the_promises_that_torch_makes_for_it(cut, lengths):
    """Schema, fake shapes, autograd registration, and the same under tracing with symbolic sizes."""
    cut(SPLIT)
    inputs = moved(draw(2, 6, 3, torch.float32))
    lengths = None if lengths is None else lengths.to(DEVICE)
    inputs = {n: v.requires_grad_() if n in GRADIENTS else v for n, v in inputs.items()}
    torch.library.opcheck(fused_rg_lru, (*inputs.values(), lengths))
    y = torch.randn(2, 6, 3, device=DEVICE)
    plain = [v.detach() for v in inputs.values()]
    torch.library.opcheck(fused_rg_lru_backward, (*plain, lengths, y, torch.randn_like(y), plain[-1]))


def test_second_derivatives_are_refused(cut):
    cut(SPLIT)
    inputs = draw(1, 3, 2, torch.float32)
    inputs["x"].requires_grad_()
    y, _ = fused(**inputs)
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


class Layer(torch.nn.Module):
    """A layer of the model, gates and scan."""

    def __init__(self, rg_lru: layers.RgLru) -> None:
        super().__init__()
        self.rg_lru = rg_lru

    def forward(self, x: Tensor, reset: Tensor, initial: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.rg_lru(x, self.rg_lru.gates(x), reset, initial, lengths)


def small_layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    """A layer whose scan is the GPU's, wherever its tensors are."""
    monkeypatch.setattr(layers, "rg_lru", fused_rg_lru)
    config = ModelConfig.preset("tiny-griffin").recurrent
    assert config is not None
    layer = layers.RgLru(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return Layer(layer).to(DEVICE)


def test_layer_compiled_without_graph_breaks_equals_the_layer(cut, monkeypatch):
    cut(SPLIT)
    layer = small_layer(monkeypatch)
    width = layer.rg_lru.a_param.shape[0]
    x = torch.randn(2, 5, width, requires_grad=True, device=DEVICE)
    reset, initial = torch.zeros(2, 5, dtype=torch.bool, device=DEVICE), torch.randn(2, width, device=DEVICE)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    leaves = [x, *layer.parameters()]
    found, expected = compiled(x, reset, initial, None), layer(x, reset, initial, None)
    # torch takes products apart to trace them, and not every processor then adds them in the same order.
    for one, other in zip(found, expected, strict=True):
        assert_agree(one, other, "rg_lru", torch.float32, "triton")
    gradients = (torch.autograd.grad(y.sum() + final.sum(), leaves) for y, final in (found, expected))
    for one, other in zip(*gradients, strict=True):
        assert_agree(one, other, "rg_lru gradient", torch.float32, "triton")


def test_layer_exports_as_one_call_of_any_length(cut, monkeypatch):
    cut(SPLIT)
    layer = small_layer(monkeypatch)
    width = layer.rg_lru.a_param.shape[0]

    def arguments(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, None]:
        reset = torch.zeros(2, num_tokens, dtype=torch.bool, device=DEVICE)
        return torch.randn(2, num_tokens, width, device=DEVICE), reset, torch.randn(2, width, device=DEVICE), None

    tokens = {1: torch.export.Dim("tokens", min=2)}
    program = torch.export.export(layer, arguments(5), dynamic_shapes=(tokens, tokens, None, None))
    calls = [node for node in program.graph.nodes if node.target is torch.ops.griffinlm.rg_lru.default]
    assert len(calls) == 1
    given = arguments(9)
    for found, expected in zip(program.module()(*given), layer(*given), strict=True):
        assert_agree(found, expected, "rg_lru", torch.float32, "triton")


def test_cpu_tensors_are_never_given_to_the_kernels(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("fused")

    monkeypatch.setattr(operator, "fused_rg_lru", refuse)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        inputs = draw(2, 9, 3, dtype)
        for found, expected in zip(operator.rg_lru(**inputs), chunked.rg_lru(**inputs), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("direction", ["FORWARD", "BACKWARD"])
@pytest.mark.parametrize("num_rows", [1, 2, 8, 50, 200])
@pytest.mark.parametrize("num_tokens", [1, 2, 63, 1000, 8192, 100_000])
def test_tiling_splits_what_would_leave_the_device_idle_and_nothing_else(direction, num_rows, num_tokens):
    launch = operator._launch()
    tiling = launch.choose_tiling(getattr(launch, direction), num_rows, num_tokens, 2560, 132)
    num_chunks = -(-num_tokens // tiling.chunk_tokens)
    assert tiling.chunk_tokens.bit_count() == 1
    assert tiling.chunk_tokens % (tiling.num_groups * tiling.group_tokens) == 0
    assert tiling.chunk_tokens <= launch.LARGEST_CHUNK_TOKENS
    if num_rows >= 8 and num_tokens <= launch.LARGEST_CHUNK_TOKENS:
        assert num_chunks == 1
    if num_tokens >= 8192:
        assert num_rows * 40 * num_chunks >= launch.PROGRAMS_A_PROCESSOR * 132 // 2
