"""Stored conversations in an object store that several machines share, each with its own copy of what it has met."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import fsspec

from griffinlm.errors import GriffinError, in_one_line
from griffinlm.generation.store import SignatureError, StateStore
from griffinlm.language_model import LanguageModel
from griffinlm.serve.bundle import HEADING_BYTES, pack, pack_heading, unpack, unpack_heading
from griffinlm.serve.errors import ApiError, DamagedRecordError, RecordsError, ServeError
from griffinlm.serve.logs import log_event
from griffinlm.serve.records import MOST_BYTES, MOST_RECORDS, Heading, Record, Records, not_found

RECORD_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""What can be the name of an object; clients may ask for anything."""


class SharedRecords(Records):
    """`Records` whose truth is one object a record: TENANT/ID, signed, with all that was said before it and its state.

    Only the object says whether there is such a record; what stands in the own database and store is a copy, brought
    there when it is asked for. For lists the heading in front of an object is enough. What `put` was given is in the
    object store on return.

    Args:
        directory: of the own database; None keeps it in this process.
        url: as fsspec knows it: `s3://BUCKET/PREFIX`, `gs://`, `abfs://`, `file:///PATH`.
        key: what objects are signed with; that of all machines.
        largest_bytes: of an object.
        most_bytes: of the own database.
    """

    def __init__(
        self,
        directory: Path | None,
        store: StateStore,
        model: LanguageModel,
        url: str,
        key: bytes,
        largest_bytes: int,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        super().__init__(directory, model.identity.fingerprint, most_bytes)
        self._store, self._language_model, self._url = store, model, url
        self._key, self._largest_bytes = key, largest_bytes
        try:
            # Another machine may have changed what was listed a moment ago.
            self._objects, self._root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True)
            self._objects.makedirs(self._root, exist_ok=True)
        except (ValueError, ImportError, OSError) as error:
            raise ServeError(f"the object store {url} cannot be used: {in_one_line(error)}") from error

    def put(
        self, tenant: str, records: Sequence[Record], *, before: Record | None = None, keeps_old: bool = False
    ) -> None:
        super().put(tenant, records, before=before, keeps_old=keeps_old)
        for record in records:
            self._send(tenant, record)

    def get(self, tenant: str, record_id: str, kind: str | None = None) -> Record:
        self._require_there(tenant, record_id)
        self._bring(tenant, record_id)
        return super().get(tenant, record_id, kind)

    def newest(self, tenant: str, most: int) -> list[Heading]:
        """The records made last, the last one first; of those that this machine has not met, headings are brought."""
        folder = self._place(tenant)
        with self._faults_told():
            names = self._objects.ls(folder, detail=False) if self._objects.isdir(folder) else []
        there = {name.rpartition("/")[2] for name in names}
        unmet = there - {heading.id for heading in super().newest(tenant, MOST_RECORDS)}
        if unmet:
            self._bring_headings(tenant, unmet)
        found = [heading for heading in super().newest(tenant, MOST_RECORDS) if heading.id in there]
        return sorted(found, key=lambda heading: heading.created, reverse=True)[:most]

    def move(self, tenant: str, record_id: str, state_id: str, kept_ids: Sequence[str]) -> Record:
        self._require_there(tenant, record_id)
        moved = super().move(tenant, record_id, state_id, kept_ids)
        try:
            self._send(tenant, moved, is_new=False)
        except ApiError:
            super().delete(tenant, record_id)
            raise
        return moved

    def delete(self, tenant: str, record_id: str) -> None:
        self._require_there(tenant, record_id)
        # It may never have been brought here.
        with suppress(ApiError):
            super().delete(tenant, record_id)
        with self._faults_told():
            self._objects.rm_file(self._place(tenant, record_id))

    def _require_there(self, tenant: str, record_id: str) -> None:
        """Refuses an id that has no object."""
        with self._faults_told():
            if not RECORD_ID.fullmatch(record_id) or not self._objects.isfile(self._place(tenant, record_id)):
                raise not_found(record_id)

    def _send(self, tenant: str, record: Record, is_new: bool = True) -> None:
        """Writes a record's object; one that is not new only where there still is one, else ApiError."""
        path = self.path(tenant, record)
        data = pack_heading(record, self._key)
        data += pack(tenant, path, [record.id], self._store, self._language_model, self._key)
        if not is_new:
            self._require_there(tenant, record.id)
        with self._faults_told():
            self._objects.makedirs(self._place(tenant), exist_ok=True)
            # The file of a transaction appears whole or not at all.
            try:
                with self._objects.transaction, self._objects.open(self._place(tenant, record.id), "wb") as file:
                    file.write(data)
            except FileNotFoundError:
                # A folder's file gets its rights after it has appeared; another machine may have deleted it by then.
                if not self._objects.isdir(self._place(tenant)):
                    raise

    def _bring(self, tenant: str, record_id: str) -> None:
        """Copies a record from its object where it is not here.

        Raises:
            ApiError: there is no object any more.
            DamagedRecordError: it was changed, or belongs to another model or key.
        """
        own = self._row(self._scope(tenant), record_id)
        if own is not None and not own[1]:
            return
        with self._faults_told():
            try:
                data = self._objects.cat_file(self._place(tenant, record_id))
            except FileNotFoundError:
                raise not_found(record_id) from None
            try:
                content = data[HEADING_BYTES:]
                records = unpack(tenant, content, self._store, self._language_model, self._key, self._largest_bytes)
            except SignatureError as error:
                raise DamagedRecordError(f"the shared conversation {record_id} cannot be used: {error}") from error
        super().put(tenant, records, keeps_old=True)

    def _bring_headings(self, tenant: str, record_ids: Collection[str]) -> None:
        """Copies what lists show of records; what was deleted meanwhile or damaged is passed over."""
        places = [self._place(tenant, record_id) for record_id in record_ids]
        with self._faults_told():
            parts = self._objects.cat_ranges(places, [0] * len(places), [HEADING_BYTES] * len(places))
        headings = []
        for record_id, part in zip(record_ids, parts, strict=True):
            with suppress(SignatureError):
                heading = unpack_heading(part, self._key) if isinstance(part, bytes) else None
                if heading is not None and heading.id == record_id:
                    headings.append(heading)
        self._note(tenant, headings)

    def _place(self, tenant: str, *names: str) -> str:
        return "/".join([self._root.rstrip("/"), self._scope(tenant).hex(), *names])

    @contextmanager
    def _faults_told(self) -> Iterator[None]:
        try:
            yield
        except (GriffinError, ApiError):
            raise
        except Exception as error:  # the classes of the many stores derive from nothing narrower
            log_event("the object store cannot be used", fault=in_one_line(error))
            raise RecordsError("the object store cannot be used") from error
