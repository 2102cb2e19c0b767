"""Which states there are: one SQLite database, the only place that decides what exists.

A state is a node. It may stand on another one, its base, which must be there as long as it is. A node without an id
was deleted by its owner and is kept only for those that stand on it. Names keep a state from being dropped for room.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from griffinlm.errors import in_one_line
from griffinlm.generation.store.errors import NoRoomError, StoreError

BUSY_TIMEOUT_SECONDS = 60.0
RETRY_SECONDS = 0.005
APPLICATION_ID = 0x67724673
FORMAT_VERSION = 2
LOOKUPS_AT_ONCE = 500
SCOPE_BYTES = 64
"""A hash of the owner and one of the model."""

SCHEMA = (
    """CREATE TABLE states (
        node INTEGER PRIMARY KEY AUTOINCREMENT,
        scope BLOB NOT NULL,
        id TEXT,
        base INTEGER REFERENCES states (node),
        num_links INTEGER NOT NULL,
        record TEXT NOT NULL,
        checksum BLOB NOT NULL,
        num_bytes INTEGER NOT NULL,
        num_tokens INTEGER NOT NULL,
        block BLOB,
        prefix BLOB,
        used INTEGER NOT NULL,
        UNIQUE (scope, id)
    )""",
    "CREATE INDEX states_by_block ON states (scope, block, num_tokens)",
    "CREATE INDEX states_by_prefix ON states (scope, prefix)",
    "CREATE INDEX states_by_base ON states (base)",
    "CREATE INDEX states_by_use ON states (used)",
    """CREATE TABLE names (
        scope BLOB NOT NULL,
        name TEXT NOT NULL,
        node INTEGER NOT NULL REFERENCES states (node),
        PRIMARY KEY (scope, name)
    )""",
    "CREATE INDEX names_by_node ON names (node)",
    "CREATE TABLE totals (num_bytes INTEGER NOT NULL, num_damaged INTEGER NOT NULL)",
    "INSERT INTO totals VALUES (0, 0)",
    """CREATE TRIGGER state_added AFTER INSERT ON states
        BEGIN UPDATE totals SET num_bytes = num_bytes + new.num_bytes; END""",
    """CREATE TRIGGER state_removed AFTER DELETE ON states
        BEGIN UPDATE totals SET num_bytes = num_bytes - old.num_bytes; END""",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT_VERSION}",
)


class Node(NamedTuple):
    """How a state is put together."""

    node: int
    scope: bytes
    id: str | None
    base: int | None
    num_links: int
    """Nodes below this one, down to the record that stands on nothing."""
    record: str
    checksum: bytes
    """SHA-256 of the record."""


_NODE = ", ".join(Node._fields)
_NODE_OF_S = ", ".join(f"s.{field}" for field in Node._fields)


class NewState(NamedTuple):
    """A state to be added."""

    scope: bytes
    id: str
    base: Node | None
    record: str
    checksum: bytes
    num_bytes: int
    num_tokens: int
    block: bytes
    prefix: bytes


class Index:
    """The database. What changes something is called inside `writing`.

    Every method raises StoreError where the database is damaged, cannot be written, or is held too long by others.
    """

    def __init__(self, directory: Path | None) -> None:
        """`directory` holds `index.sqlite`; None keeps the index in memory."""
        self._where = "in memory" if directory is None else str(directory)
        path = ":memory:" if directory is None else directory / "index.sqlite"
        if directory is not None:
            # For the owner alone, like the records; the log takes the mode of the database.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        try:
            self._database = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        self._used: dict[int, None] = {}
        try:
            self._prepare()
        except BaseException:
            self._database.close()
            raise

    def _prepare(self) -> None:
        # Deleted content is overwritten, and a commit is on the disk when it returns.
        for setting in ("secure_delete = ON", "journal_mode = WAL", "synchronous = FULL"):
            self._run(f"PRAGMA {setting}")
        with self.writing():
            if not self._run("SELECT 1 FROM sqlite_master LIMIT 1"):
                for statement in SCHEMA:
                    self._run(statement)
        found = self._run("PRAGMA application_id")[0][0], self._run("PRAGMA user_version")[0][0]
        if found[0] != APPLICATION_ID:
            raise StoreError(f"index.sqlite in {self._where} is no index of a state store")
        if found[1] != FORMAT_VERSION:
            raise StoreError(
                f"state store {self._where} has format version {found[1]}; this program reads {FORMAT_VERSION}"
            )
        faults = self._run("PRAGMA quick_check(1)")[0][0]
        if faults != "ok":
            raise self._damaged(str(faults))

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Alone among all threads and processes; all changes are made when it ends, or none on an exception."""
        self._run("BEGIN IMMEDIATE")
        try:
            for node in self._used:
                self._run("UPDATE states SET used = ? WHERE node = ?", self._next_use(), node)
            yield
            self._run("COMMIT")
            self._used.clear()
        finally:
            if self._database.in_transaction:
                self._database.rollback()

    def empty_log(self) -> None:
        """Writes the log into the database and cuts it to nothing: what was deleted is in neither.

        On a full disk it keeps hashes and names of what was deleted until the next deletion.
        """
        with suppress(NoRoomError):
            self._empty_log()

    def _empty_log(self) -> None:
        if not empty_log(self._run, BUSY_TIMEOUT_SECONDS):
            raise StoreError(
                f"deleted from state store {self._where}, but others keep its log from being emptied",
                hint="the next deletion empties it",
            )

    # Finding.

    def node(self, scope: bytes, state_id: str) -> Node | None:
        found = self._run(f"SELECT {_NODE} FROM states WHERE scope = ? AND id = ?", scope, state_id)
        return Node(*found[0]) if found else None

    def chain(self, node: int) -> list[Node]:
        """The node, its base, and so on to the one that stands on nothing; empty where it is gone."""
        found = self._run(
            f"""WITH RECURSIVE chain AS (
                    SELECT {_NODE} FROM states WHERE node = ?
                    UNION SELECT {_NODE_OF_S} FROM chain JOIN states s ON s.node = chain.base)
                SELECT * FROM chain ORDER BY num_links DESC""",
            node,
        )
        return [Node(*row) for row in found]

    def num_tokens_at(self, scope: bytes, blocks: Sequence[bytes]) -> Iterator[int]:
        """Lengths of the states kept under any of these hashes of whole blocks, given shortest first: longest first."""
        for end in range(len(blocks), 0, -LOOKUPS_AT_ONCE):
            some = blocks[max(0, end - LOOKUPS_AT_ONCE) : end]
            marks = ", ".join("?" * len(some))
            query = f"SELECT DISTINCT num_tokens FROM states WHERE scope = ? AND block IN ({marks}) ORDER BY 1 DESC"
            yield from (row[0] for row in self._run(query, scope, *some))

    def with_prefix(self, scope: bytes, prefix: bytes) -> str | None:
        """The newest state that has read exactly the tokens of this hash."""
        found = self._run("SELECT id FROM states WHERE scope = ? AND prefix = ? ORDER BY node DESC", scope, prefix)
        return found[0][0] if found else None

    def named(self, scope: bytes, name: str) -> str | None:
        found = self._run(
            "SELECT id FROM names JOIN states USING (node) WHERE names.scope = ? AND name = ?", scope, name
        )
        return found[0][0] if found else None

    def names(self, scope: bytes) -> dict[str, str]:
        """Ids by name, in the order of the names."""
        found = self._run(
            "SELECT name, id FROM names JOIN states USING (node) WHERE names.scope = ? ORDER BY name", scope
        )
        return dict(found)

    def ids(self, scope: bytes) -> list[str]:
        """All states of a scope, oldest first."""
        return [
            row[0] for row in self._run("SELECT id FROM states WHERE scope = ? AND id NOT NULL ORDER BY node", scope)
        ]

    def records(self) -> set[str]:
        return {row[0] for row in self._run("SELECT record FROM states")}

    def totals(self) -> tuple[int, int, int]:
        """States with an id, bytes of all records, damaged records found so far."""
        num_states = self._run("SELECT count(id) FROM states")[0][0]
        return (num_states, *self._run("SELECT num_bytes, num_damaged FROM totals")[0])

    def num_bytes(self) -> int:
        return self._run("SELECT num_bytes FROM totals")[0][0]

    def note_use(self, node: int) -> None:
        """Remembered with the next change: a read costs no write."""
        self._used.pop(node, None)
        self._used[node] = None

    # Changing.

    def add(self, new: NewState) -> int:
        """Gives the node of the new state."""
        base, num_links = (None, 0) if new.base is None else (new.base.node, new.base.num_links + 1)
        values = (new.scope, new.id, base, num_links, *new[3:], self._next_use())
        self._run(
            """INSERT INTO states (scope, id, base, num_links, record, checksum, num_bytes, num_tokens, block, prefix,
               used) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
            *values,
        )
        return self._run("SELECT last_insert_rowid()")[0][0]

    def set_name(self, scope: bytes, name: str, node: int) -> None:
        self._run("INSERT OR REPLACE INTO names VALUES (?, ?, ?)", scope, name, node)

    def remove_name(self, scope: bytes, name: str) -> None:
        self._run("DELETE FROM names WHERE scope = ? AND name = ?", scope, name)

    def least_recently_used(self, besides: int | None) -> int | None:
        """The node longest not used on which nothing stands and which has no name."""
        found = self._run(
            """SELECT node FROM states s
               WHERE node IS NOT ? AND NOT EXISTS (SELECT 1 FROM states WHERE base = s.node)
               AND NOT EXISTS (SELECT 1 FROM names WHERE node = s.node)
               ORDER BY used, node LIMIT 1""",
            besides,
        )
        return found[0][0] if found else None

    def remove(self, node: int) -> list[str]:
        """Takes id and names from a node; gives the records that nothing stands on any more, out of the index now."""
        self._run("DELETE FROM names WHERE node = ?", node)
        self._run("UPDATE states SET id = NULL, block = NULL, prefix = NULL WHERE node = ?", node)
        return self._remove_unneeded(node)

    def remove_owner(self, owner: bytes) -> tuple[int, list[int], list[str]]:
        """Removes all nodes whose scope begins with `owner`; gives how many had an id, the nodes, and the records."""
        scopes = owner, owner + b"\xff" * SCOPE_BYTES
        found = self._run("SELECT node, id, base, record FROM states WHERE scope BETWEEN ? AND ?", *scopes)
        self._run("DELETE FROM names WHERE scope BETWEEN ? AND ?", *scopes)
        self._run("DELETE FROM states WHERE scope BETWEEN ? AND ?", *scopes)
        records = [record for *_, record in found]
        for base in {base for _, _, base, _ in found} - {node for node, *_ in found}:
            records += self._remove_unneeded(base)
        return sum(one is not None for _, one, *_ in found), [node for node, *_ in found], records

    def remove_damaged(self, node: int) -> list[str]:
        """Removes a node with all that stands on it; gives the records of these, its own first."""
        found = self._run(
            """WITH RECURSIVE above AS (
                   SELECT node, base, record, num_links FROM states WHERE node = ?
                   UNION SELECT s.node, s.base, s.record, s.num_links FROM above JOIN states s ON s.base = above.node)
               SELECT node, base, record FROM above ORDER BY num_links""",
            node,
        )
        for one, _, _ in found:
            self._run("DELETE FROM names WHERE node = ?", one)
            self._run("DELETE FROM states WHERE node = ?", one)
        if not found:
            return []
        self._run("UPDATE totals SET num_damaged = num_damaged + 1")
        return [record for _, _, record in found] + self._remove_unneeded(found[0][1])

    def _remove_unneeded(self, node: int | None) -> list[str]:
        records = []
        while node is not None:
            found = self._run(
                """SELECT base, record FROM states s WHERE node = ? AND id IS NULL
                   AND NOT EXISTS (SELECT 1 FROM states WHERE base = s.node)""",
                node,
            )
            if not found:
                break
            self._run("DELETE FROM states WHERE node = ?", node)
            node = found[0][0]
            records.append(found[0][1])
        return records

    def _next_use(self) -> int:
        return (self._run("SELECT max(used) FROM states")[0][0] or 0) + 1

    def _run(self, statement: str, *values: object) -> list[Any]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        except UnicodeDecodeError as error:
            raise self._damaged("it holds text that is none") from error

    def _refusal(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_BUSY:
            return StoreError(
                f"state store {self._where} is busy: others held it for {BUSY_TIMEOUT_SECONDS:.0f} seconds"
            )
        if code == sqlite3.SQLITE_FULL:
            return NoRoomError(f"the index of state store {self._where} cannot be written: the disk is full")
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return self._damaged(str(error))
        return StoreError(f"the index of state store {self._where} cannot be used: {in_one_line(error)}")

    def _damaged(self, fault: str) -> StoreError:
        return StoreError(
            f"the index of state store {self._where} is damaged: {in_one_line(fault)}",
            hint="move the directory away and begin a new one; states cannot be found without their index",
        )


def empty_log(run: Callable[[str], Any], timeout_seconds: float) -> bool:
    """Writes SQLite's log into the database and cuts it to nothing: what was deleted is in neither.

    Args:
        run: runs a statement and gives its rows, once SQLite is ready for it.

    Returns:
        whether that came about; others may keep it from that.
    """
    deadline = time.monotonic() + timeout_seconds
    # SQLite waits for readers and writers by itself, but not for another process that empties the log.
    while next(iter(run("PRAGMA wal_checkpoint(TRUNCATE)")))[0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(RETRY_SECONDS)
    return True
