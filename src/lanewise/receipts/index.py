"""A SQLite index over the receipts and decisions of a store: rebuildable, refreshed before every answer, never the truth.

A refresh looks into folders that have changed, compares size and modification time of their files with what was indexed
and parses only what changed. A file that is overwritten in place, which no writer of a store does, is noticed by
`lanewise receipt reindex` and `validate` only. Parsing is `json` and the few fields promoted here, not the whole schema and not the identity, which `lanewise receipt validate`
checks: so 10,000 receipts are indexed in seconds. A damaged index is thrown away and made again; one that cannot be
written (a read-only store, a full disk) is made in memory for the one answer.

Processes may refresh at once: each writes in one immediate transaction and SQLite puts them in order. The journal is
SQLite's default rather than WAL, which needs shared memory and so breaks on network folders that several hosts write.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Literal, TypeVar

from lanewise.errors import LanewiseError
from lanewise.lane.digest import digest
from lanewise.receipts import files
from lanewise.receipts.document import parse_document
from lanewise.receipts.files import FileStamp
from lanewise.receipts.promote import Promoted, promote
from lanewise.receipts.store import Store

INDEX_VERSION = 3
BUSY_TIMEOUT_SECONDS = 30.0

_COLUMNS = tuple(field.name for field in fields(Promoted))
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}

ResultT = TypeVar("ResultT")
Kind = Literal["receipt", "decision"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexRow:
    """One readable file of the store.

    Attributes:
        location: where the file is.
        fields: what was promoted from it.
    """

    location: str
    fields: Promoted


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """The answer to a query.

    Attributes:
        rows: files that match, newest first.
        num_matches: how many match, `limit` aside.
        unreadable: why each unreadable file of that kind, filters aside, cannot be read; each names its file.
    """

    rows: tuple[IndexRow, ...]
    num_matches: int
    unreadable: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refreshed:
    """What a refresh did.

    Attributes:
        num_receipts: receipts in the index afterwards, unreadable ones included.
        num_decisions: decisions in the index afterwards, unreadable ones included.
        num_unreadable: files that could not be read.
        num_parsed: files that were new or changed.
        num_removed: rows whose file is gone.
        path: the index file, or None when it could not be written and lived in memory.
    """

    num_receipts: int
    num_decisions: int
    num_unreadable: int
    num_parsed: int
    num_removed: int
    path: str | None


class Index:
    """The index of one store.

    Args:
        store: what is indexed.
        path: the SQLite file; None is `<root>/index.sqlite`, or a file in the user's cache for a remote store.
        now_ns: wall-clock time, by which a folder's modification time is judged old enough to be trusted.
    """

    def __init__(
        self, store: Store, path: Path | None = None, *, now_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.store = store
        self._now_ns = now_ns
        self.path = path or _default_path(store.root)

    def refresh(self) -> Refreshed:
        """Bring the index up to date with the files."""
        return self._with_database(self._refresh)

    def reindex(self) -> Refreshed:
        """Forget everything and index every file again."""

        def rebuild(database: sqlite3.Connection) -> Refreshed:
            with _writing(database):
                database.execute("DELETE FROM files")
                database.execute("DELETE FROM folders")
            return self._refresh(database)

        return self._with_database(rebuild)

    def query(
        self,
        *,
        kind: Kind = "receipt",
        lane: str | None = None,
        campaign: str | None = None,
        feature: str | None = None,
        validity: str | None = None,
        failure: str | None = None,
        limit: int | None = None,
    ) -> Listing:
        """Refresh, then list files, newest first.

        Args:
            kind: receipts or decisions.
            lane: lane name, or the beginning of its digest (`sha256:9c2f`).
            campaign: campaign id.
            feature: the feature under test.
            validity: `valid` or `invalid`; for receipts.
            failure: a failure family; for receipts.
            limit: at most this many; None for all.
        """
        conditions: list[str] = ["kind = ?", "error IS NULL"]
        values: list[str] = [kind]
        for column, value in (
            ("campaign_id", campaign),
            ("ablation_id", feature),
            ("validity", validity),
            ("failure_family", failure),
        ):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        if lane is not None and lane.startswith("sha256:"):
            conditions.append("substr(lane_digest, 1, length(?)) = ?")
            values += [lane, lane]
        elif lane is not None:
            conditions.append("lane_name = ?")
            values.append(lane)
        matching = f"FROM files WHERE {' AND '.join(conditions)}"

        def select(database: sqlite3.Connection) -> Listing:
            self._refresh(database)
            rows = database.execute(
                f"SELECT name, {', '.join(_COLUMNS)} {matching} ORDER BY created_at DESC, id LIMIT ?",
                [*values, -1 if limit is None else limit],
            )
            found = tuple(
                IndexRow(location=f"{self.store.root}/{row[0]}", fields=Promoted(*row[1:]))
                for row in rows
            )
            (num_matches,) = database.execute(f"SELECT count(*) {matching}", values).fetchone()
            errors = database.execute(
                "SELECT error FROM files WHERE kind = ? AND error IS NOT NULL ORDER BY name", [kind]
            )
            return Listing(
                rows=found,
                num_matches=num_matches,
                unreadable=tuple(error for (error,) in errors),
            )

        return self._with_database(select)

    def _refresh(self, database: sqlite3.Connection) -> Refreshed:
        recorded = dict(database.execute("SELECT name, modified_ns FROM folders"))
        found = files.FoldersFound(recorded, self._now_ns())
        present = set(self.store.indexed_files(found))
        unchanged = {
            name for name, time_ns in found.times_ns.items() if recorded.get(name) == time_ns
        }
        known = {
            row
            for (folder,) in database.execute("SELECT DISTINCT folder FROM files").fetchall()
            if folder not in unchanged
            for row in database.execute(
                "SELECT name, size_bytes, stamp FROM files WHERE folder = ?", [folder]
            )
        }
        changed = sorted(present - known)
        gone = known - present
        removed = {row[0] for row in gone} - {file.name for file in present} if gone else set()
        rows = [row for file in changed if (row := self._row(file)) is not None]
        settled = found.settled
        if rows or removed or settled != recorded:
            marks = ", ".join("?" * (5 + len(_COLUMNS)))
            with _writing(database):
                database.execute("DELETE FROM folders")
                database.executemany("INSERT INTO folders VALUES (?, ?)", settled.items())
                database.executemany(
                    "DELETE FROM files WHERE name = ?", [(name,) for name in removed]
                )
                database.executemany(f"INSERT OR REPLACE INTO files VALUES ({marks})", rows)
        return self._count(database, num_parsed=len(rows), num_removed=len(removed))

    def _row(self, file: FileStamp) -> tuple[object, ...] | None:
        kind: Kind = "decision" if file.name.startswith("decisions/") else "receipt"
        location = f"{self.store.root}/{file.name}"
        try:
            document = parse_document(files.read_bytes(location), location)
            promoted, error = promote(kind, document, location), None
        except FileNotFoundError:  # it vanished after the listing
            return None
        except LanewiseError as problem:
            promoted, error = Promoted(kind=kind), str(problem)
        return (*file, _folder(file.name), error, *astuple(promoted))

    def _count(
        self, database: sqlite3.Connection, *, num_parsed: int, num_removed: int
    ) -> Refreshed:
        receipts, decisions, unreadable = database.execute(
            "SELECT total(kind = 'receipt'), total(kind = 'decision'), total(error IS NOT NULL) FROM files"
        ).fetchone()
        (_number, _name, path) = database.execute("PRAGMA database_list").fetchone()
        return Refreshed(
            num_receipts=int(receipts),
            num_decisions=int(decisions),
            num_unreadable=int(unreadable),
            num_parsed=num_parsed,
            num_removed=num_removed,
            path=path or None,
        )

    def _with_database(self, work: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
        try:
            return _on(self.path, work)
        except sqlite3.DatabaseError as error:
            # Extended result codes carry the primary one in their low byte; errors of the module itself have none.
            damaged = getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE
        if damaged and _discard_if_damaged(self.path):
            with contextlib.suppress(sqlite3.DatabaseError):
                return _on(self.path, work)
        return _on(":memory:", work)


def _on(path: Path | str, work: Callable[[sqlite3.Connection], ResultT]) -> ResultT:
    database = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    with contextlib.closing(database):
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version != INDEX_VERSION:
            _make_tables(database)
        return work(database)


def _make_tables(database: sqlite3.Connection) -> None:
    with _writing(database):
        database.execute("DROP TABLE IF EXISTS files")
        database.execute("DROP TABLE IF EXISTS folders")
        database.execute(
            "CREATE TABLE files (name TEXT PRIMARY KEY, size_bytes INTEGER, stamp TEXT, folder TEXT, error TEXT, "
            f"{', '.join(_COLUMNS)}) WITHOUT ROWID"
        )
        database.execute("CREATE INDEX files_by_folder ON files (folder)")
        database.execute("CREATE TABLE folders (name TEXT PRIMARY KEY, modified_ns INTEGER)")
        database.execute(f"PRAGMA user_version = {INDEX_VERSION}")


@contextlib.contextmanager
def _writing(database: sqlite3.Connection) -> Iterator[None]:
    """One immediate transaction: it waits its turn at the start, so it never fails in the middle."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


def _discard_if_damaged(path: Path) -> bool:
    """Delete a damaged index; False when that is not allowed.

    Under a lock and after a second look: another process may have made it anew in the meantime.
    """
    try:
        descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o644)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_sound(path):
            path.unlink(missing_ok=True)
            path.with_name(path.name + "-journal").unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_sound(path: Path) -> bool:
    def check(database: sqlite3.Connection) -> bool:
        database.execute(
            f"SELECT name, size_bytes, stamp, folder, error, {', '.join(_COLUMNS)} FROM files"
        )
        database.execute("SELECT name, modified_ns FROM folders")
        return bool(database.execute("PRAGMA quick_check(1)").fetchone() == ("ok",))

    try:
        return _on(path, check)
    except sqlite3.DatabaseError:
        return False


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _default_path(root: str) -> Path:
    if not files.is_remote(root):
        return Path(root) / "index.sqlite"
    folder = Path.home() / ".cache" / "lanewise"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"index-{digest(root).removeprefix('sha256:')[:16]}.sqlite"
