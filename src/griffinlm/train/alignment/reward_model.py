"""A trained reward model as a function of tokens."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from griffinlm.errors import GriffinError, in_one_line
from griffinlm.hf import GriffinForSequenceClassification
from griffinlm.text import Tokenizer
from griffinlm.train.errors import TrainError

ROWS_AT_ONCE = 32


class RewardModel:
    """r(prompt, answer) of a directory that `griffin train reward` wrote, in float32.

    Raises:
        TrainError: the directory is none, or the model gives more than one number.
    """

    def __init__(self, path: Path, device: str | torch.device = "cpu") -> None:
        self.path, self.device = path, torch.device(device)
        if not path.is_dir():
            raise TrainError(f"there is no reward model {path}; it is the directory `model` of griffin train reward")
        try:
            model = GriffinForSequenceClassification.from_pretrained(path, dtype=torch.float32)
            self.tokenizer = Tokenizer.from_directory(path)
        except (GriffinError, OSError, ValueError) as error:
            raise TrainError(f"{path} is no reward model: {in_one_line(error)}") from error
        if model.num_labels != 1 or model.config.architectures != [GriffinForSequenceClassification.__name__]:
            raise TrainError(f"{path} is no reward model; it must have one score, as griffin train reward writes it")
        self._model = model.to(self.device).eval().requires_grad_(False)

    def digest(self) -> str:
        """SHA-256 of the names and values of all weights."""
        found = hashlib.sha256()
        for name, values in sorted(self._model.state_dict().items()):
            found.update(name.encode())
            found.update(values.cpu().numpy().tobytes())
        return found.hexdigest()

    @torch.inference_mode()
    def score(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """r of every row of tokens, prompt and answer in one. A row's reward does not depend on the others."""
        by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        found = [0.0] * len(rows)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            chosen = by_length[start : start + ROWS_AT_ONCE]
            num_tokens = len(rows[chosen[-1]])
            tokens, mask = (torch.zeros(len(chosen), num_tokens, dtype=torch.int64) for _ in range(2))
            for place, row in enumerate(chosen):
                tokens[place, : len(rows[row])] = torch.tensor(rows[row])
                mask[place, : len(rows[row])] = 1
            tokens, mask = tokens.to(self.device), mask.to(self.device)
            scores = self._model(input_ids=tokens, attention_mask=mask, use_cache=False).logits[:, 0]
            for row, score in zip(chosen, scores.tolist(), strict=True):
                found[row] = score
        return found
