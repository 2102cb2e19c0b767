"""How many rows a device reads at once changes neither the loss of a step nor that of the held-out pairs."""

import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("trl", reason="needs the extra train")

from griffinlm.train.alignment.config import DpoConfig, RewardConfig
from griffinlm.train.alignment.dpo import train_dpo
from griffinlm.train.alignment.reward import train_reward

from .alignment import Aligned

FIGURES = ("loss", "grad_norm", "eval_loss")


@pytest.mark.parametrize(("kind", "train"), [(DpoConfig, train_dpo), (RewardConfig, train_reward)])
def test_rows_per_device_changes_no_loss(run: Aligned, kind: type, train: Callable[..., Any]):
    def figures(rows_per_device: int) -> list[float]:
        changes = ("sources.rows.max_rows=12", "data.held_out_share=0.4", "optimizer.learning_rate=1e-3")
        config = run(kind, *changes, f"rows_per_device={rows_per_device}", output=f"rows-{rows_per_device}")
        outcome = train(config)
        assert outcome.figures["num_rows"] % 4 == 3, "parts of a pass's last step would be of one size"
        assert outcome.figures["num_held_out"] % 2, "so would those of the held-out pairs"
        entries = [json.loads(line) for line in (config.output / "log.jsonl").read_text().splitlines()]
        return [entry[name] for entry in entries for name in FIGURES if name in entry]

    expected = figures(4)
    assert len(expected) == 9
    assert figures(2) == pytest.approx(expected, rel=1e-4)
