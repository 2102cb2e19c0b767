"""Tokens that deeper loops never read, over whole rows.

States:
- where no token leaves, the loops give the bits of the plain model;
- a deeper loop over the tokens that are left = the same loop over rows made of these alone, document by document;
- a token that has left has no part in what comes later.
"""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import configs, random_model
from tolerances import assert_agree

from griffinlm.config import RecursionConfig
from griffinlm.model.blocks import Layout
from griffinlm.model.griffin import read
from griffinlm.model.passage import Leaves, read_with_skips
from griffinlm.presets import PRESETS

looped = configs().filter(lambda config: config.recursion is not None and config.recursion.num_loops > 1)
SKIPPING = dataclasses.replace(PRESETS["tiny-griffin"], num_layers=6, recursion=RecursionConfig(2, rank=2, skips=True))


def nobody(x: torch.Tensor, loop: int) -> torch.Tensor:
    return torch.zeros(x.shape[:2], dtype=torch.bool)


def those(leaving: list[torch.Tensor]) -> Leaves:
    return lambda x, loop: leaving[loop - 1]


def packed_positions(lengths: list[int]) -> torch.Tensor:
    return torch.cat([torch.arange(length) for length in lengths])[None]


@given(looped, st.integers(0, 2**16))
@torch.no_grad()
def test_where_no_token_leaves_the_bits_are_those_of_the_plain_model(config, seed):
    model = random_model(config, seed).eval()
    x = torch.randn(2, 7, config.width, generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([packed_positions([4, 3]), torch.tensor([[0, 1, 2, 3, 4, -1, -1]])])
    reading = read(config, model.layers, x, None, positions)
    passage = read_with_skips(config, list(model.layers), x, positions, nobody)
    real = positions >= 0
    assert torch.equal(passage.x[real], reading.in_order(reading.x)[real])
    assert torch.equal(passage.depth, real.long() * config.recursion.num_loops)


@given(looped, st.data())
@torch.no_grad()
def test_a_deeper_loop_reads_the_tokens_left_as_rows_of_their_own(config, data):
    num_loops, width = config.recursion.num_loops, config.num_shared_layers
    model = random_model(config, data.draw(st.integers(0, 2**16))).eval()
    lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    num_tokens = sum(lengths)
    x = torch.randn(1, num_tokens, config.width, generator=torch.Generator().manual_seed(num_tokens))
    flags = st.lists(st.booleans(), min_size=num_tokens, max_size=num_tokens)
    leaving = [torch.tensor([data.draw(flags)]) for _ in range(num_loops - 1)]
    passage = read_with_skips(config, list(model.layers), x, packed_positions(lengths), those(leaving))

    expected, depth = x.clone(), torch.zeros(1, num_tokens, dtype=torch.long)
    reads = torch.ones(num_tokens, dtype=torch.bool)
    for loop in range(num_loops):
        blocks = model.layers[loop * width : None if loop == num_loops - 1 else (loop + 1) * width]
        for document in torch.arange(num_tokens).split(lengths):
            kept = document[reads[document]]
            if not len(kept):
                continue
            positions = torch.arange(len(kept))[None]
            layout = Layout(positions, positions == 0, torch.zeros(1, dtype=torch.long), None)
            alone = expected[:, kept]
            for block in blocks:
                alone, _ = block(alone, layout, None)
            expected[:, kept] = alone
        depth[0] += reads
        if loop < num_loops - 1:
            reads = reads & ~leaving[loop][0]
    assert torch.equal(passage.depth, depth)
    assert_agree(passage.x, expected, "model", "float32", "torch")


def test_a_loop_that_no_token_reaches_changes_nothing():
    model = random_model(SKIPPING, 0).eval()
    x, positions = torch.randn(1, 5, SKIPPING.width), torch.arange(5)[None]
    passage = read_with_skips(SKIPPING, list(model.layers), x, positions, lambda x, loop: ~nobody(x, loop))
    assert torch.equal(passage.behind[0], passage.behind[1])
    assert passage.depth.tolist() == [[1] * 5]


@pytest.mark.parametrize("has_left", [False, True])
def test_a_token_that_has_left_has_no_part_in_deeper_gradients(has_left):
    model = random_model(SKIPPING, 0)
    x, positions = torch.randn(1, 4, SKIPPING.width), torch.arange(4)[None]
    leaving = torch.zeros(1, 4, dtype=torch.bool)
    leaving[0, 2] = has_left
    passage = read_with_skips(SKIPPING, list(model.layers), x, positions, those([leaving]))
    (gradient,) = torch.autograd.grad(passage.x[0, 3].sum(), passage.behind[0])
    assert bool(gradient[0, 2].any()) is not has_left
