"""Losses of early exits: what a token costs at every place where it may leave the model."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from griffinlm.kernels.divergence.chunked import divergence
from griffinlm.model.blocks import BlockState, Layout
from griffinlm.model.exits import best_probability
from griffinlm.model.griffin import BlockCall, read
from griffinlm.model.passage import read_with_skips
from griffinlm.train.curricula import dropout_rate, enabled_exits, exit_weights
from griffinlm.train.distillation import head_of
from griffinlm.train.exits_config import ExitsConfig
from griffinlm.train.objective import Objective, ObjectiveAround, row_positions


class ExitObjective(ObjectiveAround):
    """Another objective's loss, taken at every exit by the same head, and added up.

        weighted:    sum of i L_i / sum of i over the exits i = 1, 2, ... that a token goes through, the last included
        aggressive:  L_last + c * sum of KL(p_last || p_i) over the earlier ones, p_last without gradient
        layer_skip:  sum of e_i L_i / sum of e_i, e as in `exit_weights`

    L_i is the loss of the other objective, from the hidden states behind exit i. The first two are those of Relaxed
    Recursive Transformers (arXiv 2410.20672, section 3.5 and table J.1), the third LayerSkip's (arXiv 2404.16710,
    equations 3 to 5). With skips a token's last exit is where it has left, else full depth. In evaluation there are no
    exits.
    """

    def __init__(self, objective: Objective, exits: ExitsConfig, num_steps: int) -> None:
        """Args: `num_steps` of the whole run, of which `step` says where it stands."""
        super().__init__(objective)
        self._exits, self._num_steps = exits, num_steps
        self.step = 0
        config = self.griffin.config
        width, num_layers = config.num_shared_layers, config.num_layers
        self._layers = [*range(width, config.num_looped_layers, width), num_layers] if width else []
        self._layers = self._layers if len(self._layers) > 1 else [*exits.layers, num_layers]
        """Behind how many layers the exits stand, the last one at full depth."""

    def forward(
        self, tokens: Tensor, positions: Tensor | None, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """The loss of rows [B, T] over `num_items_in_batch` labels; the sum over labels if that is None."""
        if not self.training:
            return self.inner(tokens, positions, labels, num_items_in_batch)
        expected = self.inner.expected(tokens, positions)
        behind, depth = self._behind_exits(tokens, row_positions(tokens, positions))
        loss = self._added_up(behind, depth.flatten(), labels.flatten(), expected)
        return {"loss": loss if num_items_in_batch is None else loss / num_items_in_batch}

    def _added_up(self, behind: Sequence[Tensor], depth: Tensor, labels: Tensor, expected: Tensor | None) -> Tensor:
        """The loss summed over tokens, of hidden states [N, D] behind every exit and how many exits [N] they reach.

        Tokens that go through equally many exits have equal weights, so they are taken together.
        """
        inner, griffin, head = self.inner, self.griffin, head_of(self.griffin)
        enabled = enabled_exits(self._exits, self._layers, self.step, self._num_steps)
        loss = behind[0].new_zeros((), dtype=torch.promote_types(behind[0].dtype, torch.float32))
        for last in range(1, len(behind) + 1):
            if last < len(behind) and not self._exits.skips:
                continue
            here = (depth == last).nonzero()[:, 0] if self._exits.skips else slice(None)
            wanted, target = labels[here], None if expected is None else expected[here]
            final = griffin.final_norm(behind[last - 1][here])
            weights = exit_weights(self._exits, self._layers[: last - 1] + self._layers[-1:], enabled[: last - 1])
            loss = loss + weights[-1] * inner.loss_of(final, wanted, target)
            for x, weight in zip(behind, weights[:-1], strict=False):
                if not weight:
                    continue
                x = griffin.final_norm(x[here])
                if self._exits.loss == "aggressive":
                    own = divergence(x, head, wanted, final, head, 1.0, self.loss_chunk_tokens)
                else:
                    own = inner.loss_of(x, wanted, target)
                loss = loss + weight * own
        return loss

    def _behind_exits(self, tokens: Tensor, positions: Tensor) -> tuple[list[Tensor], Tensor]:
        """Hidden states of all tokens behind every exit, [B T, D] each, and how many exits each goes through [B, T]."""
        griffin, config = self.griffin, self.griffin.config
        call = _with_layer_dropout(griffin.layers, self._rates(), self.block_call)
        x = griffin.embedding(tokens) * config.embedding_scale
        if self._exits.skips:
            passage = read_with_skips(config, list(griffin.layers), x, positions, self._draw(tokens), call)
            return [one.flatten(0, 1) for one in passage.behind], passage.depth
        behind: list[Tensor] = []
        exits = {id(griffin.layers[layer - 1]) for layer in self._layers}
        reading = read(config, griffin.layers, x, None, positions, _recorded(call, exits, behind))
        return [reading.in_order(one).flatten(0, 1) for one in behind], torch.full_like(tokens, len(self._layers))

    def _rates(self) -> list[float]:
        num_layers = len(self.griffin.layers)
        return [dropout_rate(self._exits, layer, num_layers, self.step, self._num_steps) for layer in range(num_layers)]

    def _draw(self, tokens: Tensor) -> Callable[[Tensor, int], Tensor]:
        """The tokens that leave: those at least as sure as their row's threshold, drawn with the call."""
        rows, least = tokens.shape[0], self._exits.least_threshold
        is_full = torch.rand(rows) < self._exits.full_share
        thresholds = (least + (1.0 - least) * torch.rand(rows)).masked_fill(is_full, torch.inf).to(tokens.device)

        def leaves(x: Tensor, loop: int) -> Tensor:
            return best_probability(self.griffin, x, self.loss_chunk_tokens) >= thresholds[:, None]

        return leaves


def _recorded(call: BlockCall, exits: set[int], behind: list[Tensor]) -> BlockCall:
    """The same call, which keeps what the blocks in front of exits give."""

    def recording(block: nn.Module, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, BlockState]:
        x, after = call(block, x, layout, state)
        if id(block) in exits:
            behind.append(x)
        return x, after

    return recording


def _with_layer_dropout(layers: nn.ModuleList, rates: Sequence[float], call: BlockCall) -> BlockCall:
    """The same call, which each row passes by with the rate of the block."""
    if not any(rates):
        return call
    rate_of: Mapping[int, float] = {id(layer): rate for layer, rate in zip(layers, rates, strict=True)}

    def dropping(block: nn.Module, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, Any]:
        rows = (torch.rand(len(x)) >= rate_of[id(block)]).nonzero()[:, 0].to(x.device)
        if len(rows) == len(x):
            return call(block, x, layout, state)
        if not len(rows):
            return x, state
        lengths = None if layout.lengths is None else layout.lengths[rows]
        own = Layout(layout.positions[rows], layout.reset[rows], layout.num_before[rows], lengths)
        out, _ = call(block, x[rows], own, None)
        return x.index_copy(0, rows, out), state

    return dropping  # pyright: ignore[reportReturnType]  (rows that are read from their beginning have no state)


class FollowStep(TrainerCallback):
    """Tells an objective which step it is at."""

    def __init__(self, objective: ExitObjective) -> None:
        self._objective = objective

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._objective.step = state.global_step
