"""Many conversations that fork, rewind, stop and go on at once: every answer is that of a forward over its tokens."""

import numpy as np
import pytest
from adapters import random_factors, write_adapter
from tolerances import TOLERANCES
from traffic import Traffic

import griffinlm
from griffinlm.generation.budget import plan_memory
from griffinlm.generation.service import GenerationService
from griffinlm.generation.store import StateStore
from griffinlm.state import State, state_layout

SEED = 0


@pytest.fixture(scope="module")
def adapter_paths(tiny_model_directory, tmp_path_factory):
    folder, base = tmp_path_factory.mktemp("adapters"), griffinlm.load(tiny_model_directory)
    low_rank = write_adapter(folder / "low_rank", base.config, random_factors(base.config, 0, size=0.2))
    arrays, random = base.read([base.tokenizer.bos_id]).arrays(), np.random.default_rng(0)
    for name in [name for name in arrays if name.endswith(".hidden")]:
        arrays[name] = arrays[name] + random.standard_normal(arrays[name].shape).astype(np.float32)
    State(arrays, base.identity).save(folder / "tuned.safetensors")
    return {"low_rank": low_rank, "tuned": folder / "tuned.safetensors"}


@pytest.fixture(scope="module", params=["onnx", "torch"])
def model(request, tiny_model_directory, adapter_paths):
    return griffinlm.load(
        tiny_model_directory, engine=request.param, weights="float32", threads=1, adapters=adapter_paths
    )


def slot_arrays(executor):
    """All that an executor remembers of its slots."""
    if hasattr(executor, "state"):
        return [tensor for block in executor.state.blocks for tensor in block]
    return list(executor._states.arrays.values())


class Watched(Traffic):
    """Counts the bytes of all states now and then."""

    def __post_init__(self):
        super().__post_init__()
        self.most_bytes, self._num_steps = 0, 0

    def interrupt(self):
        super().interrupt()
        self._num_steps += 1
        if self._num_steps % 20 == 0:
            memory = self.service.memory()
            slot_bytes = sum(array.nbytes for array in slot_arrays(self.service._executor))
            assert slot_bytes <= memory.slot_bytes
            self.most_bytes = max(self.most_bytes, slot_bytes + memory.aside_bytes + memory.store_bytes)


@pytest.mark.parametrize(
    ("num_talks", "num_turns", "on_disk"),
    [(48, 10, False), (32, 10, True), pytest.param(500, 50, False, marks=[pytest.mark.slow, pytest.mark.timeout(0)])],
)
def test_every_answer_in_random_traffic_is_that_of_one_forward(model, tmp_path, num_talks, num_turns, on_disk):
    layout = state_layout(model.config, 1, None, model.window_dtype, model.precision)
    state_bytes = sum(spec.nbytes for spec in layout.values())
    plan = plan_memory(40 * state_bytes if on_disk else 1 << 24, state_bytes, num_slots=5)
    directory = tmp_path / "store" if on_disk else None
    disk_bytes = 1 << 24 if on_disk else None
    with StateStore(model, directory, memory_bytes=plan.store_bytes, disk_bytes=disk_bytes) as store:
        service = GenerationService(
            model,
            store,
            num_slots=plan.num_slots,
            num_places=plan.num_places,
            max_waiting=6,
            boundary_tokens=64,
        )
        traffic = Watched(service, SEED, num_talks, num_turns, TOLERANCES["model, adapter", "float32", "onnx"])
        traffic.run()
        print(
            f"seed {SEED}, {traffic.most_bytes} of {plan.budget_bytes} bytes: {dict(traffic.counts)} {service.counts}"
        )
        assert len(traffic.finished) == num_talks
        assert traffic.counts["answers checked"] >= sum(len(talk.turns) for talk in traffic.finished)
        assert min(traffic.counts[what] for what in ("rewound", "forked", "cancelled", "suspended", "resumed")) > 0
        assert service.counts.num_prefix_hits > service.counts.num_starts / 2
        assert traffic.most_bytes <= plan.budget_bytes
        service.close()
        assert service.num_free_slots == plan.num_slots
        assert service.memory().aside_bytes == 0
        assert not any(array.any() for array in slot_arrays(service._executor))
