"""What TRL and transformers' Trainer do with a model, beyond calling it."""

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs the extra train")
pytest.importorskip("trl", reason="needs the extra train")

import torch
from transformers import Trainer, TrainingArguments
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
from trl.trainer.utils import add_fused_lm_head

from .face import CONFIGS, PUBLISHED, random_classifier, random_face, random_rows


@pytest.mark.parametrize("name", CONFIGS)
def test_trl_fused_loss_equals_the_loss_of_capped_logits(name: str):
    face, rows = random_face(CONFIGS[name]), random_rows(CONFIGS[name], [4, 9, 2])
    examples = [{"input_ids": row[0].tolist(), "completion_mask": [1] * row.shape[1]} for row in rows]
    expected = sum(face(row, labels=row, num_items_in_batch=12).loss for row in rows)
    add_fused_lm_head(face)
    for padding_free in (False, True):
        batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=padding_free)(examples)
        found = face(**batch, fused_lm_head=True, num_items_in_batch=12)
        torch.testing.assert_close(found.loss, expected)
        torch.testing.assert_close(face(**batch, num_items_in_batch=12).loss, expected)


def trained(directory: Path, num_steps: int, resume: bool = False) -> list[torch.Tensor]:
    rows = [{"input_ids": row[0], "labels": row[0]} for row in random_rows(PUBLISHED, [8] * 8)]
    arguments = TrainingArguments(
        directory,
        max_steps=num_steps,
        save_steps=2,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(random_face(PUBLISHED), arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_smoothed_labels_are_those_of_the_next_token(tmp_path: Path):
    face, (row,) = random_face(PUBLISHED), random_rows(PUBLISHED, [12])
    trainer = Trainer(face, TrainingArguments(str(tmp_path), label_smoothing_factor=0.1, use_cpu=True, report_to=[]))
    loss = trainer.compute_loss(face, {"input_ids": row, "labels": row})
    expected = torch.nn.functional.cross_entropy(face(row).logits[0, :-1], row[0, 1:], label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("batch_rows", [1, 2, 4])
def test_trainer_takes_a_classifier_in_batches_of_any_size(tmp_path: Path, batch_rows: int):
    torch.manual_seed(3)
    face = random_classifier(PUBLISHED, num_labels=2, pad_token_id=0)
    rows = [{"input_ids": row[0], "labels": i % 2} for i, row in enumerate(random_rows(PUBLISHED, [8] * 4))]
    expected = face(torch.stack([row["input_ids"] for row in rows]), labels=torch.tensor([0, 1, 0, 1])).loss.item()
    arguments = TrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=batch_rows,
        gradient_accumulation_steps=4 // batch_rows,
        max_steps=1,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(face, arguments, train_dataset=rows)
    trainer.train()
    (loss,) = (entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_trainer_resumed_equals_uninterrupted(tmp_path: Path):
    expected = trained(tmp_path / "whole", 4)
    trained(tmp_path / "parts", 2)
    assert all(map(torch.equal, trained(tmp_path / "parts", 4, resume=True), expected))
