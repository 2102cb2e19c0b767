"""The energy of every matrix's inputs on text is what the torch model's layers meet there."""

import numpy as np
import pytest
import torch

from griffinlm.edge.calibration import input_energy

from .models import CONFIGS, engines


def energy_by_torch(pair, documents) -> dict[str, np.ndarray]:
    """Mean square of the inputs of every layer with a weight, by hooks; layers that share one have one mean."""
    sums: dict[str, torch.Tensor] = {}
    num_users: dict[str, int] = {}

    def watch(place: str):
        name = pair.config.parameter_at(place)
        num_users[name] = num_users.get(name, 0) + 1

        def add(module, inputs):
            values = inputs[0].flatten(0, -2).double().square().sum(0)
            sums[name] = sums.get(name, torch.zeros_like(values)) + values

        return add

    model = pair.torch.model
    watched = [(name, part) for name, part in model.named_modules() if hasattr(part, "weight") and name != "embedding"]
    hooks = [part.register_forward_pre_hook(watch(f"{name}.weight")) for name, part in watched]
    head = watch("embedding.weight")
    final = model.final_norm.register_forward_hook(lambda module, inputs, out: head(None, (out,)))
    try:
        for document in documents:
            model(torch.tensor([document]))
    finally:
        for hook in (*hooks, final):
            hook.remove()
    num_tokens = sum(map(len, documents))
    return {name: (total / num_tokens / num_users[name]).numpy() for name, total in sums.items()}


@pytest.mark.parametrize("name", ["Griffin", "Gemma", "recursive Griffin", "recursive Gemma"])
def test_energy_equals_that_of_the_torch_layers(name):
    pair = engines(CONFIGS[name])
    documents = [pair.tokens(1, length, seed=length)[0].tolist() for length in (300, 1, 17)]
    found, expected = input_energy(pair.checkpoint, documents), energy_by_torch(pair, documents)
    shapes = pair.config.parameter_shapes()
    assert found.keys() == {n for n in shapes if n.endswith(".weight") and ".conv." not in n}
    for parameter, energy in found.items():
        np.testing.assert_allclose(energy, expected[parameter], rtol=1e-4, atol=1e-6, err_msg=parameter)
