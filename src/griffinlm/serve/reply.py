"""One answer in a stored conversation: from the kept state where the last one stands, or from all that was said."""

from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from griffinlm.generation.answering import GenerationOptions
from griffinlm.generation.job import End, Job, Piece
from griffinlm.generation.queue import QueueFullError
from griffinlm.generation.store import StoreError
from griffinlm.serve.errors import ApiError
from griffinlm.serve.records import Message, Record
from griffinlm.serve.served import Asker, require_time
from griffinlm.serve.worker import Answers


@dataclass
class Reply:
    """What is asked behind a record, or at a beginning.

    History is the chat template applied to all messages. Where the answer's own tokens are those that the template
    writes for its text, the state at its end is gone on from; else the state before it, from which the template's
    tokens are then read.
    """

    asker: Asker
    adapter: str | None
    before: Record | None
    instructions: str | None
    messages: list[Message]
    options: GenerationOptions | None
    """None reads the messages only."""
    is_stored: bool = True
    """Whether anything is kept of it."""
    answers: Answers = field(init=False)
    _prompt: list[int] = field(init=False)
    """Tokens of these messages, behind a state; of all, without one."""
    _is_whole: bool = field(init=False)

    async def start(self) -> None:
        """Submits the job; GriffinError where it is refused."""
        before, turns = self.before, self.asker.served.turns
        if before is not None and turns.is_context_free and self._goes_on(before):
            self._is_whole = False
            self._prompt = await self._text(turns.behind, self.messages)
            await self._submit([*before.unread, *self._prompt], before.state_id)
        else:
            await self._start_whole()

    async def events(self) -> AsyncIterator[Piece | End]:
        """Pieces, then the end; the first state may be gone or not to be read, and then all is read anew.

        An answer whose time is over ends with what it has, to be gone on from.
        """
        async for told in self.answers:
            is_gone = isinstance(told, End) and isinstance(told.error, StoreError)
            if is_gone and not self._is_whole:
                await self._start_whole()
                async for other in self.events():
                    yield other
                return
            if isinstance(told, End):
                if told.error is not None:
                    raise told.error
                if self.options is None:
                    require_time([told])
            yield told

    def leave(self) -> None:
        """Nobody wants the rest."""
        self.answers.leave()

    async def end(self) -> End:
        """The end alone."""
        return [told async for told in self.events() if isinstance(told, End)][-1]

    async def record(self, end: End, **known: Any) -> Record:
        """What is stored of it.

        Args:
            known: `id`, `kind`, `model`, `created`, `body`.
        """
        said = list(self.messages)
        if self.options is not None:
            said.append({"role": "assistant", "content": end.text})
        is_turn_end = bool(said) and said[-1]["role"] == "assistant"
        written = await self._written(said)
        state_id, unread = self._place(end, written)
        return Record(
            **known,
            adapter=self.adapter,
            parent=None if self.before is None else self.before.id,
            instructions=self.instructions,
            messages=said,
            num_tokens=end.usage.num_prompt_tokens - len(self._prompt) + len(written),
            state_id=state_id,
            unread=unread,
            is_turn_end=is_turn_end,
            kept_ids=list(end.state_ids.values()),
        )

    async def keep(self, record: Record) -> None:
        """Stores it, and has the model read to its end what it has not yet.

        Raises:
            RecordsError: there is no room for it.
            ApiError: all that it goes on from was deleted meanwhile.
        """
        served = self.asker.served
        await self.asker.on_record_thread(self._store, record)
        if record.unread and record.state_id is not None and record.kind == "response":
            served.in_background(self._read_on(record))

    async def _read_on(self, record: Record) -> None:
        """The state at the very end of a record, in the place of one before it."""
        served, tenant = self.asker.served, self.asker.tenant
        job = Job(
            tenant,
            record.unread,
            None,
            state_id=record.state_id,
            adapter=self.adapter,
            priority=-1,
            timeout_seconds=served.settings.request_timeout_seconds,
        )
        try:
            answers = await served.submit(job, is_asked_for=False)
        except QueueFullError:
            # Others need the slots; whoever goes on from here reads those tokens then.
            return
        try:
            async for told in answers:
                if isinstance(told, End):
                    await self.asker.on_record_thread(self._note_read, record, told)
        finally:
            answers.leave()

    def _store(self, record: Record) -> None:
        records, tenant = self.asker.served.records, self.asker.tenant
        try:
            records.put(tenant, [record], before=self.before)
        except ApiError:
            self.asker.delete_states(record.adapter, records.unused(tenant, record.kept_ids))
            raise

    def _note_read(self, record: Record, end: End) -> None:
        """Tells a record of the state at its end; the states of one that was deleted meanwhile go."""
        records, tenant, kept_ids = self.asker.served.records, self.asker.tenant, list(end.state_ids.values())
        with suppress(ApiError):
            if end.prompt_state_id is not None:
                records.move(tenant, record.id, end.prompt_state_id, kept_ids)
        self.asker.delete_states(record.adapter, records.unused(tenant, kept_ids))

    def _place(self, end: End, written: list[int]) -> tuple[str | None, list[int]]:
        """The kept state to go on from, and the template's tokens from there to the end."""
        prompt, whole = self._prompt, [*self._prompt, *end.token_ids]
        if end.end_state_id is not None and written[: len(whole)] == whole:
            return end.end_state_id, written[len(whole) :]
        if end.prompt_state_id is not None and written[: len(prompt)] == prompt:
            return end.prompt_state_id, written[len(prompt) :]
        if self._is_whole or self.before is None:
            return None, []
        return self.before.state_id, [*self.before.unread, *written]

    def _goes_on(self, before: Record) -> bool:
        """Whether all that was said before stands in a kept state."""
        is_same = before.adapter == self.adapter and before.instructions == self.instructions
        return is_same and before.is_turn_end and before.state_id is not None

    async def _written(self, said: list[Message]) -> list[int]:
        """The template's tokens of these messages and the answer, behind what `_prompt` is behind."""
        turns = self.asker.served.turns
        if not self._is_whole:
            return await self._text(turns.behind, said, False)
        return await self._text(turns.whole, [*await self._said_before(), *said], False)

    async def _start_whole(self) -> None:
        self._is_whole = True
        history = await self._said_before()
        turns, has_answer = self.asker.served.turns, self.options is not None
        self._prompt = await self._text(turns.whole, [*history, *self.messages], has_answer)
        boundaries: tuple[int, ...] = ()
        if history and history[-1]["role"] == "assistant":
            boundaries = (len(await self._text(turns.whole, history, False)),)
        await self._submit(self._prompt, None, boundaries)

    async def _said_before(self) -> list[Message]:
        served = self.asker.served
        path = []
        if self.before is not None:
            path = await self.asker.on_record_thread(served.records.path, self.asker.tenant, self.before)
        said = [message for record in path for message in record.messages]
        system = [] if self.instructions is None else [{"role": "system", "content": self.instructions}]
        return [*system, *said]

    async def _submit(self, token_ids: list[int], state_id: str | None, boundaries: tuple[int, ...] = ()) -> None:
        served = self.asker.served
        self.answers = await served.submit(
            Job(
                self.asker.tenant,
                token_ids,
                self.options,
                state_id=state_id,
                adapter=self.adapter,
                boundaries=boundaries,
                keep=self.is_stored,
                timeout_seconds=served.settings.request_timeout_seconds,
            )
        )

    async def _text(self, function: Any, *arguments: Any) -> list[int]:
        return await self.asker.on_text_thread(function, *arguments)


def without_state(record: Record) -> Record:
    """The same conversation, to be read again when it goes on."""
    return replace(record, state_id=None, unread=[], kept_ids=[])


def forked(record: Record, known: Mapping[str, Any]) -> Record:
    """The same place under another id."""
    return replace(record, **known, kind="state", parent=record.id, messages=[], kept_ids=[], body={})
