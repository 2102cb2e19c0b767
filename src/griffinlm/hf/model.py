"""GriffinModel: the blocks of `model.Griffin` behind the interface of a transformers model. It defines no layer."""

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from griffinlm.checkpoint.initial import initial_tensor
from griffinlm.hf.cache import CacheError, GriffinCache, Tokens
from griffinlm.hf.config import GriffinConfig
from griffinlm.hf.inputs import InputError, check_arguments, positions_of
from griffinlm.hf.pretrained import GriffinPreTrainedModel
from griffinlm.model.blocks import BlockState, Layout
from griffinlm.model.griffin import Griffin, GriffinState, read

NUM_TOKENS_TO_TAKE_BACK = 512
"""Of a prompt read into a cache that records: to take back more, the whole prompt would have to be read again."""


class GriffinModel(GriffinPreTrainedModel):
    """Embedding, blocks and final norm: tokens to hidden states."""

    def __init__(self, config: GriffinConfig) -> None:
        super().__init__(config)
        griffin = Griffin(config.model_config)
        self.embedding, self.layers, self.final_norm = griffin.embedding, griffin.layers, griffin.final_norm
        self.gradient_checkpointing = False
        """Whether the backward pass computes blocks again instead of keeping their activations."""
        self.every_n_layers = 1
        """Which blocks: the first of every so many."""
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """The values of `checkpoint.initial`, drawn by torch's generator."""
        prefix = {child: name for name, child in self.named_modules()}.get(module)
        if prefix is None:
            super()._init_weights(module)
            return
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not getattr(parameter, "_is_hf_initialized", False):
                random = np.random.default_rng(int(torch.randint(2**62, ())))
                values = initial_tensor(self.config.model_config, name, tuple(parameter.shape), random)
                init.copy_(parameter, torch.from_numpy(values))

    def get_input_embeddings(self) -> nn.Module:
        return self.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embedding = value

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: GriffinCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Reads tokens on from a cache.

        Args:
            input_ids: [B, T], or `inputs_embeds` [B, T, D], which are not scaled.
            attention_mask: [B, columns of the cache + T], 0 for padding, which may stand anywhere.
            position_ids: [B, T] or [1, T], place of each token in its document: 0 starts one, so that rows may pack
                several. What stands at padding does not matter. Without them every row is one document.
            past_key_values: what was read before; its state is replaced.
            use_cache: whether a cache is returned where none is given. None is so outside of training.
            output_hidden_states: the input of each block [B, T, D], and the last hidden state.

        Returns:
            `last_hidden_state` [B, T, D], after the final norm; finite and without meaning at padding.

        Raises:
            InputError: a shape or an argument is not one of these.
            ExecutorError: a position neither starts a document nor continues one.
            CacheError: the cache is of another kind.
        """
        check_arguments(kwargs, output_attentions, position_ids)
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("exactly one of input_ids and inputs_embeds must be given")
        embeddings = self.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        cache = past_key_values
        if cache is None:
            if self.config.use_cache and not self.training if use_cache is None else use_cache:
                cache = GriffinCache()
        elif not isinstance(cache, GriffinCache):
            raise CacheError(f"past_key_values is a {type(cache).__name__}; it must be a GriffinCache")
        elif cache.unread is not None:
            cache.reserve(self.config.model_config, 0, cache.unread.positions)
            cache.note_unread(self._run(*cache.unread, cache.state, None)[1])
        positions = positions_of(embeddings, attention_mask, position_ids, cache)
        wants_states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        inputs: list[Tensor] | None = [] if wants_states else None
        if cache is None:
            hidden, _ = self._run(embeddings, positions, None, inputs)
        else:
            hidden = self._read_on(embeddings, positions, cache, inputs)
        return BaseModelOutputWithPast(
            last_hidden_state=hidden,
            past_key_values=cache,
            hidden_states=None if inputs is None else (*inputs, hidden),
        )

    def _read_on(
        self, embeddings: Tensor, positions: Tensor | None, cache: GriffinCache, inputs: list[Tensor] | None
    ) -> Tensor:
        """The last hidden states of tokens, which the cache has read afterwards."""
        num_tokens = embeddings.shape[1]
        if cache.is_recording and cache.state is None and num_tokens > NUM_TOKENS_TO_TAKE_BACK and inputs is None:
            assert positions is not None
            cut = num_tokens - NUM_TOKENS_TO_TAKE_BACK
            first = self._read_on(embeddings[:, :cut], positions[:, :cut], cache, None)
            cache.mark()
            return torch.cat([first, self._read_on(embeddings[:, cut:], positions[:, cut:], cache, None)], dim=1)
        cache.reserve(self.config.model_config, num_tokens, positions)
        hidden, state = self._run(embeddings, positions, cache.state, inputs)
        cache.note(None if positions is None else Tokens(embeddings, positions), state, num_tokens)
        return hidden

    def _run(
        self, embeddings: Tensor, positions: Tensor | None, state: GriffinState | None, inputs: list[Tensor] | None
    ) -> tuple[Tensor, GriffinState]:
        """The last hidden states [B, T, D] and the state after them; `inputs` takes those of every block."""
        config = self.config.model_config
        x = embeddings * config.embedding_scale
        before: list[Tensor] = []
        depths = itertools.count()

        def call(block: nn.Module, x: Tensor, layout: Layout, state: BlockState | None) -> tuple[Tensor, BlockState]:
            if inputs is not None:
                before.append(x)
            is_chosen = next(depths) % self.every_n_layers == 0
            if self.gradient_checkpointing and self.training and is_chosen:
                return self._gradient_checkpointing_func(block.__call__, x, layout, state)
            return block(x, layout, state)

        reading = read(config, self.layers, x, state, positions, call)
        if inputs is not None:
            inputs += map(reading.in_order, before)
        return reading.in_order(self.final_norm(reading.x)), reading.state
