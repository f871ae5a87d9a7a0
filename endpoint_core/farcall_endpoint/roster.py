"""The blocks that an endpoint has asked for and that may not have ended: on disk, so that the next agent knows them."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

#: In the endpoint's directory.
FILE_NAME = "blocks.json"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A block that may not have ended."""

    #: Seconds since 1970.
    asked_at: float
    has_connected: bool = False
    #: It has been told to end, and the system has taken that.
    is_ending: bool = False
    #: Why it could not be ended when that was last tried.
    trouble: str = ""


class Roster:
    """The list of them, written down with each change. Only the thread that asks for blocks uses it."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._entries = dict(read_roster(path)) if path is not None else {}

    @property
    def entries(self) -> Mapping[str, Entry]:
        return self._entries

    def add(self, block_id: str) -> None:
        self._entries[block_id] = Entry(time.time())
        self._write()

    def connected(self, block_ids: Iterable[str]) -> None:
        self._change(block_ids, has_connected=True)

    def ending(self, block_ids: Iterable[str]) -> None:
        self._change(block_ids, is_ending=True, trouble="")

    def cannot_end(self, block_ids: Iterable[str], why: str) -> None:
        self._change(block_ids, trouble=why)

    def ended(self, block_ids: Iterable[str]) -> None:
        known = [block_id for block_id in block_ids if self._entries.pop(block_id, None) is not None]
        if known:
            self._write()

    def _change(self, block_ids: Iterable[str], **changes: object) -> None:
        before = dict(self._entries)
        for block_id in block_ids:
            # One that is not on the list was found with the system.
            entry = self._entries.get(block_id) or Entry(time.time(), has_connected=True)
            self._entries[block_id] = dataclasses.replace(entry, **changes)  # type: ignore[arg-type]
        if self._entries != before:
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            if not self._entries:
                self._path.unlink(missing_ok=True)
                return
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps({key: dataclasses.asdict(entry) for key, entry in self._entries.items()}) + "\n")
            new.replace(self._path)
        except OSError as error:
            log.warning("the list of blocks cannot be written, so the next agent will not know it: %s", error)


def read_roster(path: Path) -> dict[str, Entry]:
    """The list as it was last written; empty if there is none that can be read."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        return {str(key): Entry(**entry) for key, entry in json.loads(path.read_text()).items()}
    return {}
