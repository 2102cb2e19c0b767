"""The loss and its gradient: the one computed at once, however rows are packed, padded, cut and recomputed."""

import dataclasses

import pytest
import torch
from tolerances import disagreement

from griffinlm.checkpoint import initial_tensors
from griffinlm.config import ModelConfig
from griffinlm.model import Griffin
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.objective import Objective

LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 2e-5
CONFIG = ModelConfig.preset("tiny-griffin")


def objective(chunk_tokens: int = 7, config: ModelConfig = CONFIG) -> Objective:
    griffin = Griffin(config)
    griffin.load_state_dict({name: torch.from_numpy(values) for name, values in initial_tensors(config, 0)})
    return Objective(griffin, chunk_tokens)


def loss_and_gradients(model: Objective, *batches: tuple[torch.Tensor, ...], num_labels: int = 1):
    model.zero_grad()
    total = 0.0
    for tokens, positions, labels in batches:
        loss = model(tokens, positions, labels, num_items_in_batch=num_labels)["loss"]
        loss.backward()
        total += loss.item()
    return total, [parameter.grad for parameter in model.parameters()]


def assert_same(found, expected) -> None:
    assert abs(found[0] - expected[0]) <= LOSS_TOLERANCE * abs(expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert disagreement(one, other) <= GRADIENT_TOLERANCE


def batch(num_rows: int, num_tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(CONFIG.vocab_size, (num_rows, num_tokens + 1), generator=generator)
    return tokens[:, :-1], torch.arange(num_tokens).expand(num_rows, -1), tokens[:, 1:].clone()


def test_the_loss_is_that_of_the_models_own_logits():
    tokens, positions, labels = batch(2, 20)
    model = objective()
    logits, _ = model.griffin(tokens, positions=positions)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, positions, labels)["loss"], expected)


@pytest.mark.parametrize("preset", ["tiny-griffin", "tiny-hawk", "tiny-gemma"])
def test_packed_documents_equal_padded_ones(preset):
    config = dataclasses.replace(ModelConfig.preset(preset))
    model = objective(config=config)
    lengths = (5, 1, 12, 3)
    tokens, _, labels = batch(1, sum(lengths))
    labels[0, torch.tensor(lengths).cumsum(0) - 1] = IGNORED
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = loss_and_gradients(model, (tokens, positions, labels))

    longest = max(lengths)
    padded = [torch.full((len(lengths), longest), value) for value in (0, -1, IGNORED)]
    for row, (token_part, label_part) in enumerate(
        zip(tokens[0].split(lengths), labels[0].split(lengths), strict=True)
    ):
        length = len(token_part)
        padded[0][row, :length], padded[1][row, :length] = token_part, torch.arange(length)
        padded[2][row, :length] = label_part
    assert_same(loss_and_gradients(model, tuple(padded)), packed)


def test_eight_batches_of_one_row_equal_one_of_eight():
    tokens, positions, labels = batch(8, 16)
    labels[0, :10] = IGNORED  # rows weigh by their labels
    num_labels = int((labels != IGNORED).sum())
    model = objective()
    at_once = loss_and_gradients(model, (tokens, positions, labels), num_labels=num_labels)
    pieces = zip(tokens.split(1), positions.split(1), labels.split(1), strict=True)
    assert_same(loss_and_gradients(model, *pieces, num_labels=num_labels), at_once)


def test_recomputed_blocks_give_the_same_bits():
    model = objective()
    kept = loss_and_gradients(model, batch(2, 16))
    model.griffin.gradient_checkpointing = True
    recomputed = loss_and_gradients(model, batch(2, 16))
    assert recomputed[0] == kept[0]
    assert all(map(torch.equal, recomputed[1], kept[1]))


def test_a_row_with_nothing_to_predict_has_no_loss_and_no_gradient():
    tokens, positions, labels = batch(1, 8)
    loss, gradients = loss_and_gradients(objective(), (tokens, positions, torch.full_like(labels, IGNORED)))
    assert loss == 0.0
    assert not any(gradient.any() for gradient in gradients)
