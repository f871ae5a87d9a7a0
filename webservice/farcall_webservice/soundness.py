"""Whether the file of a SQLite ledger is sound, before a service is started on it.

What a crash leaves behind SQLite puts in order by itself. What it cannot put in order must not be taken for a new,
empty ledger, nor be written to: such a file is left as it is, and whoever starts the service is told what to do.
"""

from __future__ import annotations

import sqlite3
import urllib.parse
from pathlib import Path

from farcall.errors import ConfigurationError

#: What a SQLite file begins with, and its log of changes: one of two numbers, for the two orders of bytes.
FILE_BEGINS = b"SQLite format 3\0"
CHANGES_BEGIN = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
#: A log of changes that is no longer than its head holds none.
HEAD_OF_CHANGES = 32
#: A larger file is looked at page by page only where SQLite comes across it: that would take long.
LARGEST_CHECKED = 1024**3


def check(path: Path, *, was_used: bool) -> None:
    """Raise :class:`ConfigurationError`, which says what to do, unless this file can be a ledger.

    ``was_used`` says that a service has run on it before, so that nothing must not be all that is in it.
    """
    changes = path.with_name(f"{path.name}-wal")
    if not path.exists():
        if was_used and changes.exists():
            raise _damaged(path, f"it is not there, but {changes.name}, which belongs to it, is")
        return
    begins = _beginning(path, len(FILE_BEGINS))
    if not begins and not was_used:
        # A service that ended before it had written anything.
        return
    if begins != FILE_BEGINS:
        raise _damaged(path, "it is empty" if not begins else "it does not begin as a SQLite database does")
    if _size(changes) > HEAD_OF_CHANGES and _beginning(changes, 4) not in CHANGES_BEGIN:
        raise _damaged(path, f"{changes.name}, with its latest changes, does not begin as such a file does")
    trouble = _trouble(path, was_used=was_used)
    if trouble is not None:
        raise _damaged(path, trouble)


def _trouble(path: Path, *, was_used: bool) -> str | None:
    # Only reading, so that a file that is damaged is not changed when the connection ends.
    address = f"file:{urllib.parse.quote(str(path.absolute()))}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True)
    except sqlite3.Error as error:
        raise ConfigurationError(f"the ledger {path} cannot be opened: {error}") from error
    try:
        if path.stat().st_size <= LARGEST_CHECKED:
            ((said,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if said != "ok":
                return " ".join(said.split())
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return "its tables are gone" if was_used and "alembic_version" not in tables else None
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()


def _damaged(path: Path, what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the ledger {path} is damaged ({what}) and was left as it is. Keep a copy of it, and of the files beside it "
        f"whose names begin with {path.name}. Then put a backup in its place; or save what can be read of it, with "
        f"`sqlite3 {path} .recover | sqlite3 saved.sqlite`, and put that in its place; or move all of them elsewhere, "
        "to begin with an empty ledger"
    )


def _beginning(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise ConfigurationError(f"the ledger {path} cannot be read: {error}") from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
