"""The protocol between whoever turns requests into tokens and whoever owns the memory of the model."""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.errors import GriffinError

LogitsChoice = Literal["all", "last", "none"]


class ExecutorError(GriffinError):
    """Tokens, positions or states that an executor cannot take."""


class Executor(Protocol):
    """Slots that each hold the state of one conversation. Everybody else sees slot numbers and arrays.

    A call has done its work when it returns, and one that raises a GriffinError has done none.
    """

    num_slots: int

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        """Reads tokens [rows, tokens] into the slots.

        Args:
            positions: [rows, tokens], 0 at the start of a document, -1 for padding, any other continues by one; None
                continues every row without padding.
            logits: "all" gives [rows, tokens, vocab], "last" those of each row's last real token [rows, 1, vocab].
        """
        ...

    def step(self, slots: Sequence[int], tokens: Sequence[int]) -> np.ndarray:
        """Reads one token a slot and gives the logits after it, float32 [rows, vocab]."""
        ...

    def mark(self, slot: int) -> Any:
        """Remembers the slot's present state."""
        ...

    def rollback(self, slot: int, mark: Any) -> None:
        """Puts the slot back to a mark taken of it; the mark stays good."""
        ...

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        """Copies of the arrays of a state with one row, as in `state.state_layout`, nothing pending."""
        ...

    def import_state(self, slot: int, arrays: dict[str, np.ndarray]) -> None:
        """Fills the slot from arrays as `export_state` gives them."""
        ...

    def use_adapter(self, slot: int, name: str | None) -> None:
        """Computes the slot's tokens with that adapter of the engine from now on, or with none; its state stays.

        Slots with different adapters run side by side in one call.

        Raises:
            ExecutorError: the engine has no adapter of that name.
        """
        ...

    def release(self, slot: int) -> None:
        """Empties the slot, so that the next conversation finds nothing of the last, its adapter included."""
        ...


DRAWN_TEMPERATURES = (1e-20, 1e20)
"""Past these float32 overflows, and the draw is long one among the best tokens or one among all."""


class Draw(NamedTuple):
    """How the next token is drawn from logits: the fields of `SamplingParameters` that no earlier token matters to."""

    number: float
    """The uniform number in [0, 1) behind the token; not looked at where the temperature is 0."""
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@runtime_checkable
class DrawingExecutor(Executor, Protocol):
    """An executor that can also draw tokens where their logits are, so that these need not come to the host."""

    def step_and_draw(
        self, slots: Sequence[int], tokens: Sequence[int], draws: Sequence[Draw], num_choices: int | None = None
    ) -> np.ndarray:
        """Reads one token a slot and draws the next one of each; int64 [rows].

        A token is the one that `generation.candidates.draw_tokens` gives for the logits of `step`.

        Args:
            num_choices: ids from here on are never drawn.

        Returns:
            -1 where the best logit is not finite; the slot has read its token all the same.
        """
        ...


class LoopExecutor(Executor, Protocol):
    """An executor whose tokens go through the loops of a recursive model one by one, each slot at its own depth.

    A token that has left before the last loop is owed to the deeper ones: they read it before the slot's next token
    that goes as deep, or before anything else looks at the slot's state. So every state is that of full depth. In a
    model that skips nothing is owed: the deeper loops never read it, and the state counts it in `num_skipped`.

    What looks at a slot's state while a token is on its way makes all loops read that token first.
    """

    num_loops: int

    def enter(self, slots: Sequence[int], tokens: Sequence[int]) -> None:
        """Puts one token a slot in front of the first loop."""
        ...

    def run_loop(self, slots: Sequence[int]) -> Sequence[bool]:
        """Runs the next loop of each slot's token, all slots together; whether each token may leave here."""
        ...

    def leave(self, slots: Sequence[int]) -> np.ndarray:
        """Ends the way of each slot's token where it stands; the head's logits there, float32 [rows, vocab]."""
        ...


class WithdrawingExecutor(LoopExecutor, Protocol):
    """A `LoopExecutor` that can take a token back as long as it is on its way."""

    def withdraw(self, slot: int) -> None:
        """Makes the slot as it was before its token entered the loops; nothing where none is on its way."""
        ...


class SettledSlots:
    """In front of an executor's class: whatever else looks at a slot finds the tokens on their way read whole.

    What is under way in a slot that is set back or released is forgotten.
    """

    def prefill(
        self, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
    ) -> np.ndarray | None:
        self._settle(slots)
        return self._next_class().prefill(slots, tokens, positions, logits)

    def mark(self, slot: int) -> Any:
        self._settle([slot])
        return self._next_class().mark(slot)

    def rollback(self, slot: int, mark: Any) -> None:
        self._forget(slot)
        self._next_class().rollback(slot, mark)

    def export_state(self, slot: int) -> dict[str, np.ndarray]:
        self._settle([slot])
        return self._next_class().export_state(slot)

    def release(self, slot: int) -> None:
        self._forget(slot)
        self._next_class().release(slot)

    def use_adapter(self, slot: int, name: str | None) -> None:
        self._settle([slot])
        self._next_class().use_adapter(slot, name)

    def _next_class(self) -> Any:
        return super()

    @abstractmethod
    def _settle(self, slots: Sequence[int]) -> None:
        """Reads the slots' tokens whole."""

    @abstractmethod
    def _forget(self, slot: int) -> object:
        """Drops what is under way in a slot."""


class DraftingExecutor(Executor, Protocol):
    """An executor that reads tokens of its own guessing, and forgets those that were wrong."""

    def read_ahead(
        self, slots: Sequence[int], tokens: Sequence[int], num_guesses: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Guesses, greedily, tokens behind the one given for each slot, and reads them all; the slots' states stay.

        Returns:
            the guesses [rows, n], where n is `num_guesses` or as many as there is capacity for, and the model's float32
            logits behind the given token and behind each guess [rows, n + 1, vocab].
        """
        ...

    def keep(self, slot: int, num_tokens: int) -> None:
        """Makes the first `num_tokens` of what was read ahead part of the slot's state, as if no others had been."""
        ...


class Extra(NamedTuple):
    """Bytes that an executor keeps between its calls beside the states of its slots, at most."""

    num_bytes: int = 0
    num_bytes_a_slot: int = 0

    def of(self, num_slots: int) -> int:
        """Of an executor with so many slots."""
        return self.num_bytes + num_slots * self.num_bytes_a_slot


class Engine(Protocol):
    """The weights of a model, ready to run. Executors made from one engine share them."""

    config: ModelConfig
    precision: str
    """Type of weights and activations."""
    window_dtype: str
    """Type of attention's keys and values in the state."""

    def extra(self, capacity: int | None = None) -> Extra:
        """What executors of that capacity keep beside the states of their slots."""
        ...

    def executor(self, num_slots: int, capacity: int | None = None) -> Executor:
        """New slots, all empty."""
        ...


def check_prefill(
    config: ModelConfig,
    tokens: np.ndarray,
    positions: np.ndarray | None,
    num_tokens: np.ndarray,
    capacity: int | None,
) -> None:
    """Refuses what no engine may compute on.

    Args:
        num_tokens: [rows], tokens of each row's document read so far.

    Raises:
        ExecutorError: wrong shape or type, an id outside the vocabulary, a position that neither starts a document,
            pads nor continues, or one past the capacity.
    """
    if tokens.ndim != 2 or tokens.dtype.kind not in "iu":
        raise ExecutorError(
            f"token ids are {tokens.dtype}{list(tokens.shape)}; they must be whole numbers [rows, tokens]"
        )
    if not tokens.shape[1]:
        raise ExecutorError("there are no tokens; at least one a row must be given")
    if positions is None:
        real = np.ones(tokens.shape, bool)
        newest = num_tokens + tokens.shape[1] - 1
    else:
        if positions.shape != tokens.shape or positions.dtype.kind != "i":
            found = f"{positions.dtype}{list(positions.shape)}"
            raise ExecutorError(f"positions are {found}; they must be signed whole numbers {list(tokens.shape)}")
        real = positions >= 0
        check_continuation(positions, num_tokens)
        newest = positions.max(axis=1)
    check_tokens(config, tokens[real])
    require_capacity(int(newest.max()) + 1, capacity)


def require_capacity(num_tokens: int, capacity: int | None) -> None:
    """Refuses a conversation of more tokens than the state has room for; None is room for any number.

    Raises:
        ExecutorError: it names both.
    """
    if capacity is not None and num_tokens > capacity:
        raise ExecutorError(
            f"the conversation reaches {num_tokens} tokens; the state's capacity is {capacity}",
            hint="make the state with a larger capacity",
        )


def require_arrays(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> None:
    """Refuses a state that lacks some of the arrays named; ExecutorError names the first."""
    missing = [name for name in names if name not in arrays]
    if missing:
        raise ExecutorError(f"a state has no array {missing[0]}; the executor needs it")


def check_tokens(config: ModelConfig, tokens: np.ndarray) -> None:
    """Refuses ids outside the vocabulary, in any shape of array.

    Raises:
        ExecutorError: it names the first.
    """
    wrong = tokens[(tokens < 0) | (tokens >= config.vocab_size)]
    if wrong.size:
        raise ExecutorError(f"token id {wrong[0]} is not in the vocabulary; ids are 0 to {config.vocab_size - 1}")


def check_adapter(names: Collection[str], name: str | None) -> None:
    """Refuses the name of an adapter that an engine does not have.

    Raises:
        ExecutorError: it lists those that are there.
    """
    if name is not None and name not in names:
        raise ExecutorError(f"there is no adapter {name!r}; loaded are {', '.join(names) or 'none'}")


def check_continuation(positions: np.ndarray, num_tokens: np.ndarray) -> None:
    """Refuses positions [rows, tokens] that neither start a document, pad, nor continue the tokens read before.

    Args:
        num_tokens: [rows], tokens of each row's document read so far.

    Raises:
        ExecutorError: it names the first.
    """
    if positions.min() < -1:
        raise ExecutorError(f"position {positions.min()} is below -1; -1 is padding and 0 starts a document")
    for row, before in zip(positions, num_tokens, strict=True):
        real = row[row >= 0]
        expected = np.concatenate([[before], real[:-1] + 1])
        wrong = np.flatnonzero((real != expected) & (real != 0))
        if wrong.size:
            at = wrong[0]
            raise ExecutorError(f"position {real[at]} continues no document; here it must be {expected[at]}, 0 or -1")
