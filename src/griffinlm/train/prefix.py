"""Prefix tuning beside all weights: every document begins from a trained state."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from griffinlm.language_model import LanguageModel
from griffinlm.model import Griffin
from griffinlm.model.state import new_state, to_named, to_numpy
from griffinlm.state import State
from griffinlm.train.errors import TrainError
from griffinlm.train.objective import Objective, ObjectiveAround, hidden, row_positions
from griffinlm.train.state_tuning import TunedState

PREFIX_FILE = "prefix.safetensors"
"""In a run's output: a state of the model, BOS pending."""
BLOCK_ARRAYS = (".hidden", ".convolution", ".keys", ".values")


def build_prefix(griffin: Griffin, tokens: Sequence[int], row_tokens: int) -> TunedState:
    """The state of N made-up tokens, every number of its blocks a parameter.

    Attention has N keys and values of its own at every depth, after RoPE, as prefix tuning has them (Li and Liang,
    arXiv 2101.00190); a recurrent block, which has none, has its h and the inputs of its convolution. They begin as
    what the N `tokens` leave, read as one document. A window passes over the prefix as over any tokens.

    Args:
        row_tokens: most tokens of a document, for which a state of global attention gets room.
    """
    config, device = griffin.config, griffin.embedding.weight.device
    capacity = len(tokens) + row_tokens if config.needs_capacity else None
    with torch.no_grad():
        empty = new_state(config, 1, capacity, device=device)
        _, state = griffin(torch.tensor([tokens], device=device), empty, logits="none")
    return TunedState(config, state, BLOCK_ARRAYS)


class PrefixObjective(ObjectiveAround):
    """Another objective's loss of documents that all begin from a prefix, in training and in evaluation.

    Documents of a row lie in rows of their own while they are read, since a state stands in front of a row.
    """

    def __init__(self, objective: Objective, prefix: TunedState) -> None:
        super().__init__(objective)
        self.prefix = prefix

    def forward(
        self, tokens: Tensor, positions: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """As of `Objective`; every row begins with a document, and padding stands at its end."""
        expected = self.inner.expected(tokens, positions)
        x = self._hidden(tokens, row_positions(tokens, positions))
        loss = self.inner.loss_of(x, labels.flatten(), expected)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}

    def _hidden(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """[B T, D] after the final norm, zeros at padding."""
        is_real = positions >= 0
        document = (positions == 0).flatten().cumsum(0).view_as(positions) - 1
        # Documents are read with those of like length, so that less than half of what is read is padding.
        size = document[is_real].bincount().double().log2().ceil()[document]
        groups = [is_real & (size == one) for one in size[is_real].unique()]
        read = [self._apart(tokens[group], positions[group], document[group]) for group in groups]
        x = read[0].new_zeros(*tokens.shape, read[0].shape[-1])
        for group, part in zip(groups, read, strict=True):
            x[group] = part
        return x.flatten(0, 1)

    def _apart(self, tokens: Tensor, positions: Tensor, document: Tensor) -> Tensor:
        """The same [N, D] of tokens [N], a row for each of their documents."""
        row = document.unique(return_inverse=True)[1]
        shape = int(row.max()) + 1, int(positions.max()) + 1
        state = self.prefix.state(shape[0])
        apart, where = tokens.new_zeros(shape), positions.new_full(shape, -1)
        apart[row, positions], where[row, positions] = tokens, positions + state.num_tokens[0]
        x = hidden(self.griffin, apart, where, self.block_call, state).view(*shape, -1)
        return x[row, positions]


def write_prefix(model: LanguageModel, prefix: TunedState, path: Path) -> None:
    """Writes a state of `model` that has read the prefix, BOS pending: whatever goes on from it is a document.

    Raises:
        GriffinError: the file cannot be written, or the tokenizer has no BOS.
    """
    bos_id = model.tokenizer.bos_id
    if bos_id is None:
        raise TrainError("the tokenizer has no begin token; a document behind a prefix begins with one")
    arrays = to_numpy(to_named(model.config, prefix.state(1)))
    State(arrays, model.identity).with_pending([bos_id]).save(path)
