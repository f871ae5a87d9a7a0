"""The agent's log stays small, and nothing that is printed gets past it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farcall_endpoint import logfile

# A process of its own, because descriptors 1 and 2 are redirected for good.
PRINTS = """
import logging, sys
from pathlib import Path
from farcall_endpoint import logfile

reading_end, writing_end = __import__("os").pipe()
logfile._MAX_BYTES = 2000
logfile.start_logging(Path(sys.argv[1]), logfile.ReadyPipe(writing_end))
for number in range(200):
    logging.getLogger("farcall.test").info("line %s", number)
print("printed at the end", flush=True)
"""


def test_the_log_is_bounded_and_what_is_printed_follows_it_to_the_new_file(tmp_path: Path) -> None:
    path = tmp_path / "endpoint.log"

    subprocess.run([sys.executable, "-c", PRINTS, str(path)], check=True, timeout=60)

    assert sum(each.stat().st_size for each in tmp_path.iterdir()) < 4 * 2000 + 200
    assert sorted(each.name for each in tmp_path.iterdir()) == [path.name, *(f"{path.name}.{n}" for n in (1, 2, 3))]
    assert "printed at the end" in path.read_text()


@pytest.fixture
def pipe() -> tuple[int, logfile.ReadyPipe]:
    reading, writing = os.pipe()
    return reading, logfile.ReadyPipe(writing)


def record(level: int, message: str) -> logging.LogRecord:
    return logging.LogRecord("farcall", level, "", 0, message, None, None)


def test_whoever_waits_hears_warnings_and_then_that_it_is_ready(pipe: tuple[int, logfile.ReadyPipe]) -> None:
    reading, ready = pipe

    for level in (logging.INFO, logging.WARNING):
        if level >= ready.level:
            ready.handle(record(level, "two\nlines"))
    ready.ready()

    with os.fdopen(reading) as heard:
        assert heard.read() == "- two lines\nready\n"


def test_nobody_waiting_is_no_error(pipe: tuple[int, logfile.ReadyPipe]) -> None:
    reading, ready = pipe
    os.close(reading)

    ready.handle(record(logging.WARNING, "said to nobody"))
