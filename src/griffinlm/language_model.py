"""The library's face: load a model, read, write, score, keep its state."""

import hashlib
import json
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple, Unpack, overload

import numpy as np

from griffinlm.config import ModelConfig
from griffinlm.executor import Engine, Executor, ExecutorError, LogitsChoice, check_adapter, check_tokens
from griffinlm.generation.answering import Answers, GenerationError, GenerationOptions, Options
from griffinlm.generation.candidates import log_normaliser
from griffinlm.generation.completion import Generation
from griffinlm.state import NOTHING_PENDING, Fingerprint, Identity, State, StateError, capacity_of, state_layout
from griffinlm.text import Tokenizer, TokenizerError

FORWARD_CHUNK_TOKENS = 1024
SCORED_LOGITS_AT_MOST = 1 << 25
"""Logits held at once while scoring (128 MiB of float32), whatever the vocabulary."""


Prompt = str | Sequence[int]


class LoadedAdapter(NamedTuple):
    """What a model knows of an adapter that its engine holds."""

    digest: str
    initial_state: Mapping[str, np.ndarray] | None = None
    """Arrays of the state that conversations begin from, where that is what was tuned: one row, BOS read."""


class LanguageModel:
    """A model ready to run, with its tokenizer where it has one. Holds no conversation: states go in and come out.

    Args:
        adapters: those of the engine, by name.
        adapter: the one of them that this model computes with; `with_adapter` gives models of the others.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        weights_digest: Callable[[], str],
        adapters: Mapping[str, LoadedAdapter] | None = None,
        adapter: str | None = None,
    ) -> None:
        self.engine, self.adapter = engine, adapter
        self._tokenizer, self._weights_digest = tokenizer, weights_digest
        self._adapters = dict(adapters or {})
        self._views: dict[str | None, LanguageModel] = {adapter: self}
        self.identity = Identity(
            lambda: Fingerprint(
                weights=_model_digest(engine.config, weights_digest()),
                precision=engine.precision,
                window_dtype=engine.window_dtype,
                tokenizer="" if tokenizer is None else tokenizer.digest,
                adapter="" if adapter is None else self._adapters[adapter].digest,
            )
        )

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """Adapters that can be chosen, whichever is chosen here."""
        return tuple(self._adapters)

    def with_adapter(self, name: str | None) -> "LanguageModel":
        """The model with an adapter, or with none. Both share the weights; neither takes the other's states.

        Raises:
            ExecutorError: no adapter of that name is loaded.
        """
        check_adapter(self._adapters, name)
        if name not in self._views:
            view = LanguageModel(self.engine, self._tokenizer, self._weights_digest, self._adapters, name)
            view._views = self._views
            self._views[name] = view
        return self._views[name]

    @property
    def initial_ids(self) -> list[int]:
        """The tokens that `initial_state` has read: BOS, or none where that is None."""
        if self.initial_state() is None or self.tokenizer.bos_id is None:
            return []
        return [self.tokenizer.bos_id]

    def initial_state(self, rows: int = 1) -> State | None:
        """What every conversation begins from where the adapter is a tuned state; None is a state that is empty."""
        arrays = None if self.adapter is None else self._adapters[self.adapter].initial_state
        if arrays is None:
            return None
        return State({name: np.repeat(array, rows, axis=0) for name, array in arrays.items()}, self.identity)

    @property
    def config(self) -> ModelConfig:
        return self.engine.config

    @property
    def precision(self) -> str:
        return self.engine.precision

    @property
    def window_dtype(self) -> str:
        return self.engine.window_dtype

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises TokenizerError where the model directory has none."""
        if self._tokenizer is None:
            raise TokenizerError(
                "this model has no tokenizer, so it takes token ids only",
                hint="put tokenizer.json or tokenizer.model into the model directory",
            )
        return self._tokenizer

    def new_state(self, rows: int = 1, capacity: int | None = None) -> State:
        """The state of rows that have read nothing, but for the BOS of a tuned state.

        Args:
            capacity: tokens to keep room for; needed by models with global attention, refused by the others.
        """
        if isinstance(rows, bool) or not isinstance(rows, Integral) or rows < 1:
            raise StateError(f"rows is {rows!r}; it must be a whole number, 1 or above")
        layout = state_layout(self.config, int(rows), capacity, self.window_dtype, self.precision)
        try:
            initial = self.initial_state(int(rows))
            if initial is not None and capacity is None:
                return initial
            arrays = {name: np.zeros(spec.shape, spec.dtype) for name, spec in layout.items()}
        except MemoryError as error:
            num_bytes = sum(spec.nbytes for spec in layout.values())
            raise StateError(f"a state of {rows} rows takes {num_bytes} bytes, more than there is memory") from error
        arrays["pending"][:] = NOTHING_PENDING
        return State(arrays, self.identity)

    def forward(
        self,
        token_ids: Any,
        state: State | None = None,
        positions: Any = None,
        logits: LogitsChoice = "all",
    ) -> tuple[np.ndarray | None, State]:
        """Reads tokens on from a state; the state passed in is unchanged.

        Args:
            token_ids: whole numbers [rows, tokens].
            positions: [rows, tokens], 0 at the start of a document, -1 for padding, any other continues by one; None
                continues every row.
            logits: "all" gives float32 [rows, tokens, vocab], "last" [rows, 1, vocab] after each row's last real token,
                "none" gives None.

        Raises:
            GriffinError: tokens, positions or state do not fit the model or each other, or a token is pending.
        """
        try:
            tokens = np.asarray(token_ids)
            places = None if positions is None else np.asarray(positions)
        except ValueError as error:
            raise ExecutorError("token ids or positions have rows of different lengths; pad them") from error
        if tokens.ndim != 2 or not tokens.size:
            raise ExecutorError(
                f"token ids have shape {list(tokens.shape)}; they must be [rows, tokens], at least one each"
            )
        if logits not in ("all", "last", "none"):
            raise ExecutorError(f"logits is {logits!r}; allowed are all, last, none")
        self._check_state(state, len(tokens))
        if state is not None and state.pending.max() != NOTHING_PENDING:
            raise StateError(
                f"the state has a pending token ({state.pending.max()}) that the model has not read",
                hint="generate, stream and read consume it; or give it as the first token to state.with_pending([-1])",
            )
        executor = self._executor(state or self.initial_state(len(tokens)), len(tokens), tokens.shape[1])
        out = _prefill(executor, range(len(tokens)), tokens, places, logits)
        return out, self._export(executor)

    @overload
    def generate(self, prompt: str, *, state: State | None = None, **options: Unpack[Options]) -> Generation: ...
    @overload
    def generate(
        self, prompt: str, *, state: State | None = None, num_answers: int, **options: Unpack[Options]
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompt: Sequence[int] | Sequence[Prompt],
        *,
        state: State | None = None,
        num_answers: int | None = None,
        **options: Unpack[Options],
    ) -> Any: ...
    def generate(
        self,
        prompt: Prompt | Sequence[Prompt],
        *,
        state: State | None = None,
        num_answers: int | None = None,
        **options: Unpack[Options],
    ) -> Generation | list[Generation] | list[list[Generation]]:
        """Continues a prompt, or several side by side, one row of the state each.

        Every answer is as if alone, but for rounding (docs/numerics.md).
        Without a state the prompt begins with BOS; with one it goes on where the state stands, its pending token first.
        Text never becomes control tokens; ids are taken as they are, without BOS. A tuned state has read BOS, so that
        of a prompt without a state is left out.

        Args:
            prompt: text, or a list of ids; or a list of these.
            num_answers: gives that many answers to each prompt, which is read once, as a list. With a seed, answer i is
                the one that seed + i gives alone, but for rounding.
            options: max_tokens (256), min_tokens, stop, json_schema, log_probabilities, logit_bias, capacity, and the
                fields of `SamplingParameters`.
        """
        several = isinstance(prompt, list | tuple) and len(prompt) > 0 and isinstance(prompt[0], str | list | tuple)
        prompts: Sequence[Any] = prompt if several else [prompt]
        num_each = 1 if num_answers is None else _require_answers(num_answers)
        answers = self._answers(prompts, state, options, num_each)
        for _ in answers.pieces():
            pass
        found = answers.results()
        if num_answers is None:
            return found if several else found[0]
        each = [found[start : start + num_each] for start in range(0, len(found), num_each)]
        return each if several else each[0]

    def stream(self, prompt: Prompt, *, state: State | None = None, **options: Unpack[Options]) -> "Stream":
        """Pieces of text as they are written, joined the text of `generate`; then `.generation` is the whole."""
        return Stream(self._answers([prompt], state, options))

    def read(self, text: Prompt, state: State | None = None) -> State:
        """The state after reading text (or ids), its pending token first; BOS first where no state is given."""
        self._check_state(state, 1)
        ids = self._prompt_ids(text, state, 0)
        executor = self._executor(state or self.initial_state(), 1, None)
        _prefill(executor, [0], np.asarray([ids], np.int64), None, "none")
        return self._export(executor)

    def score(self, text: Prompt) -> np.ndarray:
        """log p of every token of a text after those before it, BOS in front (of ids: all but the first); [tokens].

        The token after the BOS of a tuned state has the probability that the model itself gives it.
        """
        ids, initial = self.with_adapter(None)._prompt_ids(text, None, 0), self.initial_state()
        executor = self._executor(None, 1, len(ids))
        size = max(1, min(FORWARD_CHUNK_TOKENS, SCORED_LOGITS_AT_MOST // self.config.vocab_size))
        if initial is None:
            return _score(executor, ids, size)
        num_read = self._num_initial(ids)
        first = _score(executor, ids[: num_read + 1], size)
        executor.import_state(0, initial.arrays())
        return np.concatenate([first, _score(executor, ids[num_read:], size)])

    def _answers(
        self, prompts: Sequence[Prompt], state: State | None, options: Options, num_answers: int = 1
    ) -> Answers:
        checked = GenerationOptions.of(options)
        if checked.stop and self._tokenizer is None:
            raise GenerationError("stop strings need a tokenizer, which this model does not have")
        if checked.logit_bias:
            check_tokens(self.config, np.asarray([*checked.logit_bias]))
        if checked.capacity is not None and (state is not None or not self.config.needs_capacity):
            raise GenerationError(
                f"capacity is {checked.capacity}; only a new state of a model with global attention takes one"
            )
        self._check_state(state, len(prompts))
        rows = [None if state is None else state.row(row) for row in range(len(prompts))]
        ids = [self._prompt_ids(prompt, one, row) for row, (prompt, one) in enumerate(zip(prompts, rows, strict=True))]
        states = [one or self.initial_state() for one in rows]
        wanted = max(len(one) for one in ids) + checked.max_tokens
        if checked.capacity is not None and wanted > checked.capacity:
            raise GenerationError(
                f"prompt and answer may reach {wanted} tokens; the capacity is {checked.capacity}",
                hint="give a larger capacity, or fewer max_tokens",
            )
        room = wanted if checked.capacity is None else checked.capacity
        executor = self.engine.executor(len(ids) * num_answers, self._capacity(state, room))

        def make_state(arrays: dict[str, np.ndarray]) -> State:
            return State(arrays, self.identity)

        return Answers(executor, ids, states, checked, self._tokenizer, make_state, num_answers, self.adapter)

    def _prompt_ids(self, prompt: Prompt, state: State | None, row: int) -> list[int]:
        pending = [] if state is None or state.pending[0] == NOTHING_PENDING else [int(state.pending[0])]
        if isinstance(prompt, str):
            start = [self.tokenizer.bos_id] if state is None and self.tokenizer.bos_id is not None else []
            ids = [*pending, *start, *self.tokenizer.encode(prompt)]
        else:
            ids = [*pending, *_whole_numbers(prompt)]
            check_tokens(self.config, np.asarray(ids))
        if state is None:
            ids = ids[self._num_initial(ids) :]
        if not ids:
            raise GenerationError(
                f"prompt {row} is empty and its state has no pending token, so there is nothing to go on from",
                hint="give at least one character or token",
            )
        return ids

    def _num_initial(self, ids: list[int]) -> int:
        """How many tokens at the front of a document's ids the initial state has read already."""
        initial = self.initial_ids
        return len(initial) if ids[: len(initial)] == initial else 0

    def _check_state(self, state: State | None, rows: int) -> None:
        if state is None:
            return
        if not isinstance(state, State):
            raise StateError(f"state is {type(state).__name__}; it must be a griffinlm.State")
        if state.rows != rows:
            raise StateError(f"the state has {state.rows} rows; the tokens have {rows}")
        self.identity.require_same(state.identity, "the state")

    def _capacity(self, state: State | None, room: int | None) -> int | None:
        if not self.config.needs_capacity:
            return None
        if state is None:
            if room is None:
                raise StateError(
                    "a model with global attention needs a state with room for the conversation",
                    hint="pass state=model.new_state(capacity=...)",
                )
            return room
        return capacity_of(self.config, state.arrays())

    def _executor(self, state: State | None, rows: int, room: int | None) -> Executor:
        executor = self.engine.executor(rows, self._capacity(state, room))
        for row in range(rows):
            if self.adapter is not None:
                executor.use_adapter(row, self.adapter)
            if state is not None:
                executor.import_state(row, state.row(row).arrays())
        return executor

    def _export(self, executor: Executor) -> State:
        return State.stack([State(executor.export_state(s), self.identity) for s in range(executor.num_slots)])


class Stream:
    """An iterator over the pieces of one answer."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._pieces = answers.pieces()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)[1]

    def stop(self) -> State | None:
        """Ends the answer behind the last piece, and gives the state there; None where there was no piece yet."""
        return self._answers.stop()

    @property
    def generation(self) -> Generation:
        """The whole answer with its state; the rest of it is written first if the iterator has not reached its end."""
        for _ in self._pieces:
            pass
        return self._answers.results()[0]


def _whole_numbers(prompt: Any) -> list[int]:
    """Token ids as plain numbers; nothing is rounded or read as something else."""
    try:
        if isinstance(prompt, bytes | bytearray):
            raise TypeError
        return [operator.index(token) for token in prompt]
    except TypeError as error:
        raise GenerationError(f"a prompt is {type(prompt).__name__}; it must be text or a list of token ids") from error


def _require_answers(num_answers: Any) -> int:
    if isinstance(num_answers, bool) or not isinstance(num_answers, Integral) or num_answers < 1:
        raise GenerationError(f"num_answers is {num_answers!r}; it must be a whole number, 1 or above")
    return int(num_answers)


def _score(executor: Executor, ids: list[int], size: int) -> np.ndarray:
    """log p of every id but the first after those before it, read into slot 0 in chunks of `size`; [ids - 1]."""
    found = []
    for start in range(0, len(ids) - 1, size):
        chunk = np.asarray([ids[start : min(start + size, len(ids) - 1)]], np.int64)
        logits = executor.prefill([0], chunk, None, "all")
        assert logits is not None
        targets = ids[start + 1 : start + 1 + chunk.shape[1]]
        chosen = logits[0][np.arange(len(targets)), targets]
        found.append(chosen - log_normaliser(logits[0]))
    return np.concatenate(found) if found else np.zeros(0)


def _model_digest(config: ModelConfig, weights_digest: str) -> str:
    """Of weights and whatever of the configuration decides what is computed from them."""
    values = config.to_dict()
    if values["recurrent"] is not None:
        del values["recurrent"]["initial_decay_range"]
    return hashlib.sha256(f"{json.dumps(values, sort_keys=True)} {weights_digest}".encode()).hexdigest()


def _prefill(
    executor: Executor, slots: Sequence[int], tokens: np.ndarray, positions: np.ndarray | None, logits: LogitsChoice
) -> np.ndarray | None:
    """`executor.prefill` in chunks, so that memory does not grow with the length beyond the logits asked for."""
    if positions is not None or logits == "all" or tokens.shape[1] <= FORWARD_CHUNK_TOKENS:
        return executor.prefill(slots, tokens, positions, logits)
    last = (tokens.shape[1] - 1) // FORWARD_CHUNK_TOKENS * FORWARD_CHUNK_TOKENS
    for start in range(0, last, FORWARD_CHUNK_TOKENS):
        executor.prefill(slots, tokens[:, start : start + FORWARD_CHUNK_TOKENS], None, "none")
    return executor.prefill(slots, tokens[:, last:], None, logits)
