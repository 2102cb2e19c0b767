"""GriffinCache: a model's state as the cache object that transformers passes into a model and gets back."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError
from griffinlm.model.griffin import GriffinState
from griffinlm.model.state import from_named, to_named


class CacheError(GriffinError):
    """A cache that cannot do what is asked of it."""


class Tokens(NamedTuple):
    """Some tokens, embedded."""

    embeddings: Tensor
    """[B, T, D], not scaled."""
    positions: Tensor
    """[B, T], -1 for padding."""

    def followed_by(self, others: "Tokens") -> "Tokens":
        return Tokens(*(torch.cat(pair, dim=1) for pair in zip(self, others, strict=True)))


class GriffinCache(Cache):
    """What the model has read. A call that is given the cache replaces the state in it; the tensors never change.

    So `copy.copy(cache)` is a fork: both go on from the same state, each for itself.

    Taking tokens back, which assisted generation asks for, needs `activate_past_recording` first. The cache then keeps
    the state of one earlier moment and the tokens read since. `crop` returns to that state, and the next call begins
    with reading the tokens that stay once more.
    """

    def __init__(self, state: GriffinState | None = None) -> None:
        super().__init__(layers=[])
        self.state = state
        """After all tokens that have been read; None is nothing."""
        self.num_columns = 0 if state is None else int(state.num_tokens.max())
        """Columns of the attention mask that the cache stands for, padding included."""
        self.is_recording = False
        self.unread: Tokens | None = None
        """Tokens that belong to the cache, and that the next call reads before all others."""
        self._mark: GriffinState | None = None
        self._since_mark: Tokens | None = None

    @property
    def num_tokens(self) -> Tensor | None:
        """[B], tokens of each row's present document that have been read; None before the first."""
        return None if self.state is None else self.state.num_tokens

    def note(self, tokens: Tokens | None, state: GriffinState, num_columns: int) -> None:
        """The model has read tokens and is in `state` now; a cache that records must be given the tokens."""
        if self.is_recording:
            assert tokens is not None
            self._since_mark = tokens if self._since_mark is None else self._since_mark.followed_by(tokens)
        self.state = state
        self.num_columns += num_columns

    def note_unread(self, state: GriffinState) -> None:
        """The model has read the unread tokens and is in `state` now, to which `crop` returns from here on."""
        self.state, self.unread = state, None
        self.mark()

    def mark(self) -> None:
        """Makes the present state the one that `crop` returns to."""
        self._mark, self._since_mark = self.state, None

    def reserve(self, config: ModelConfig, num_new: int, positions: Tensor | None) -> None:
        """Makes room for `num_new` tokens in the rings of global attention, which are never overwritten."""
        if not config.needs_capacity or self.state is None:
            return
        num_tokens = int(self.state.num_tokens.max()) + num_new if positions is None else int(positions.max()) + 1
        named = to_named(config, self.state)
        for step in config.plan():
            if step.kind == "global_attention":
                for name in (f"{step.state}.keys", f"{step.state}.values"):
                    missing = num_tokens - named[name].shape[1]
                    if missing > 0:
                        # Doubling, so that tokens read one by one do not copy the ring each time.
                        missing = max(missing, named[name].shape[1])
                        named[name] = torch.nn.functional.pad(named[name], (0, 0, 0, missing))
        self.state = from_named(config, named)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.num_columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1, no largest length."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.num_columns + query_length, 0

    @property
    def batch_size(self) -> int:
        return -1 if self.state is None else len(self.state.num_tokens)

    @property
    def is_initialized(self) -> bool:
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        return True

    def activate_past_recording(self) -> None:
        if not self.is_recording:
            self.is_recording = True
            self.mark()

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last `-tokens_to_remove` tokens back; 0 says that all of them stay.

        Raises:
            CacheError: the number is positive, or the cache does not record, or the tokens were read before it did.
        """
        if tokens_to_remove > 0:
            raise CacheError(f"tokens to remove are {tokens_to_remove}; they are counted by a negative number")
        if tokens_to_remove == 0:
            if self.unread is None:
                self.mark()
            return
        recorded = self.unread if self._since_mark is None else self._since_mark
        num_recorded = 0 if recorded is None else recorded.positions.shape[1]
        if recorded is None or -tokens_to_remove > num_recorded:
            raise CacheError(
                f"{-tokens_to_remove} tokens cannot be taken back; {num_recorded} were recorded",
                hint="call activate_past_recording() before the tokens are read",
            )
        self.state, self._since_mark = self._mark, None
        self.unread = Tokens(*(t[:, :tokens_to_remove] for t in recorded)) if -tokens_to_remove < num_recorded else None
        self.num_columns += tokens_to_remove

    def reset(self) -> None:
        """Forgets everything."""
        self.state = self.unread = self._mark = self._since_mark = None
        self.num_columns = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """The rows `indices`, in that order, each as often as it is named."""
        self._map(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state, self._mark = (
            state and GriffinState(change(state.num_tokens), tuple(type(b)(*map(change, b)) for b in state.blocks))
            for state in (self.state, self._mark)
        )
        self.unread, self._since_mark = (
            tokens and Tokens(*map(change, tokens)) for tokens in (self.unread, self._since_mark)
        )

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Other models' attention calls this; the cache belongs to models of this package.

        Raises:
            CacheError: always.
        """
        raise CacheError("a GriffinCache holds a Griffin's state; it has no keys and values of another model's layers")
