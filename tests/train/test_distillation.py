"""Learning from a teacher: the divergence by hand, none from oneself, and the data's loss in evaluation."""

from pathlib import Path

import pytest
import torch
from small_models import random_model

from griffinlm.config import ModelConfig
from griffinlm.train.data.token_file import IGNORED
from griffinlm.train.distillation import Distillation
from griffinlm.train.errors import TrainError
from griffinlm.train.objective import Objective
from griffinlm.train.pretrain import pretrain

CONFIG = ModelConfig.from_dict({**ModelConfig.preset("tiny-griffin").to_dict(), "logit_soft_cap": 5.0})


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, CONFIG.vocab_size, (2, 12), generator=generator)
    labels = tokens.roll(-1, 1)
    labels[:, 4] = IGNORED
    return {"tokens": tokens, "positions": torch.arange(12).expand(2, -1).clone(), "labels": labels}


def test_the_loss_equals_the_divergence_by_hand_over_the_tokens_with_a_label():
    model, teacher = random_model(CONFIG, 0), random_model(CONFIG, 1)
    given = batch()
    log_q, log_p = (torch.log_softmax(m(given["tokens"])[0].double(), dim=-1) for m in (model, teacher))
    each = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    expected = each[given["labels"] != IGNORED].sum()
    for chunk_tokens in (1000, 5):
        objective = Distillation(model, teacher, chunk_tokens)
        loss = objective(**given)["loss"]
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(objective(**given, num_items_in_batch=4)["loss"], loss / 4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_teachers_share_of_it_and_that_of_the_data(share):
    model, teacher = random_model(CONFIG, 0), random_model(CONFIG, 1)
    learned, told = Distillation(model, teacher, 1000)(**batch())["loss"], Objective(model, 1000)(**batch())["loss"]
    for chunk_tokens in (1000, 5):
        found = Distillation(model, teacher, chunk_tokens, share)(**batch())["loss"]
        torch.testing.assert_close(found, share * learned + (1 - share) * told, rtol=1e-5, atol=1e-5)


def test_a_model_learns_nothing_from_itself_and_the_teacher_is_not_trained():
    model, teacher = random_model(CONFIG, 0), random_model(CONFIG, 0)
    objective = Distillation(model, teacher, 1000)
    assert {name.partition(".")[0] for name, _ in objective.named_parameters()} == {"griffin"}
    loss = objective(**batch())["loss"]
    loss.backward()
    assert abs(loss.item()) < 1e-6
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and grad.abs().max() < 1e-5 for grad in gradients.values())
    assert all(p.grad is None for p in teacher.parameters())


def test_in_evaluation_the_loss_is_that_of_the_data():
    model = random_model(CONFIG, 0)
    expected = Objective(model, 7).eval()(**batch())["loss"]
    assert torch.equal(Distillation(model, random_model(CONFIG, 1), 7).eval()(**batch())["loss"], expected)


def test_a_run_learns_from_a_teacher_of_its_vocabulary_only(run, run_file: Path, tiny_model_directory: Path):
    changes = (f"model.directory={tiny_model_directory}", f"teacher={tiny_model_directory}", "quantization_aware=int4")
    text = run_file.read_text(encoding="utf-8")
    run_file.write_text(text.replace('preset = "tiny-griffin"\nvocab_size = 288\n', ""), encoding="utf-8")
    outcome = pretrain(run(*changes))
    assert outcome.figures["loss"] < 1.0
    run_file.write_text(text, encoding="utf-8")
    with pytest.raises(TrainError, match="has 288 tokens; the model has 300"):
        pretrain(run(f"teacher={tiny_model_directory}", "model.vocab_size=300", "output=other"))
