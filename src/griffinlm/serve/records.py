"""Stored conversations by id: what was said, and the kept state to go on from. They survive the process."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from griffinlm.generation.store import empty_log
from griffinlm.serve.errors import ApiError, RecordsError, ServeError
from griffinlm.state import Fingerprint

FILE = "conversations.sqlite"
MOST_RECORDS = 100_000
"""Of a tenant; beyond, the oldest go."""
MOST_BYTES = 1 << 30
"""Of the database; beyond, the oldest records of all tenants go."""
BUSY_SECONDS = 30.0
FORMAT_VERSION = 1

Message = dict[str, str]

TABLES = (
    # Content stands last: what is in front of it is read without it.
    """CREATE TABLE records (
        number INTEGER PRIMARY KEY, scope BLOB NOT NULL, is_gone INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL,
        model TEXT NOT NULL, parent TEXT, num_tokens INTEGER NOT NULL, created INTEGER NOT NULL, content TEXT,
        UNIQUE (scope, id)
    )""",
    "CREATE INDEX records_by_parent ON records (scope, parent)",
    "CREATE INDEX records_by_age ON records (scope, number)",
    """CREATE TABLE standings (
        state_id TEXT NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (state_id, number)
    ) WITHOUT ROWID""",
    "CREATE INDEX standings_by_number ON standings (number)",
    """CREATE TRIGGER record_removed AFTER DELETE ON records
        BEGIN DELETE FROM standings WHERE number = old.number; END""",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)


@dataclass(frozen=True)
class Heading:
    """What lists show of a record."""

    id: str
    kind: Literal["response", "state"]
    model: str
    parent: str | None
    """The record that these messages follow; None at a beginning."""
    num_tokens: int
    """Of the whole conversation as the template writes it."""
    created: int


@dataclass(frozen=True)
class Record(Heading):
    """A conversation up to some message: those behind its parent's, and where the model stands at the end of them."""

    adapter: str | None
    instructions: str | None
    """The system message in front of the whole conversation."""
    messages: list[Message]
    state_id: str | None = None
    """A kept state on the way to the end; None where all must be read again."""
    unread: list[int] = field(default_factory=list)
    """Tokens from that state, its pending one first read, to the end."""
    is_turn_end: bool = False
    """Whether the last message is an answer, behind which the template knows no more of what was said."""
    kept_ids: list[str] = field(default_factory=list)
    """All states that were kept on its way."""
    body: dict[str, Any] = field(default_factory=dict)
    """The response as it was told."""

    @property
    def state_ids(self) -> list[str]:
        """All that it stands on."""
        return [*dict.fromkeys([*self.kept_ids, *([] if self.state_id is None else [self.state_id])])]


COLUMNS = tuple(column.name for column in fields(Heading))
"""Of the table, in the order of a heading."""


@contextmanager
def _faults_told() -> Iterator[None]:
    """A full disk, a damaged file and the like as a RecordsError."""
    try:
        yield
    except sqlite3.Error as error:
        raise RecordsError(f"the stored conversations cannot be used: {error}") from error


class Records:
    """Records by tenant and id, used by one thread at a time. What `put` was given survives a crash on return.

    Everything raises RecordsError where the database cannot be read or written.

    Args:
        directory: None keeps everything in this process.
        fingerprint: of the model; records of other models are not found.
        most_bytes: of the database.

    Raises:
        ServeError: the database cannot be used, or has another layout.
    """

    def __init__(self, directory: Path | None, fingerprint: Fingerprint, most_bytes: int = MOST_BYTES) -> None:
        self._model, self._most_bytes = json.dumps(asdict(fingerprint)), most_bytes
        self._file = None if directory is None else directory / FILE
        path = ":memory:" if directory is None else str(directory / FILE)
        try:
            if directory is not None:
                # SQLite gives the files beside this one its mode.
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._opened = self._identity()
            self._database = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            # Deleted content is overwritten, and a commit is on the disk when it returns.
            for setting in ("secure_delete = ON", "journal_mode = WAL", "synchronous = FULL"):
                self._database.execute(f"PRAGMA {setting}")
            with self._writing():
                if self._database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None:
                    for statement in TABLES:
                        self._database.execute(statement)
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
        except (sqlite3.Error, OSError) as error:
            raise ServeError(f"{path} cannot be used: {error}") from error
        if version != FORMAT_VERSION:
            self._database.close()
            raise ServeError(
                f"{path} has format version {version}; this program reads {FORMAT_VERSION}", hint="move it away"
            )

    def close(self) -> None:
        self._database.close()

    @_faults_told()
    def put(
        self, tenant: str, records: Sequence[Record], *, before: Record | None = None, keeps_old: bool = False
    ) -> None:
        """Keeps records, all or none, each in the place of one with its id; or beside those, if the old are to stay.

        Args:
            before: what the first of them goes on from. Where it was deleted meanwhile it is kept on for them alone.

        Raises:
            RecordsError: there is no room for them, or the database was removed since it was opened.
            ApiError: all that they go on from was deleted meanwhile.
        """
        scope = self._scope(tenant)
        with self._writing():
            if before is not None:
                self._keep_on(scope, before)
            self._enter(scope, records, "WHERE is_gone OR content IS NULL" if keeps_old else "")
            self._database.execute(
                "DELETE FROM records WHERE number IN (SELECT number FROM records WHERE scope = ?"
                " ORDER BY number DESC LIMIT -1 OFFSET ?)",
                (scope, MOST_RECORDS),
            )
            self._make_room(scope, records)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Alone among all processes; all changes are made when it ends, or none on an exception."""
        self._require_file()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        finally:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")

    def _enter(self, scope: bytes, records: Sequence[Record], condition: str = "") -> None:
        """Writes records in the places of those with their ids, where these meet the condition."""
        known = [*COLUMNS, "content"]
        self._database.executemany(
            f"INSERT INTO records (scope, is_gone, {', '.join(known)}) VALUES (?, 0{', ?' * len(known)})"
            f" ON CONFLICT (scope, id) DO UPDATE SET is_gone = 0, {', '.join(f'{n} = excluded.{n}' for n in known)}"
            f" {condition}",
            [[*_values(scope, record), json.dumps(asdict(record))] for record in records],
        )
        self._database.executemany(
            "INSERT OR IGNORE INTO standings SELECT ?, number FROM records WHERE scope = ? AND id = ?",
            [(state_id, scope, record.id) for record in records for state_id in record.state_ids],
        )

    def _keep_on(self, scope: bytes, record: Record) -> None:
        """Brings a record that was deleted back as one that others stand on; ApiError where its own parent is gone."""
        if self._is_known(scope, record.id):
            return
        if record.parent is not None and not self._is_known(scope, record.parent):
            raise ApiError(404, f"conversation {record.id} was deleted before its end", code="not_found")
        self._enter(scope, [record])
        self._set_gone(scope, record)

    def _is_known(self, scope: bytes, record_id: str) -> bool:
        """Whether there is such a record, deleted or not."""
        found = self._database.execute("SELECT 1 FROM records WHERE scope = ? AND id = ?", (scope, record_id))
        return found.fetchone() is not None

    def _set_gone(self, scope: bytes, record: Record) -> None:
        self._database.execute("UPDATE records SET is_gone = 1 WHERE scope = ? AND id = ?", (scope, record.id))

    def _require_file(self) -> None:
        """SQLite goes on writing into a removed file, and all of that would be gone with the process."""
        if self._identity() != self._opened:
            raise RecordsError(f"{FILE} was removed or replaced while in use", hint="start the server again")

    def _identity(self) -> tuple[int, int] | None:
        """Which file stands where the database is; None where there is none."""
        if self._file is None:
            return None
        try:
            found = self._file.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _make_room(self, scope: bytes, added: Sequence[Record]) -> None:
        """Takes the oldest records away until the database keeps to its size, but none of the new: RecordsError."""
        if self._num_bytes() <= self._most_bytes:
            return
        is_taken = True
        while is_taken and self._num_bytes() > self._most_bytes:
            oldest = self._database.execute("DELETE FROM records WHERE number = (SELECT min(number) FROM records)")
            is_taken = oldest.rowcount > 0
        if not all(self._is_known(scope, record.id) for record in added):
            raise RecordsError(f"what was said does not fit into the {self._most_bytes} bytes of stored conversations")

    def _num_bytes(self) -> int:
        """Of all pages in use."""
        names = "page_count", "freelist_count", "page_size"
        num_pages, num_free, page_bytes = (self._database.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
        return (num_pages - num_free) * page_bytes

    @_faults_told()
    def get(self, tenant: str, record_id: str, kind: str | None = None) -> Record:
        """A record; ApiError where the tenant has none of that id, or of another kind."""
        record = self._kept(self._scope(tenant), record_id)
        if kind not in (None, record.kind):
            raise not_found(record_id)
        return record

    @_faults_told()
    def _note(self, tenant: str, headings: Sequence[Heading]) -> None:
        """Keeps what lists show of records that are elsewhere; those that are here stay as they are."""
        scope = self._scope(tenant)
        with self._writing():
            self._database.executemany(
                f"INSERT INTO records (scope, is_gone, {', '.join(COLUMNS)}) VALUES (?, 0{', ?' * len(COLUMNS)})"
                " ON CONFLICT DO UPDATE SET is_gone = 0",
                [_values(scope, heading) for heading in headings],
            )

    @_faults_told()
    def newest(self, tenant: str, most: int) -> list[Heading]:
        """The records put last, the last one first."""
        rows = self._database.execute(
            f"SELECT {', '.join(COLUMNS)} FROM records WHERE scope = ? AND NOT is_gone ORDER BY number DESC LIMIT ?",
            (self._scope(tenant), most),
        )
        return [Heading(*row) for row in rows]

    @_faults_told()
    def path(self, tenant: str, record: Record) -> list[Record]:
        """The records from the beginning of a conversation to one of them; ApiError where one is lost."""
        path = [record]
        while (parent := path[-1].parent) is not None:
            found = self._row(self._scope(tenant), parent)
            if found is None:
                raise ApiError(404, f"the beginning of conversation {record.id} is no longer stored", code="not_found")
            path.append(found[0])
        return path[::-1]

    @_faults_told()
    def move(self, tenant: str, record_id: str, state_id: str, kept_ids: Sequence[str]) -> Record:
        """Tells a record of a state at its very end and gives it; ApiError where it was deleted meanwhile.

        Args:
            kept_ids: the states that were kept on the way there, that one among them.
        """
        scope = self._scope(tenant)
        with self._writing():
            record = self._kept(scope, record_id)
            moved = replace(record, state_id=state_id, unread=[], kept_ids=[*record.kept_ids, *kept_ids])
            self._enter(scope, [moved])
        return moved

    @_faults_told()
    def delete(self, tenant: str, record_id: str) -> None:
        """Removes a record; what conversations that go on from it have of it stays until the last of them goes."""
        scope = self._scope(tenant)
        with self._writing():
            record = self._kept(scope, record_id)
            self._set_gone(scope, record)
            self._sweep(scope, record)
        self._empty_log()

    def _empty_log(self) -> None:
        """Writes the log into the database and cuts it to nothing: what was deleted is in neither.

        Raises:
            RecordsError: others keep it from that; the next deletion empties it.
        """
        if not empty_log(self._database.execute, BUSY_SECONDS):
            raise RecordsError(f"deleted, but others keep the log of {FILE} from being emptied")

    @_faults_told()
    def unused(self, tenant: str, state_ids: Iterable[str], besides: str | None = None) -> list[str]:
        """Of these states those that no record stands on, besides the one that is named."""
        scope = self._scope(tenant)
        return [state_id for state_id in dict.fromkeys(state_ids) if not self._is_used(scope, state_id, besides)]

    def _sweep(self, scope: bytes, record: Record) -> None:
        """Takes away a record that is gone and that nothing follows, and so up its path."""
        while True:
            taken = self._database.execute(
                "DELETE FROM records WHERE scope = ?1 AND id = ?2 AND is_gone"
                " AND NOT EXISTS (SELECT 1 FROM records WHERE scope = ?1 AND parent = ?2)",
                (scope, record.id),
            ).rowcount
            found = None if not taken or record.parent is None else self._row(scope, record.parent)
            if found is None:
                return
            record = found[0]

    def _is_used(self, scope: bytes, state_id: str, besides: str | None) -> bool:
        # A cross join is done in the order in which it is written: from the state, not from all records of the scope.
        found = self._database.execute(
            "SELECT 1 FROM standings CROSS JOIN records USING (number)"
            " WHERE state_id = ? AND scope = ? AND NOT is_gone AND id IS NOT ? LIMIT 1",
            (state_id, scope, besides),
        )
        return found.fetchone() is not None

    def _kept(self, scope: bytes, record_id: str) -> Record:
        found = self._row(scope, record_id)
        if found is None or found[1]:
            raise not_found(record_id)
        return found[0]

    def _row(self, scope: bytes, record_id: str) -> tuple[Record, bool] | None:
        """A record, and whether it was deleted while others stand on it."""
        text = record_id.encode("utf-8", "replace").decode()
        row = self._database.execute(
            "SELECT content, is_gone FROM records WHERE scope = ? AND id = ? AND content IS NOT NULL", (scope, text)
        ).fetchone()
        return None if row is None else (Record(**json.loads(row[0])), bool(row[1]))

    def _scope(self, tenant: str) -> bytes:
        return hashlib.sha256(json.dumps([tenant, self._model]).encode()).digest()


def _values(scope: bytes, heading: Heading) -> list[Any]:
    return [scope, *(getattr(heading, column) for column in COLUMNS)]


def not_found(record_id: str) -> ApiError:
    """What is told of an id that the tenant has not."""
    return ApiError(404, f"there is no {record_id[:80]!r}", code="not_found")
