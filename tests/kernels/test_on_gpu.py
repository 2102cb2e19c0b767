"""On a GPU, at the sizes of RecurrentGemma-2B: the kernels = their definitions in float64 from the same numbers."""

import pytest
import torch
from device import DEVICE, precise
from tolerances import assert_agree
from torch import Tensor

from griffinlm.config import ModelConfig
from griffinlm.kernels.linear_scan import chunked
from griffinlm.kernels.linear_scan.operator import rg_lru
from griffinlm.kernels.local_attention.operator import attention, decode_attention
from griffinlm.kernels.local_attention.reference import attention as attention_by_definition
from griffinlm.kernels.token_step import launch, reference
from griffinlm.kernels.token_step.reference import Linear, Norm
from griffinlm.model.engine import TorchEngine
from griffinlm.model.griffin import Griffin
from griffinlm.train.objective import Objective

WIDTH, NUM_HEADS, HEAD_SIZE, WINDOW = 2560, 10, 256, 2048


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, device=DEVICE).to(dtype)


@pytest.mark.parametrize(("num_rows", "num_tokens"), [(64, 1), (3, 5), (8, 1000), (1, 8192), (2, 4097)])
@pytest.mark.parametrize("has_lengths", [False, True])
def test_scan_equals_definition_few_tokens_whole_and_split(num_rows, num_tokens, has_lengths):
    x, input_gate, recurrence_gate = (normal(num_rows, num_tokens, WIDTH) for _ in range(3))
    a_param, initial = torch.linspace(-9.0, -2.0, WIDTH, device=DEVICE), normal(num_rows, WIDTH, dtype=torch.float32)
    reset = torch.rand(num_rows, num_tokens, device=DEVICE) < 1 / 300
    lengths = torch.randint(num_tokens + 1, (num_rows,), device=DEVICE) if has_lengths else None
    leaves = [t.requires_grad_() for t in (x, input_gate, recurrence_gate, a_param, initial)]
    precise = [t.detach().double().requires_grad_() for t in leaves]
    results = []
    for operator, (x, *gates, a, h) in ((rg_lru, leaves), (chunked.rg_lru, precise)):
        y, final = operator(x, *gates, a, reset, h, lengths)
        torch.manual_seed(1)
        loss = (y * torch.randn_like(y, dtype=torch.float32)).sum() + (final * torch.randn_like(initial)).sum()
        results.append((y, final, *torch.autograd.grad(loss, [x, *gates, a, h])))
    (y, final, *gradients), (expected_y, expected_final, *expected_gradients) = results
    assert_agree(y, expected_y, "rg_lru", torch.bfloat16, "triton", "y")
    assert_agree(final, expected_final, "rg_lru", torch.bfloat16, "triton", "final state")
    for name, found, expected in zip(("x", "i", "r", "a", "h"), gradients, expected_gradients, strict=True):
        assert_agree(found, expected, "rg_lru gradient", torch.bfloat16, "triton", name)


@pytest.mark.parametrize("num_rows", [1, 5, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_decoding_equals_definition_and_repeats_its_bits_in_a_graph(num_rows, dtype):
    query, key, value = (
        normal(num_rows, NUM_HEADS, HEAD_SIZE, dtype=dtype),
        *normal(2, num_rows, HEAD_SIZE, dtype=dtype),
    )
    keys, values = (normal(num_rows + 1, WINDOW, HEAD_SIZE, dtype=dtype) for _ in range(2))
    slots, positions = torch.randperm(num_rows, device=DEVICE), torch.randint(5000, (num_rows,), device=DEVICE)
    rings = tuple(ring[slots].double() for ring in (keys, values))
    new = (t.double()[:, None] for t in (query, key, value))
    expected = attention_by_definition(*new, positions[:, None], WINDOW, (*rings, positions))[:, 0]
    arguments = query, key, value, keys, values, slots, positions
    before = keys.clone(), values.clone()
    found = decode_attention(*arguments)
    assert_agree(found, expected, "attention", dtype, "triton")
    assert torch.equal(keys[slots, positions % WINDOW], key)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = decode_attention(*arguments)
    keys.copy_(before[0])
    values.copy_(before[1])
    graph.replay()
    assert torch.equal(captured, found)
    assert torch.equal(values[slots, positions % WINDOW], value)


@pytest.mark.parametrize(
    ("num_rows", "dtype"), [(1, torch.float32), *((rows, torch.bfloat16) for rows in (1, 5, 16, 64))]
)
@pytest.mark.parametrize("name", ["linear", "logits", "hidden", "recurrent_inputs", "recurrent_outputs", "attention"])
def test_kernels_of_a_step_equal_their_definitions_and_repeat_their_bits(name, num_rows, dtype):
    """Matrices of RecurrentGemma-2B, whose products have numbers of about 1."""
    hidden_size, vocab_size, num_blocks = 7680, 256_000, 10

    def linear(*shape: int) -> Linear:
        bias = None if name in ("logits", "attention") else normal(*shape[:-1], dtype=dtype)
        return Linear(normal(*shape, dtype=dtype) / shape[-1] ** 0.5, bias)

    def gates() -> Linear:
        size = WIDTH // num_blocks
        return Linear(normal(num_blocks, size, size, dtype=dtype) / 16, normal(num_blocks, size, dtype=dtype))

    x, norm = normal(num_rows, WIDTH, dtype=dtype), Norm(normal(WIDTH, dtype=dtype) / 10, 1e-6)
    slots = torch.randperm(num_rows + 2, device=DEVICE)[:num_rows]
    positions = torch.randint(5000, (num_rows,), device=DEVICE)
    positions[0] = 0
    kept = []
    if name == "linear":
        arguments = (normal(num_rows, hidden_size, dtype=dtype), linear(WIDTH, hidden_size), None, x)
    elif name == "logits":
        name, arguments = "linear", (x, linear(vocab_size, WIDTH), norm, None, 30.0, torch.float32)
    elif name == "hidden":
        name, arguments = "gated_hidden", (x, norm, linear(hidden_size, WIDTH), linear(hidden_size, WIDTH))
    elif name == "recurrent_inputs":
        taps = Linear(normal(4, WIDTH, dtype=dtype), normal(WIDTH, dtype=dtype))
        kept = [normal(num_rows + 2, 3, WIDTH, dtype=dtype)]
        arguments = (x, norm, linear(WIDTH, WIDTH), linear(WIDTH, WIDTH), taps, *kept, slots, positions)
    elif name == "recurrent_outputs":
        kept = [normal(num_rows + 2, WIDTH, dtype=torch.float32)]
        a_param = torch.linspace(-9.0, -2.0, WIDTH, device=DEVICE).to(dtype)
        gate = normal(num_rows, WIDTH, dtype=dtype)
        arguments = (x, gate, gates(), gates(), a_param, *kept, slots, positions)
    else:
        # What whole numbers give in float32 they give in float64.
        frequencies = 2.0 ** -torch.arange(64, device=DEVICE).clamp(max=12).float()
        layers = (linear(NUM_HEADS * HEAD_SIZE, WIDTH), linear(HEAD_SIZE, WIDTH), linear(HEAD_SIZE, WIDTH))
        name, arguments = "attention_inputs", (x, norm, *layers, positions, frequencies)
    expected_arguments = precise(arguments)
    before = [memory.clone() for memory in kept]
    expected = getattr(reference, name)(*expected_arguments)
    found = getattr(launch, name)(*arguments)
    pairs = [(found, expected)] if isinstance(found, Tensor) else list(zip(found, expected, strict=True))
    memories = zip(arguments, expected_arguments, strict=True)
    pairs += [(own, theirs) for own, theirs in memories if any(own is memory for memory in kept)]
    for ours, theirs in pairs:
        assert_agree(ours, theirs, "token step", dtype, "triton", name)
    for memory, old in zip(kept, before, strict=True):
        memory.copy_(old)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = getattr(launch, name)(*arguments)
    for memory, old in zip(kept, before, strict=True):
        memory.copy_(old)
    graph.replay()
    again = [captured] if isinstance(captured, Tensor) else captured
    assert all(torch.equal(one, other) for one, (other, _) in zip(again, pairs, strict=False))


@pytest.mark.parametrize(("num_rows", "num_tokens"), [(1, 40), (2, 300), (1, 4500)])
@pytest.mark.parametrize("window", [WINDOW, None])
def test_prompts_behind_a_ring_equal_the_definition(num_rows, num_tokens, window):
    query = normal(num_rows, num_tokens, NUM_HEADS, HEAD_SIZE)
    key, value = (normal(num_rows, num_tokens, HEAD_SIZE) for _ in range(2))
    keys, values = (normal(num_rows, WINDOW, HEAD_SIZE) for _ in range(2))
    num_before = torch.full((num_rows,), 1000, device=DEVICE)
    positions = num_before[:, None] + torch.arange(num_tokens, device=DEVICE)
    positions[0, num_tokens // 2 :] = torch.arange(num_tokens - num_tokens // 2, device=DEVICE)
    found = attention(query, key, value, positions, window, (keys, values, num_before))
    precise = (t.double() for t in (query, key, value))
    ring = keys.double(), values.double(), num_before
    expected = attention_by_definition(*precise, positions, window, ring)
    assert_agree(found, expected, "attention", torch.bfloat16, "triton")


@pytest.mark.parametrize("num_heads", [NUM_HEADS, 8])
def test_gradients_of_attention_equal_those_of_the_definition(num_heads):
    """Relative to the largest number of a gradient, which sums over queries and heads."""
    num_tokens = 2500
    query, key, value = normal(2, num_tokens, num_heads, HEAD_SIZE), *normal(2, 2, num_tokens, HEAD_SIZE)
    positions = torch.arange(num_tokens, device=DEVICE).repeat(2, 1)
    positions[1, 700:] = torch.arange(num_tokens - 700, device=DEVICE)
    weights = torch.randn_like(query, dtype=torch.float32)
    leaves = [t.requires_grad_() for t in (query, key, value)]
    precise = [t.detach().double().requires_grad_() for t in leaves]
    found, expected = attention(*leaves, positions, WINDOW), attention_by_definition(*precise, positions, WINDOW)
    assert_agree(found, expected, "attention", torch.bfloat16, "triton")
    gradients = [
        torch.autograd.grad((out * weights).sum(), given) for out, given in ((found, leaves), (expected, precise))
    ]
    for name, ours, theirs in zip(("query", "key", "value"), *gradients, strict=True):
        largest = theirs.abs().max()
        assert_agree(ours / largest, theirs / largest, "attention", torch.bfloat16, "triton", name)


def test_compiled_training_step_in_bfloat16_has_the_gradients_of_the_step_in_float32():
    """Packed documents through FlexAttention, the scan and autocast: directions agree to bfloat16's digits."""
    config = ModelConfig.from_dict(
        {
            **ModelConfig.preset("tiny-griffin").to_dict(),
            "num_layers": 3,
            "attention": {"num_heads": 2, "head_size": 64, "window_tokens": 100, "rope_fraction": 0.5},
        }
    )
    model = Griffin(config).to(DEVICE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(config.vocab_size, (2, 384), device=DEVICE)
    positions = torch.cat([torch.arange(250), torch.arange(134)]).repeat(2, 1).to(DEVICE)
    objective, parameters = Objective(model, loss_chunk_tokens=128), list(model.parameters())
    expected = torch.autograd.grad(objective(tokens, positions, tokens.roll(-1, 1), tokens.numel())["loss"], parameters)
    compiled = torch.compile(objective, fullgraph=True)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = compiled(tokens, positions, tokens.roll(-1, 1), tokens.numel())["loss"]
    found = torch.autograd.grad(loss, parameters)
    flat = [torch.cat([gradient.flatten() for gradient in side]) for side in (found, expected)]
    assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-gemma"])
def test_slots_of_a_graph_go_on_where_a_prompt_in_bfloat16_ended(preset):
    """Tokens one by one through captured steps give the logits of one call, to bfloat16's digits."""
    config = ModelConfig.preset(preset)
    model = Griffin(config).to(DEVICE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    executor = TorchEngine(model.to(torch.bfloat16), "bfloat16").executor(3, 64 if config.needs_capacity else None)
    tokens = torch.randint(config.vocab_size, (1, 48)).numpy()
    expected = executor.prefill([1], tokens, None, "all")
    executor.release(1)
    executor.prefill([1], tokens[:, :20], None, "none")
    assert expected is not None
    for place in range(20, 48):
        (found,) = executor.step([1], tokens[0, place : place + 1].tolist())
        largest = abs(expected[0, place]).max()
        assert abs(found - expected[0, place]).max() <= 0.05 * largest
