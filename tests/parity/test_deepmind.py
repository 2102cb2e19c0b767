"""Our model and DeepMind's torch package are one function: logits, states and gradients.

Left out, because DeepMind's package itself is wrong or refuses there: a row of padding alone (its convolution keeps
what the padding left), a document that starts while decoding (only its recurrence is reset), and several tokens at
once on top of a cache (refused). Its caches are changed in place, so one is never read twice.
"""

from pathlib import Path

import pytest

pytest.importorskip("recurrentgemma.torch", reason="needs tests/parity/requirements.txt")

import torch

from griffinlm.checkpoint import open_checkpoint, write_checkpoint

from . import models
from .conversations import conversation, prefill
from .deepmind import DeepMindReader, original, random_original
from .models import GriffinReader, griffin, random_tensors
from .reading import assert_agreement

pytestmark = pytest.mark.parity

GRADIENT_BOUND = 1e-4
"""Of max|a - b| / max|b| for the gradient of each parameter."""

CONFIGS = {
    "recurrentgemma": models.RECURRENTGEMMA,
    "wide recurrence": models.GRIFFIN_WIDE_RECURRENCE,
    "ends in attention": models.ENDS_IN_ATTENTION,
    "window of one": models.ONLY_ATTENTION_WINDOW_OF_ONE,
    "hawk": models.HAWK,
}
CONVERSATIONS = {
    "one token": ([[1]], 20),
    "shorter than the convolution": ([[2]], 20),
    "longer than the window": ([[29]], 20),
    "packed documents": ([[5, 1, 2, 3, 9], [4, 16], [19, 1]], 26),
    "left padding": ([[18], [1], [2], [3], [9]], 26),
    "packed documents behind padding": ([[7, 9], [1, 2], [3, 1, 1, 7]], 10),
}


@pytest.fixture(params=["we write and DeepMind reads", "DeepMind writes and we read"])
def pair(request: pytest.FixtureRequest, config_name: str, tmp_path: Path):
    """Our model and DeepMind's with the same weights, carried by a file that one side wrote and the other read."""
    config = CONFIGS[config_name]
    if request.param == "we write and DeepMind reads":
        tensors = list(random_tensors(config, seed=1))
        write_checkpoint(config, tensors, tmp_path / "model", "deepmind")
        theirs = original(config)
        theirs.load_state_dict(torch.load(tmp_path / "model" / "griffin.pt", weights_only=True))
        return griffin(config, tensors), theirs
    theirs = random_original(config, seed=2)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    return griffin(config, open_checkpoint(tmp_path / "model.pt", config).tensors()), theirs


@pytest.mark.parametrize("conversation_name", CONVERSATIONS)
@pytest.mark.parametrize("config_name", CONFIGS)
def test_prefill_and_decoding_equal_deepmind(pair, config_name: str, conversation_name: str):
    ours, theirs = pair
    documents, num_steps = CONVERSATIONS[conversation_name]
    calls = conversation(documents, num_steps, CONFIGS[config_name].vocab_size)
    assert_agreement(GriffinReader(ours), DeepMindReader(theirs), calls)


def gradients(model: torch.nn.Module, logits: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("a_param", [None, -34.0], ids=["initial decays", "decays that round to one"])
@pytest.mark.parametrize("config_name", ["recurrentgemma", "wide recurrence", "hawk"])
def test_gradients_equal_deepmind(config_name: str, a_param: float | None, tmp_path: Path):
    """DeepMind's gradients, read as a checkpoint, are ours; a decay of one meets the bounded derivative of the root.

    Between the two, from a_param = -12 down, DeepMind's 1 - exp(2 log a) has lost its digits in float32.
    """
    config = CONFIGS[config_name]
    theirs = random_original(config, seed=3)
    if a_param is not None:
        theirs.get_parameter("blocks.1.recurrent_block.rg_lru.a_param").data.fill_(a_param)
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    ours = griffin(config, open_checkpoint(tmp_path / "model.pt", config).tensors())
    call = prefill([[4, 1, 20], [25]], config.vocab_size, seed=4)
    targets = call.tokens.roll(-1, dims=1)
    found = gradients(ours, ours(call.tokens, None, call.positions)[0], targets)
    torch.save(gradients(theirs, theirs(call.tokens, call.positions)[0], targets), tmp_path / "gradients.pt")
    expected = open_checkpoint(tmp_path / "gradients.pt", config)
    assert found.keys() == config.parameter_shapes().keys()
    for name, gradient in found.items():
        reference = torch.from_numpy(expected.tensor(name))
        error = float((gradient - reference).abs().max() / reference.abs().max())
        assert error < GRADIENT_BOUND, f"the gradient of {name} deviates by {error}"
