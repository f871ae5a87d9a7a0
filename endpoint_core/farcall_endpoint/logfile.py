"""The agent's log: a file of bounded size, and the few lines that somebody who waits for the start should see."""

from __future__ import annotations

import collections
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path

_MAX_BYTES = 10 * 1024 * 1024
_KEPT = 3
#: What the lines begin with that go through a ReadyPipe, and the one that ends them well.
WARNING, FAILURE, READY = "- ", "! ", "ready"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _AgentLog(RotatingFileHandler):
    """A rotating log that what is printed past the logging follows."""

    def __init__(self, path: Path, *, catch_prints: bool) -> None:
        super().__init__(path, maxBytes=_MAX_BYTES, backupCount=_KEPT, encoding="utf-8")
        self._catch_prints = catch_prints
        self._redirect()

    def doRollover(self) -> None:  # noqa: N802 - the standard library's name
        super().doRollover()
        self._redirect()

    def _redirect(self) -> None:
        if self._catch_prints and self.stream is not None:
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)


class ReadyPipe(logging.Handler):
    """Tells whoever started the agent how it goes: warnings as they come, then that it is ready, or nothing more."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(logging.WARNING)
        os.set_inheritable(descriptor, False)
        self._pipe = os.fdopen(descriptor, "w", encoding="utf-8")

    def emit(self, record: logging.LogRecord) -> None:
        self._write(f"{FAILURE if record.levelno >= logging.ERROR else WARNING}{record.getMessage()}")

    def ready(self) -> None:
        self._write(READY)
        logging.getLogger().removeHandler(self)
        self._pipe.close()

    def _write(self, line: str) -> None:
        try:
            self._pipe.write(line.replace("\n", " ") + "\n")
            self._pipe.flush()
        except (OSError, ValueError):
            # Nobody waits any more; the log file has it all.
            logging.getLogger().removeHandler(self)


def start_logging(path: Path, ready: ReadyPipe | None) -> None:
    """Log to the file; also to the terminal in the foreground, or to whoever waits for the agent to be ready."""
    handlers: list[logging.Handler] = [_AgentLog(path, catch_prints=ready is not None)]
    handlers.append(ready or logging.StreamHandler(sys.stderr))
    logging.basicConfig(level=logging.WARNING, format=_FORMAT, handlers=handlers)
    logging.getLogger("farcall").setLevel(logging.INFO)
    logging.getLogger("farcall_endpoint").setLevel(logging.INFO)


def last_lines(path: Path, count: int) -> list[str]:
    """The end of the log; what came before the last rotation too, if this one is short."""
    lines: collections.deque[str] = collections.deque(maxlen=count)
    for part in (path.with_name(f"{path.name}.1"), path):
        if part.exists():
            with part.open(encoding="utf-8", errors="replace") as source:
                lines.extend(line.rstrip("\n") for line in source)
    return list(lines)
