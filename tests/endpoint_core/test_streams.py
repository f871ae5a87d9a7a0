"""A worker's end of its pipes, in a process of its own: marks, and what tasks may do to their output."""

from __future__ import annotations

import os
import subprocess
import sys

from farcall_endpoint.streams import mark

SECRET = "5ecret"
PREAMBLE = """
import io, os, sys
from farcall_endpoint import streams
pipes = [int(argument) for argument in sys.argv[1:]]
streams.attach(pipes, "5ecret")
"""


def run(program: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]], int]:
    """What came out of each pipe, as pairs of task and text, and the exit code."""
    pairs = [os.pipe() for _ in range(2)]
    writing = [end for _, end in pairs]
    command = [sys.executable, "-c", PREAMBLE + program, *map(str, writing)]
    done = subprocess.run(command, pass_fds=writing, check=False, timeout=60)
    outputs = []
    for reading, end in pairs:
        os.close(end)
        with os.fdopen(reading, "rb") as file:
            outputs.append(texts_of(file.read()))
    return outputs[0], outputs[1], done.returncode


def texts_of(data: bytes) -> list[tuple[str, str]]:
    _, *parts = data.split(mark(SECRET))
    found = []
    for part in parts:
        note, _, text = part.partition(b"\n")
        found.append((note.decode().split('"')[1], text.decode()))
    return found


def test_each_task_begins_with_a_mark_in_both_streams() -> None:
    out, error, code = run(
        """
streams.begin("a")
print("one")
print("bad", file=sys.stderr)
streams.begin("b")
sys.stdout.write("two")
streams.flush()
streams.begin("c")
"""
    )

    assert out == [("a", "one\n"), ("b", "two"), ("c", "")]
    assert error == [("a", "bad\n"), ("b", ""), ("c", "")]
    assert code == 0


def test_lines_leave_at_once_also_those_that_are_printed_below_python() -> None:
    out, _, code = run(
        """
import ctypes
streams.begin("a")
print("in Python")
ctypes.CDLL(None).puts(b"in C")
os._exit(3)
"""
    )

    assert out == [("a", "in Python\nin C\n")]
    assert code == 3


def test_whatever_a_task_does_to_its_output_is_undone() -> None:
    out, error, _ = run(
        """
streams.begin("a")
sys.stdout.close()
os.close(1)
streams.begin("b")
print("back")
os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
sys.stderr = io.StringIO()
streams.flush()
streams.begin("c")
print("back", file=sys.stderr)
sys.stdout = None
streams.flush()
streams.begin("d")
print("again")
"""
    )

    assert out == [("a", ""), ("b", "back\n"), ("c", ""), ("d", "again\n")]
    assert error[2:] == [("c", "back\n"), ("d", "")]


def test_what_is_no_text_is_printed_nevertheless() -> None:
    out, _, code = run("streams.begin('a'); print('\\udcff')")

    assert (out, code) == ([("a", "\\udcff\n")], 0)


def test_a_worker_that_has_lost_its_pipe_ends_and_writes_into_nothing_else() -> None:
    out, _, code = run(
        """
streams.begin("a")
os.closerange(3, max(pipes) + 100)
other = os.open(os.devnull, os.O_RDWR)
while other < max(pipes):
    other = os.dup(other)
streams.begin("b")
print("never")
"""
    )

    assert out == [("a", "")]
    assert code == 1


def test_where_nothing_is_attached_nothing_happens() -> None:
    program = "from farcall_endpoint import streams; streams.begin('a'); print('hello'); streams.flush()"

    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"hello\n"
