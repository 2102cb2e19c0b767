"""Random models whose layers loop, tokens that go through them in any company, and how far two states agree."""

import numpy as np
from adapters import adaptable
from hypothesis import strategies as st
from small_models import configs, random_model
from tolerances import assert_agree

from griffinlm.checkpoint.adapter import LowRank
from griffinlm.model.engine import TorchEngine

ADAPTER = "other"
NUM_SLOTS = 3
CAPACITY = 40

looped = configs().filter(lambda config: config.recursion is not None and config.recursion.num_loops > 1)


def engine_of(config, seed=0):
    """A random model, and an adapter of it for every matrix."""
    random, terms = np.random.default_rng(seed), {}
    for name in adaptable(config):
        *blocks, out, into = config.place_shapes()[name]
        shapes = (*blocks, 2, into), (*blocks, out, 2)
        terms[name] = LowRank(*(0.3 * random.standard_normal(shape, np.float32) for shape in shapes))
    return TorchEngine(random_model(config, seed), "float32", {ADAPTER: terms})


def capacity_of(config):
    return CAPACITY if config.needs_capacity else None


def random_tokens(config, seed, num_tokens):
    return np.random.default_rng(seed).integers(0, config.vocab_size, (NUM_SLOTS, num_tokens))


def states_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert_agree(found[name], array, "model", "float32", "torch", name)


def at_full_depth(engine, tokens, adapter=None):
    """Logits [T, V] and the state after tokens read by the whole model."""
    executor = engine.executor(1, capacity_of(engine.config))
    executor.use_adapter(0, adapter)
    logits = executor.prefill([0], np.asarray([tokens]), None, "all")
    return logits[0], executor.export_state(0)


def read_in_random_order(executor, tokens, draw):
    """Brings the slots through their tokens in random company; gives slot, place, depth and logits of each."""
    left = {slot: list(row) for slot, row in enumerate(tokens.tolist())}
    depth: dict[int, int] = {}
    found = []
    while left or depth:
        busy = sorted(left.keys() | depth.keys())
        slots = draw(st.lists(st.sampled_from(busy), min_size=1, unique=True))
        entering = [slot for slot in slots if slot not in depth]
        if entering:
            executor.enter(entering, [left[slot].pop(0) for slot in entering])
            depth |= dict.fromkeys(entering, 0)
        may_leave = executor.run_loop(slots)
        done = []
        for slot, may in zip(slots, may_leave, strict=True):
            depth[slot] += 1
            if may or depth[slot] == executor.num_loops:
                done.append(slot)
        if done:
            for slot, logits in zip(done, executor.leave(done), strict=True):
                found.append((slot, tokens.shape[1] - len(left[slot]) - 1, depth.pop(slot), logits))
                if not left[slot]:
                    del left[slot]
    return found


class Greedy:
    is_complete = False

    def choose(self, logits):
        return int(logits.argmax())
