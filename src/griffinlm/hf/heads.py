"""The models with a head: the next token, and a class of the whole text."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.loss.loss_utils import ForCausalLMLoss
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast
from transformers.utils.generic import can_return_tuple

from griffinlm.hf.cache import CacheError, GriffinCache
from griffinlm.hf.config import GriffinConfig
from griffinlm.hf.inputs import InputError
from griffinlm.hf.model import GriffinModel
from griffinlm.hf.pretrained import GriffinPreTrainedModel
from griffinlm.kernels.cross_entropy.chunked import cross_entropy

LOSS_ARGUMENTS = ("num_items_in_batch", "shift_labels")
LOSS_CHUNK_TOKENS = 1024
"""Tokens whose logits exist at once where only the loss is wanted."""


def unpredictable(num_tokens: int, attention_mask: Tensor | None, position_ids: Tensor | None) -> Tensor | None:
    """Which of the tokens of a call [B, T] are padding, behind padding, or the first of a document; None if none."""
    found = None if position_ids is None else position_ids == 0
    if attention_mask is None:
        return found
    is_padding = attention_mask[:, -num_tokens:] == 0
    is_padding = is_padding | nn.functional.pad(is_padding[:, :-1], (1, 0))
    return is_padding if found is None else is_padding | found


class GriffinForCausalLM(GriffinPreTrainedModel, GenerationMixin):
    """Tokens to the logits of the next one: soft_cap(hidden @ embedding^T)."""

    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__(config)
        self.model = GriffinModel(config)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GriffinCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        skip_logits: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Reads tokens on from a cache; arguments as in `GriffinModel.forward` and these.

        Args:
            labels: [B, T], the tokens themselves, -100 where none is to be predicted; the loss is the mean
                cross-entropy of each from the token before it, or its sum divided by `num_items_in_batch`. No token
                is predicted from padding or from another document. `shift_labels` are labels that stand at the token
                before already; they are taken as they are.
            logits_to_keep: for which tokens: the last so many, 0 for all, or their indices.
            skip_logits: return the loss of all tokens alone, in less time and memory: logits exist for some tokens
                at a time.

        Returns:
            float32 `logits` [B, tokens kept, V], None if skipped, and `loss` where there are labels.

        Raises:
            InputError: as in `GriffinModel.forward`, or labels are not one for each token with logits.
        """
        for_loss = {name: kwargs.pop(name) for name in LOSS_ARGUMENTS if name in kwargs}
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        left_out = None if labels is None else unpredictable(hidden.shape[1], attention_mask, position_ids)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden = hidden[:, kept]
        has_labels = labels is not None or for_loss.get("shift_labels") is not None
        for given in (labels, for_loss.get("shift_labels")):
            if given is not None and given.shape != hidden.shape[:2]:
                raise InputError(f"labels are {list(given.shape)}; logits are kept for {list(hidden.shape[:2])}")
        if labels is not None and left_out is not None:
            labels = labels.masked_fill(left_out[:, kept], -100)
        logits = loss = None
        if skip_logits:
            if not has_labels:
                raise InputError("skip_logits is given without labels; the loss is all that it leaves")
            loss = self._loss_alone(hidden, labels, **for_loss)
        else:
            logits = self.lm_head(hidden).float()
            cap = self.config.logit_soft_cap
            if cap is not None:
                logits = torch.tanh(logits / cap) * cap
            if has_labels:
                loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **for_loss)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )

    def _loss_alone(
        self,
        hidden: Tensor,
        labels: Tensor | None,
        shift_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """transformers' ForCausalLMLoss of hidden states [B, T, D], without logits for all of them."""
        if self.loss_function is not ForCausalLMLoss:
            raise InputError("skip_logits is given with a loss function of its own, which reads logits")
        if not isinstance(self.lm_head, nn.Linear):
            raise InputError(
                f"skip_logits is given and lm_head is a {type(self.lm_head).__name__}; it must be a Linear"
            )
        if shift_labels is None:
            assert labels is not None
            shift_labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        wanted = shift_labels.flatten()
        cap = self.config.logit_soft_cap
        total = cross_entropy(hidden.flatten(0, 1), self.lm_head.weight, wanted, cap, LOSS_CHUNK_TOKENS)
        return total / ((wanted >= 0).sum() if num_items_in_batch is None else num_items_in_batch)

    def _prepare_cache_for_generation(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """`generate` begins with an empty cache of ours where it is given none."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise CacheError(f"cache_implementation is {kind!r}; a state has a fixed size and needs none")
        early = generation_config.assistant_early_exit
        if early is not None:
            raise InputError(f"assistant_early_exit is {early}; a state cannot be shared with a pass of fewer layers")
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = GriffinCache()
            if generation_config.is_assistant:
                model_kwargs["past_key_values"].activate_past_recording()


class GriffinForSequenceClassification(GriffinPreTrainedModel):
    """Scores of a whole text: a linear head on the last real token's hidden state."""

    accepts_loss_kwargs = False
    """Else the Trainer passes `num_items_in_batch`, for which a mean over rows has no use."""

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.model = GriffinModel(config)
        self.score = nn.Linear(config.width, config.num_labels, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.score:
            init.normal_(self.score.weight, std=self.config.width**-0.5)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GriffinCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Scores [B, labels] of rows of one text each; arguments as in `GriffinModel.forward`.

        Where there is no attention mask, what equals the configuration's pad token is taken for padding.
        """
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = (input_ids != self.config.pad_token_id).long()
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        num_rows, num_tokens = hidden.shape[:2]
        if attention_mask is None and num_rows > 1 and input_ids is not None:
            raise InputError(f"{num_rows} rows come without attention_mask, and the configuration has no pad_token_id")
        last = torch.full((num_rows,), num_tokens - 1, device=hidden.device)
        if attention_mask is not None:
            places = torch.arange(num_tokens, device=hidden.device)
            last = torch.where(attention_mask[:, -num_tokens:] != 0, places, 0).amax(dim=1)
        scores = self.score(hidden[torch.arange(num_rows, device=hidden.device), last])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=scores, labels=labels, pooled_logits=scores, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=scores,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
        )
