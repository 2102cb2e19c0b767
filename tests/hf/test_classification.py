"""A classifier scores a text by its last real token, wherever padding stands."""

import pytest

pytest.importorskip("transformers", reason="needs the extra train")

import torch
from small_models import assert_same_logits

from griffinlm.errors import GriffinError

from .face import CONFIGS, PUBLISHED, padded, random_classifier, random_rows


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right", "mixed"])
def test_scores_of_padded_rows_equal_each_alone(name: str, side: str):
    face = random_classifier(CONFIGS[name], num_labels=3, pad_token_id=0)
    rows = random_rows(CONFIGS[name], [1, 2, 3, 12])
    tokens, mask = padded(rows, side, extra=3)
    with torch.no_grad():
        expected = torch.cat([face(row).logits for row in rows])
        assert_same_logits(face(tokens, attention_mask=mask).logits, expected)
        assert_same_logits(face(tokens).logits, expected)


def test_a_pad_token_that_the_mask_counts_is_part_of_the_text():
    face = random_classifier(PUBLISHED, num_labels=3, pad_token_id=0)
    row = torch.tensor([[5, 0, 7, 0]])
    found = face(row, attention_mask=torch.ones_like(row)).logits
    face.config.pad_token_id = None
    assert torch.equal(found, face(row).logits)


def test_a_reward_is_one_score_and_its_loss_is_regression():
    face = random_classifier(PUBLISHED, num_labels=1, pad_token_id=0)
    rows = torch.cat(random_rows(PUBLISHED, [6, 6]))
    outputs = face(rows, labels=torch.tensor([0.5, -1.0]))
    assert outputs.logits.shape == (2, 1)
    torch.testing.assert_close(outputs.loss, ((outputs.logits[:, 0] - torch.tensor([0.5, -1.0])) ** 2).mean())


def test_rows_that_may_be_padded_without_a_sign_are_refused():
    face = random_classifier(PUBLISHED, num_labels=2)
    with pytest.raises(GriffinError, match="2 rows come without attention_mask"):
        face(torch.cat(random_rows(PUBLISHED, [6, 6])))
