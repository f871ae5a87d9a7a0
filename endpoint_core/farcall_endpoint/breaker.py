"""Stops the asking for blocks where none of them comes to work, and remembers it over restarts of the agent.

What counts is a block that was refused, or that ended before a worker of it had connected, or just after that. After
each the next one comes later; after so many in a row none comes until somebody has looked: ``farcall-endpoint resume``,
or another configuration. That the system cannot be asked is no failure, as no block comes of it: it is asked for ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from .config import EndpointConfig

log = logging.getLogger(__name__)

#: In the endpoint's directory. Whoever removes it says that blocks may be asked for again.
FILE_NAME = "breaker.json"

#: How long no block is asked for after one that failed; doubled with each.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 3.0, 300.0

#: Blocks in a row that end as soon as their workers have tasks. That is for more than one task to answer for.
MOST_SUSPECTS = 10

#: Of what a failed block has said.
MOST_CHARACTERS = 4000


class Breaker:
    """Whether blocks may be asked for. Only the thread that asks for them uses it."""

    def __init__(
        self, path: Path | None = None, *, most_failures: int = 3, fingerprint: str = "", name: str = "NAME"
    ) -> None:
        self._path = path
        self._most_failures = most_failures
        self._fingerprint = fingerprint
        self._name = name
        self._failures = 0
        self._suspects = 0
        self._said = ""
        self._since = 0.0
        #: Whether the file says what is known here.
        self._is_kept = False
        self._pause_s = FIRST_PAUSE_S
        self._not_before = 0.0
        self._unavailable = ""
        self._unavailable_pause_s = FIRST_PAUSE_S
        self._read()

    @property
    def is_open(self) -> bool:
        """Whether nothing more is asked for until somebody has said so."""
        return self._failures >= self._most_failures

    def allows_blocks(self) -> bool:
        return not self.is_open and time.monotonic() >= self._not_before

    # -- what happens -------------------------------------------------------------------------------------------------

    def failed(self, said: str, *, others_work: bool = False) -> None:
        """A block was refused, or has ended before it could work.

        Where others do work, a refusal is most likely a limit of the system's: that alone never opens the breaker.
        """
        if self.is_open:
            return
        if not others_work or self._failures < self._most_failures - 1:
            self._failures += 1
        self._said, self._since = said[-MOST_CHARACTERS:], time.time()
        self._unavailable = ""
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        if self.is_open:
            log.error("%d blocks in a row came to nothing; %s", self._failures, self._remedy)
        else:
            log.warning("%d of %d blocks in a row came to nothing: %s", self._failures, self._most_failures, said)
        self._write()

    def unavailable(self, said: str) -> None:
        """The system could not be asked for a block, or about those that may be left from earlier."""
        self._unavailable = said
        self._not_before = time.monotonic() + self._unavailable_pause_s
        log.warning("%s; asking again in %g s", said, self._unavailable_pause_s)
        self._unavailable_pause_s = min(2 * self._unavailable_pause_s, LONGEST_PAUSE_S)

    def available(self) -> None:
        """It has answered."""
        self._unavailable = ""
        self._unavailable_pause_s = FIRST_PAUSE_S

    def suspected(self, said: str) -> None:
        """A block has ended as soon as its workers had tasks: one of these may be to blame, but not for ever."""
        self._suspects += 1
        if self._suspects >= MOST_SUSPECTS:
            self._failures = self._most_failures - 1
            self.failed(said)

    def promised(self) -> None:
        """Workers of a block have tasks, which is not enough where it had been given up."""
        if not self.is_open:
            self._reset("workers have tasks")

    def worked(self) -> None:
        """Workers of a block have been there for a while."""
        self._suspects = 0
        self._reset("a block works")

    def look(self) -> None:
        """See whether somebody has removed the file."""
        if self._failures and self._is_kept and self._path is not None and not self._path.exists():
            self._suspects = 0
            self._reset("somebody has said so")

    # -- what is said -------------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """Why no blocks are asked for, or fewer than might be; None if all is well."""
        if self.is_open:
            said = f"{self._failures} in a row came to nothing"
            return f"No block is asked for any more, as {said}, {self._remedy}. {self._last}"
        if self._unavailable:
            return f"No block could be asked for, which is tried again: {self._unavailable}"
        if self._failures:
            said = f"{self._failures} of {self._most_failures} blocks in a row"
            return f"The endpoint has asked for blocks in vain ({said} until it stops asking). {self._last}"
        return None

    @property
    def verdict(self) -> str:
        """For the tasks that fail by it."""
        return (
            f"No worker could be started for this task: {self._failures} blocks in a row came to nothing. "
            f"No more are asked for, {self._remedy}. {self._last}"
        )

    @property
    def _remedy(self) -> str:
        return f"until somebody has mended it and said: farcall-endpoint resume {self._name}"

    @property
    def _last(self) -> str:
        at = datetime.fromtimestamp(self._since).astimezone().isoformat(timespec="seconds")
        return f"The last one, at {at}: {self._said}"

    # -- memory -------------------------------------------------------------------------------------------------------

    def _reset(self, why: str) -> None:
        if self.is_open:
            log.info("blocks are asked for again: %s", why)
        self._pause_s = FIRST_PAUSE_S
        if self._failures:
            self._failures, self._said, self._not_before = 0, "", 0.0
            self._write()

    def _read(self) -> None:
        kept = read_breaker(self._path) if self._path is not None else None
        if kept is None or kept["fingerprint"] != self._fingerprint:
            return
        self._failures, self._said, self._since = kept["failures"], kept["said"], kept["since"]
        self._is_kept = True

    def _write(self) -> None:
        if self._path is None:
            return
        self._is_kept = False
        document = {
            "fingerprint": self._fingerprint,
            "failures": self._failures,
            "since": self._since,
            "said": self._said,
        }
        try:
            if self._failures:
                new = self._path.with_suffix(".new")
                new.write_text(json.dumps(document) + "\n")
                new.replace(self._path)
                self._is_kept = True
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("that blocks came to nothing cannot be kept for the next start: %s", error)


def read_breaker(path: Path) -> dict[str, Any] | None:
    """What is kept of the blocks that came to nothing: ``fingerprint``, ``failures``, ``since`` and ``said``."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        document = json.loads(path.read_text())
        return {
            "fingerprint": str(document["fingerprint"]),
            "failures": int(document["failures"]),
            "since": float(document["since"]),
            "said": str(document["said"]),
        }
    return None


def fingerprint(config: EndpointConfig) -> str:
    """The same for as long as blocks are asked for in the same way."""
    engine = dataclasses.asdict(config.engine)
    for key in ("max_block_failures", "on_block_failures"):
        engine.pop(key)
    text = json.dumps([engine, config.provider.type, config.provider.options], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
