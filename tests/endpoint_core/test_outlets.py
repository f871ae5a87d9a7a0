"""What a manager makes of what its workers' pipes hold."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from parsl.multiprocessing import SpawnContext

from farcall.wire import Output
from farcall_endpoint import outlets, outputpipe
from farcall_endpoint.listener import Listener
from farcall_endpoint.outlets import Outlet
from farcall_endpoint.sightings import Started
from farcall_endpoint.streams import mark

SECRET = "0123456789abcdef"
PATIENCE_S = 60


class Worker:
    """The other ends of an outlet's pipes."""

    def __init__(self, number: int = 0) -> None:
        pairs = [SpawnContext.Pipe(duplex=False) for _ in range(2)]
        self.outlet = Outlet(number, "n1", [reading for reading, _ in pairs], SECRET)
        self._writing = [writing for _, writing in pairs]
        self._place = 0
        self.clock = time.monotonic()

    def begin(self, task_id: str, at: int = 5) -> None:
        self._place += 1
        note = mark(SECRET) + json.dumps([self._place, task_id, at]).encode() + b"\n"
        for stream in (0, 1):
            self.write(note, stream)

    def write(self, data: bytes, stream: int = 0) -> None:
        assert os.write(self._writing[stream].fileno(), data) == len(data)

    def write_all(self, data: bytes, stream: int = 0) -> None:
        """More than fits into the pipe: somebody has to read meanwhile."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._writing[stream].fileno(), rest) :]

    def close(self) -> None:
        self.outlet.close()
        for writing in self._writing:
            writing.close()


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker()
    worker.outlet.begin(7)
    yield worker
    worker.close()


def printed(worker: Worker) -> list[Output]:
    worker.outlet.drain()
    # Long after it was last asked.
    worker.clock += 60
    return worker.outlet.printed(worker.clock)


def test_text_is_told_with_its_task_its_stream_and_its_place(worker: Worker) -> None:
    worker.begin("a")
    worker.write(b"one\n")
    worker.write(b"bad\n", stream=1)
    first = printed(worker)
    worker.write("zwölf\n".encode())
    worker.write(b"end")

    assert first == [Output("a", "stdout", 0, "one\n"), Output("a", "stderr", 0, "bad\n")]
    assert printed(worker) == [Output("a", "stdout", 4, "zwölf\nend")]
    assert printed(worker) == []


def test_texts_of_many_small_tasks_are_told_apart(worker: Worker) -> None:
    for number in range(50):
        worker.begin(f"t{number}")
        if number % 10 == 0:
            worker.write(f"{number}\n".encode())

    assert printed(worker) == [Output(f"t{number}", "stdout", 0, f"{number}\n") for number in range(0, 50, 10)]
    running = worker.outlet.running()
    assert running is not None
    assert running.task_id == "t49"


def test_a_mark_and_a_character_may_come_in_pieces(worker: Worker) -> None:
    stream = mark(SECRET) + b'[1, "a", 5]\n' + "é€\n".encode()
    told = []
    for position in range(len(stream)):
        worker.write(stream[position : position + 1])
        told += printed(worker)

    assert "".join(piece.text for piece in told) == "é€\n"
    assert [piece.start for piece in told] == [0, 1, 2]


def test_what_only_looks_like_the_beginning_of_a_mark_is_text(worker: Worker) -> None:
    worker.begin("a")
    worker.write(b"x\0farcall y\0")
    first = printed(worker)
    worker.outlet.end()

    assert first == [Output("a", "stdout", 0, "x\\0farcall y")]
    assert printed(worker) == [Output("a", "stdout", 12, "\\0")]


@pytest.mark.parametrize("note", [b"", b"{", b"[1]", b"[[" * 100_000, b'["a", 5, 5]', b"\xff", b"[9, null, 5]"])
def test_a_mark_that_only_a_task_can_have_made_is_ignored(worker: Worker, note: bytes) -> None:
    worker.begin("a")
    worker.write(b"before ")
    worker.write_all(mark(SECRET) + note + b"\n")
    worker.write(b"after")

    worker.outlet.end()

    assert [(piece.task_id, piece.text) for piece in printed(worker)] == [("a", "before after")]


def test_what_is_no_text_is_shown_as_such(worker: Worker) -> None:
    worker.begin("a")
    worker.write(b"\xff\0\xc3")
    first = printed(worker)
    worker.outlet.end()

    assert first == [Output("a", "stdout", 0, "\\xff\\0")]
    assert printed(worker) == [Output("a", "stdout", 6, "\\xc3")]


def test_what_is_printed_between_two_calls_is_nobodys(worker: Worker) -> None:
    worker.begin("a")
    worker.write(b"mine\n")
    worker.outlet.end()
    worker.write(b"of something that the task has left\n")
    told = printed(worker)
    worker.outlet.begin(8)
    worker.write(b"still\n")
    worker.begin("b")
    worker.write(b"b's\n")

    assert [piece.text for piece in told] == ["mine\n"]
    assert printed(worker) == [Output("b", "stdout", 0, "b's\n")]


def test_of_a_flood_the_newest_is_told_with_its_place_and_not_too_often(worker: Worker) -> None:
    worker.begin("a")
    line = "é" * 99 + "\n"
    flood = threading.Thread(target=worker.write_all, args=((line * 100_000).encode(),))
    flood.start()
    while flood.is_alive():
        worker.outlet.drain()
    told = printed(worker)

    end = told[-1].start + len(told[-1].text)
    size = sum(len(piece.text) for piece in told)
    assert size <= 2 * outputpipe.KEPT_BYTES
    assert told[-1].text.endswith(line)
    # Counted through to the last character, though most were never looked at.
    assert end == 100 * 100_000
    worker.write(b"more\n")
    worker.outlet.drain()
    assert worker.outlet.printed(worker.clock + 0.2) == []
    assert worker.outlet.printed(worker.clock + 5)[-1].text == "more\n"


def test_reading_a_flood_of_garbage_is_quick(worker: Worker) -> None:
    worker.begin("a")
    flood = threading.Thread(target=worker.write_all, args=(os.urandom(1 << 20) * 100,))
    flood.start()
    while flood.is_alive():
        worker.outlet.drain()

    assert printed(worker)


def test_the_end_of_stderr_is_kept_of_the_running_task_alone(worker: Worker) -> None:
    worker.begin("a")
    worker.write(b"other\n" * 2000, stream=1)
    worker.begin("b")
    worker.write(b"x" * 5000 + b"the end", stream=1)
    worker.outlet.drain()

    assert worker.outlet.stderr_tail() == ("x" * 5000 + "the end")[-4096:]


def test_a_task_that_runs_is_told_of_once_and_one_that_has_ended_never(worker: Worker) -> None:
    worker.begin("a", at=10)
    worker.begin("b", at=11)
    worker.outlet.drain()
    now = time.monotonic()

    assert worker.outlet.started(before=now - 1) is None
    assert worker.outlet.started(before=now) == Started(7, "b", 11, "n1", 0)
    assert worker.outlet.started(before=now) is None
    worker.begin("c")
    worker.outlet.end()
    assert worker.outlet.started(before=time.monotonic()) is None


class Ear:
    """Gathers what a listener has to tell whenever it says that there is something."""

    def __init__(self) -> None:
        self.started: list[Started] = []
        self.printed: list[Output] = []
        self.rounds = 0
        self._news = threading.Event()
        self.listener = Listener(self._news.set)

    def wait_for(self, what: Any) -> None:
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert self._news.wait(end - time.monotonic()), "the listener says nothing"
            self._news.clear()
            started, printed = self.listener.gather()
            self.started += started
            self.printed += printed
            self.rounds += 1


def test_a_listener_tells_of_what_runs_and_of_what_is_printed() -> None:
    ear, workers = Ear(), [Worker(number) for number in range(3)]
    for number, worker in enumerate(workers):
        ear.listener.add(worker.outlet)
        worker.outlet.begin(number)
        worker.begin(f"t{number}")
        worker.write(b"hello")

    ear.wait_for(lambda: len(ear.started) == 3 and len(ear.printed) == 3)

    assert {sighting.task_id for sighting in ear.started} == {"t0", "t1", "t2"}
    assert [piece.text for piece in ear.printed] == ["hello"] * 3
    for worker in workers:
        ear.listener.remove(worker.outlet)
        worker.close()


def test_bursts_of_small_tasks_cost_few_rounds() -> None:
    ear, worker = Ear(), Worker()
    ear.listener.add(worker.outlet)
    worker.outlet.begin(1)
    began = time.monotonic()

    for number in range(20_000):
        worker.begin(f"t{number}")
        worker.write(b"x")
    ear.wait_for(lambda: any(piece.task_id == "t19999" for piece in ear.printed))

    took_s = time.monotonic() - began
    assert ear.rounds <= took_s / outlets.ROUND_S + 5
    ear.listener.remove(worker.outlet)
    worker.close()


def test_what_a_dead_worker_has_printed_is_told_nevertheless() -> None:
    ear, worker = Ear(), Worker()
    ear.listener.add(worker.outlet)
    worker.outlet.begin(1)
    worker.begin("a")
    worker.write(b"last words")

    worker.outlet.drain()
    ear.listener.remove(worker.outlet)
    ear.wait_for(lambda: ear.printed)

    assert [piece.text for piece in ear.printed] == ["last words"]
    worker.close()
