"""In a model that skips, each loop reads the tokens that reach it as if there were no others.

States:
- logits and state after any exits in any company = those of every loop over the compacted tokens, with adapters too;
- a state with skipped tokens goes on as the same compacted document, at full depth and loop by loop, over documents;
- without exits, logits and states = those of the ordinary executor;
- a token on its way is read by all loops before anything else looks at the slot.
"""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loop_models import (
    ADAPTER,
    NUM_SLOTS,
    at_full_depth,
    capacity_of,
    engine_of,
    looped,
    random_tokens,
    read_in_random_order,
    states_agree,
)
from tolerances import assert_agree

from griffinlm.config import RecursionConfig
from griffinlm.executor import ExecutorError
from griffinlm.model.griffin import GriffinState, read
from griffinlm.model.low_rank import RowTerms
from griffinlm.model.skipping import TorchSkippingExecutor
from griffinlm.model.state import new_state, to_named, to_numpy, without_earlier_documents
from griffinlm.presets import PRESETS

skipping = looped.map(
    lambda config: dataclasses.replace(config, recursion=dataclasses.replace(config.recursion, skips=True))
)


def agree(found, expected, what=""):
    assert_agree(found, expected, "model", "float32", "torch", what)


def compacted(engine, tokens, depths, adapter=None):
    """Logits [T, V] and the state after one document whose tokens each left behind as many loops as `depths` says."""
    config, model = engine.config, engine.model
    num_loops, width = config.recursion.num_loops, config.num_shared_layers
    terms = [] if adapter is None else [RowTerms(torch.tensor([0]), engine.adapters[adapter])]
    x = model.embedding(torch.tensor([tokens])) * config.embedding_scale
    logits, blocks, num_read, depths = [None] * len(tokens), [], [], torch.tensor(depths)
    left = torch.arange(len(tokens))
    for loop in range(num_loops):
        last = config.num_layers if loop == num_loops - 1 else (loop + 1) * width
        own = dataclasses.replace(config, num_layers=last - loop * width, recursion=None)
        state = new_state(own, 1, capacity_of(config))
        num_read.append(len(left))
        if len(left):
            reading = read(own, model.layers[loop * width : last], x, state, None, low_rank=terms)
            x, state = reading.x, reading.state
            for place, row in zip(left.tolist(), model.logits(x)[0], strict=True):
                logits[place] = row.numpy()
        blocks += state.blocks
        stays = depths[left] > loop + 1
        left, x = left[stays], x[:, stays]
    skipped = torch.tensor([[len(tokens) - count for count in num_read[1:]]])
    state = GriffinState(torch.tensor([len(tokens)]), tuple(blocks), skipped)
    return logits, to_numpy(to_named(config, without_earlier_documents(config, state)))


def depths_of(found, num_tokens):
    """[slot][place], loops that each token went through."""
    depths = [[0] * num_tokens for _ in range(NUM_SLOTS)]
    for slot, place, depth, _ in found:
        depths[slot][place] = depth
    return depths


@given(skipping, st.integers(0, 2**31), st.data())
def test_any_exits_in_any_company_equal_every_loop_over_the_tokens_that_reach_it(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 7)

    def exit_rule(x, depth):
        return torch.tensor([data.draw(st.booleans()) for _ in depth])

    executor = TorchSkippingExecutor(engine, NUM_SLOTS, capacity_of(config), exit_rule)
    adapters = [data.draw(st.sampled_from([None, ADAPTER])) for _ in range(NUM_SLOTS)]
    for slot, adapter in enumerate(adapters):
        executor.use_adapter(slot, adapter)
    found = read_in_random_order(executor, tokens, data.draw)
    depths = depths_of(found, tokens.shape[1])
    expected = [compacted(engine, *row) for row in zip(tokens.tolist(), depths, adapters, strict=True)]
    for slot, place, _, logits in found:
        agree(logits, expected[slot][0][place], f"token {place} of slot {slot}")
    for slot, (_, state) in enumerate(expected):
        states_agree(executor.export_state(slot), state)


@given(skipping, st.integers(0, 2**31), st.data())
def test_a_state_with_skipped_tokens_goes_on_as_the_same_document(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 4)
    more, exits = random_tokens(config, seed + 1, 3), [data.draw(st.booleans()) for _ in range(4)]
    place = 0
    executor = TorchSkippingExecutor(
        engine, NUM_SLOTS, capacity_of(config), lambda x, depth: torch.tensor([exits[place]])
    )
    num_loops = executor.num_loops
    for place, token in enumerate(tokens[0].tolist()):  # noqa: B007  (the rule reads it)
        executor.enter([0], [token])
        for _ in range(num_loops):
            if executor.run_loop([0])[0]:
                break
        executor.leave([0])
    depths = [1 if leaves else num_loops for leaves in exits]
    logits, state = compacted(engine, [*tokens[0], *more[0]], [*depths, *[num_loops] * 3])
    plain, carried = engine.executor(1, capacity_of(config)), executor.export_state(0)
    for other in (executor, plain):
        other.import_state(0, carried)
        agree(other.prefill([0], more[:1], None, "all")[0], np.stack(logits[4:]))
        states_agree(other.export_state(0), state)
        # What another document skipped is forgotten.
        other.prefill([0], more[:1], np.arange(3)[None], "none")
        states_agree(other.export_state(0), at_full_depth(engine, more[0])[1])


@given(skipping, st.integers(0, 2**31), st.data())
def test_tokens_without_exits_equal_the_whole_model(config, seed, data):
    engine, tokens = engine_of(config, seed), random_tokens(config, seed, 5)
    executor = TorchSkippingExecutor(engine, NUM_SLOTS, capacity_of(config))
    expected = [at_full_depth(engine, row) for row in tokens]
    for slot, place, _, logits in read_in_random_order(executor, tokens, data.draw):
        agree(logits, expected[slot][0][place])
    for slot, (_, state) in enumerate(expected):
        states_agree(executor.export_state(slot), state)


def small_executor():
    base = PRESETS["tiny-griffin"]
    config = dataclasses.replace(base, num_layers=7, recursion=RecursionConfig(2, rank=2, skips=True))
    engine = engine_of(config)
    return engine, TorchSkippingExecutor(engine, NUM_SLOTS, None, lambda x, depth: depth == 1)


@pytest.mark.parametrize("look", ["export", "mark", "prefill"])
def test_a_token_on_its_way_is_read_by_all_loops_before_the_slot_is_looked_at(look):
    engine, executor = small_executor()
    executor.enter([0, 1], [3, 4])
    executor.run_loop([0])
    if look == "mark":
        executor.rollback(0, executor.mark(0))
    read_tokens = [3]
    if look == "prefill":
        executor.prefill([0], np.asarray([[5, 6]]), None, "none")
        read_tokens += [5, 6]
    states_agree(executor.export_state(0), at_full_depth(engine, read_tokens)[1])
    assert executor.run_loop([1]) == [True]
    states_agree(executor.export_state(1), at_full_depth(engine, [4])[1])


def test_a_released_slot_has_nothing_on_its_way_and_nothing_skipped():
    _, executor = small_executor()
    executor.enter([0], [3])
    executor.run_loop([0])
    executor.leave([0])
    assert executor.export_state(0)["num_skipped"].tolist() == [[1]]
    executor.enter([0], [4])
    executor.release(0)
    assert all(not array.any() for name, array in executor.export_state(0).items() if name != "pending")


def test_a_model_that_does_not_skip_is_refused():
    with pytest.raises(ExecutorError, match="the model does not skip"):
        TorchSkippingExecutor(engine_of(PRESETS["tiny-griffin"]), 1)
