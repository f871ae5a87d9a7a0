"""How an endpoint is at this moment, in a file that its agent keeps: for commands on the same machine."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

#: In the endpoint's directory, while its agent runs.
FILE_NAME = "now.json"


class NowFile:
    """The agent's side."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self._written: Mapping[str, Any] = {}

    def write(self, now: Mapping[str, Any]) -> None:
        """Write it if something has changed."""
        if now == self._written:
            return
        try:
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps({"at": time.time(), **now}) + "\n")
            new.replace(self._path)
        except OSError as error:
            # A full disk, most likely, of which more is said elsewhere.
            log.debug("%s cannot be written: %s", self._path, error)
            return
        self._written = dict(now)

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def read_now(directory: Path) -> dict[str, Any] | None:
    """What the agent last wrote; None if there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError):
        document = json.loads((directory / FILE_NAME).read_text())
        return document if isinstance(document, dict) else None
    return None
