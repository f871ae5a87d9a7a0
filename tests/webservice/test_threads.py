"""Requests are answered by as many threads as there are requests at a time, up to a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from farcall_webservice import threads
from farcall_webservice.threads import RequestThreads

TIMEOUT_S = 30


class Request:
    """A request whose answer takes until it is released."""

    def __init__(self, answer: Callable[[], object] = lambda: None) -> None:
        self.answer = answer
        self.thread = ""
        self.started, self.release, self.done = threading.Event(), threading.Event(), threading.Event()
        self.cancelled = False

    def service(self) -> None:
        self.thread = str(threading.get_ident())
        self.started.set()
        self.release.wait(TIMEOUT_S)
        self.done.set()
        self.answer()

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def pool() -> Iterator[RequestThreads]:
    pool = RequestThreads(most=2, on_shutdown=lambda: None)
    yield pool
    pool.shutdown()


def finished(request: Request) -> Request:
    request.release.set()
    assert request.done.wait(TIMEOUT_S)
    return request


def test_requests_beyond_the_limit_wait_in_line_and_are_answered_in_turn(pool: RequestThreads) -> None:
    first, second, third = Request(), Request(), Request()

    for request in (first, second, third):
        pool.add_task(request)
    assert first.started.wait(TIMEOUT_S) and second.started.wait(TIMEOUT_S)

    assert not third.started.is_set()
    finished(first)
    assert third.started.wait(TIMEOUT_S)
    for request in (second, third):
        finished(request)


def test_a_request_that_fails_costs_no_thread(pool: RequestThreads) -> None:
    for _ in range(3):
        failing = Request(lambda: 1 / 0)
        pool.add_task(failing)
        finished(failing)

    after = Request()
    pool.add_task(after)

    finished(after)


def test_threads_without_work_end_and_new_work_finds_new_ones(
    pool: RequestThreads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "IDLE_S", 0.0)
    for _ in range(50):
        request = Request()
        pool.add_task(request)
        finished(request)


def test_a_shutdown_first_ends_what_waits_for_something() -> None:
    waiting = Request()
    pool = RequestThreads(most=2, on_shutdown=waiting.release.set)
    pool.add_task(waiting)
    assert waiting.started.wait(TIMEOUT_S)

    pool.shutdown(timeout=TIMEOUT_S)

    assert waiting.done.is_set()


def test_a_shutdown_lets_running_requests_end_and_cancels_those_in_line(pool: RequestThreads) -> None:
    running, also_running, in_line = Request(), Request(), Request()
    for request in (running, also_running, in_line):
        pool.add_task(request)
    assert running.started.wait(TIMEOUT_S) and also_running.started.wait(TIMEOUT_S)

    closing = threading.Thread(target=pool.shutdown)
    closing.start()
    for request in (running, also_running):
        finished(request)
    closing.join(TIMEOUT_S)

    assert in_line.cancelled
    assert not in_line.started.is_set()
