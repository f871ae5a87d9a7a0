"""Workers at the end of pipes: work goes out, results come in, deaths are noticed."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.synchronize import Event as EventType
from typing import Any

import psutil
import pytest
from calling import wait_until
from parsl.app.errors import RemoteExceptionWrapper
from parsl.multiprocessing import ForkContext, SpawnContext
from parsl.serialize import deserialize

from farcall_endpoint import crewmember, killing
from farcall_endpoint.crew import Crew
from farcall_endpoint.failures import WorkerEnded
from farcall_endpoint.workerend import WorkerEnd

#: More than fits into a pipe.
LARGE = b"x" * 4_000_000


def obey(end: WorkerEnd) -> None:
    """A worker that does what its tasks say."""
    while True:
        task = end.get(60)
        if task["do"] == "die":
            psutil.Process().kill()
        if task["do"] == "leave a child behind":
            leave_a_child_behind()
        end.put(pickle.dumps({"type": "result", "task_id": task["task_id"], "result": task["do"]}))


def leave_a_child_behind() -> None:
    if os.fork() == 0:
        signal.pause()


def start(number: int, end: WorkerEnd) -> Any:
    process = ForkContext.Process(target=obey, args=(end,), daemon=True)
    process.start()
    return process


@pytest.fixture
def crew() -> Iterator[Crew]:
    crew = Crew(start)
    yield crew
    for process in crew.processes.values():
        process.kill()
        process.join()


@pytest.fixture
def gate() -> EventType:
    return ForkContext.Event()


def next_result(crew: Crew) -> dict[str, Any]:
    while True:
        package = crew.get_result()
        if package is not None:
            result: dict[str, Any] = pickle.loads(package)
            return result


def test_each_task_is_answered(crew: Crew) -> None:
    crew.hire(0)
    crew.hire(1)

    for number in range(10):
        crew.put_task({"task_id": number, "do": "answer"})

    assert sorted(next_result(crew)["task_id"] for _ in range(10)) == list(range(10))
    assert crew.qsize() == 0


def test_what_a_dead_worker_was_doing_is_reported_and_the_rest_done_by_its_successor(crew: Crew) -> None:
    first = crew.hire(0)

    crew.put_task({"task_id": 1, "do": "die"})
    crew.put_task({"task_id": 2, "do": "answer"})
    lost, answered = next_result(crew), next_result(crew)

    wrapper = deserialize(lost["exception"])
    assert lost["task_id"] == 1
    assert isinstance(wrapper, RemoteExceptionWrapper)
    assert wrapper.e_type is WorkerEnded
    assert answered["task_id"] == 2
    assert crew.processes[0] is not first


def test_a_worker_killed_while_idle_is_replaced_once(crew: Crew) -> None:
    crew.hire(0)
    crew.put_task({"task_id": 1, "do": "answer"})
    next_result(crew)

    psutil.Process(crew.processes[0].pid).send_signal(signal.SIGKILL)
    crew.processes[0].join()
    for number in range(2, 6):
        crew.put_task({"task_id": number, "do": "answer"})

    outcomes = [next_result(crew) for _ in range(4)]
    # The first may have been handed to the dead one, before anybody could know.
    assert sorted(outcome["task_id"] for outcome in outcomes) == [2, 3, 4, 5]
    assert sum("exception" in outcome for outcome in outcomes) <= 1
    assert len(crew.processes) == 1


def test_a_worker_that_cannot_even_start_is_replaced_at_leisure(crew: Crew) -> None:
    crew.hire(0)
    first = crew.processes[0]
    first.kill()
    first.join()
    crew.put(None)
    while crew.get_result() is not None:
        pass

    crew.look_after()
    crew.look_after()
    crew.put_task({"task_id": 1, "do": "answer"})

    assert next_result(crew)["task_id"] == 1
    assert crew.processes[0] is not first


def test_a_worker_that_cannot_be_replaced_at_once_is_replaced_later() -> None:
    tries = threading.Semaphore(0)
    failing = iter((False, True, True, False))

    def start_now_and_then(number: int, end: WorkerEnd) -> Any:
        tries.release()
        if next(failing):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(number, end)

    crew = Crew(start_now_and_then)
    first = crew.hire(0)
    crew.put_task({"task_id": 1, "do": "die"})
    assert "exception" in next_result(crew)
    assert all(tries.acquire(timeout=60) for _ in range(2))
    crew.put_task({"task_id": 2, "do": "answer"})

    # The first of these may come before it is known that it has failed.
    wait_until(lambda: crew.look_after() or tries.acquire(timeout=0.1), "another try")
    wait_until(lambda: crew.look_after() or tries.acquire(timeout=0.1), "another try")

    assert next_result(crew)["task_id"] == 2
    assert crew.processes[0] is not first
    crew.processes[0].kill()
    crew.processes[0].join()


def test_a_large_task_does_not_wait_for_a_worker_that_is_still_starting(gate: EventType) -> None:
    def start_slowly(number: int, end: WorkerEnd) -> Any:
        def run() -> None:
            gate.wait()
            obey(end)

        process = ForkContext.Process(target=run, daemon=True)
        process.start()
        return process

    crew = Crew(start_slowly)
    process = crew.hire(0)

    crew.put_task({"task_id": 1, "do": "answer", "payload": LARGE})
    gate.set()

    assert next_result(crew)["task_id"] == 1
    process.kill()
    process.join()


def test_a_large_task_does_not_wait_for_a_dead_worker_whose_pipe_a_left_child_holds(crew: Crew) -> None:
    worker = crew.hire(0)
    crew.put_task({"task_id": 1, "do": "leave a child behind"})
    next_result(crew)
    (child,) = psutil.Process(worker.pid).children()
    worker.kill()
    worker.join()

    crew.put_task({"task_id": 2, "do": "answer", "payload": LARGE})
    crew.look_after()
    crew.look_after()

    assert next_result(crew)["task_id"] == 2
    child.kill()


def test_a_worker_that_reads_nothing_is_ended_and_its_task_reported(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crewmember, "MOST_SENDING_S", 1)
    worker = crew.hire(0)
    crew.put_task({"task_id": 1, "do": "answer"})
    next_result(crew)
    psutil.Process(worker.pid).suspend()

    crew.put_task({"task_id": 2, "do": "answer", "payload": LARGE})
    crew.put_task({"task_id": 3, "do": "answer"})

    lost, answered = next_result(crew), next_result(crew)
    assert (lost["task_id"], "exception" in lost) == (2, True)
    assert answered["task_id"] == 3


def test_where_no_worker_can_start_tasks_are_lost_and_do_not_wait_for_ever() -> None:
    def start_badly(number: int, end: WorkerEnd) -> Any:
        process = ForkContext.Process(target=sys.exit, args=(1,))
        process.start()
        return process

    crew = Crew(start_badly)
    crew.put_task({"task_id": 1, "do": "answer"})
    crew.hire(0)

    lost = next_result(crew)

    assert (lost["task_id"], "exception" in lost) == (1, True)
    crew.processes[0].join()


def test_only_a_worker_bears_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not what multiprocessing starts beside it, which serves all of them."""
    # None runs yet, as in a manager that has just begun.
    tracker: Any = resource_tracker.ResourceTracker()
    monkeypatch.setattr(resource_tracker, "ensure_running", tracker.ensure_running)
    monkeypatch.setattr(resource_tracker, "getfd", tracker.getfd)
    crew = Crew(start_anew)

    worker = crew.hire(0)

    wait_until(lambda: mark_of(psutil.Process(worker.pid)), "the worker to have begun")
    assert [process.pid for process in psutil.Process().children() if mark_of(process)] == [worker.pid]
    assert killing.MARK not in os.environ
    worker.kill()
    worker.join()
    tracker._stop()


def start_anew(number: int, end: WorkerEnd) -> Any:
    process = SpawnContext.Process(target=obey, args=(end,), daemon=True)
    process.start()
    return process


def mark_of(process: psutil.Process) -> str | None:
    with suppress(psutil.Error):
        return process.environ().get(killing.MARK)
    return None


def test_waiting_for_results_can_be_interrupted(crew: Crew) -> None:
    crew.put(None)

    assert crew.get_result() is None
