"""What can be known of a task before it has ended, and what is said of one that failed."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from farcall import Client, FarcallFuture, TaskExecutionFailed
from farcall.wire import TaskState

ATTEMPTS = [f"attempt {n} of 2 ended: worker 1 on node n1 was killed by signal 9 (SIGKILL)" for n in (1, 2)]
UNKNOWN = "5f0c9f7e-3d3b-4b52-8f55-3a5a3d2f6c11"


def squared(x: int) -> int:
    return x**2


def dividing(x: int) -> float:
    return 1 / x


def test_a_future_says_where_its_task_is_and_why(service: Any) -> None:
    service.paused = True
    with service.executor() as executor:
        future = executor.submit(squared, 3)
        service.wait_for_tasks(1)
        executor._submitter.drain(time.monotonic() + 30)

        assert future.state() is TaskState.WAITING_FOR_EP
        assert future.reason() == "the endpoint has been offline since 12:00"
        service.tasks[future.task_id].update(status="running", reason="running on n1 since 12:01")
        assert (future.state(), future.reason()) == (TaskState.RUNNING, "running on n1 since 12:01")

        service.tasks[future.task_id].update(status="waiting-for-ep")
        service.run_all()
        future.result(30)
        asked = len(service.seen)
        assert (future.state(), future.reason()) == (TaskState.SUCCESS, "")
        assert len(service.seen) == asked


def test_what_is_not_sent_yet_is_said_to_wait_here(service: Any) -> None:
    reached, go = threading.Event(), threading.Event()

    def hold(seen: Any) -> None:
        if seen.path.endswith("/submit"):
            reached.set()
            assert go.wait(30)

    service.script = hold
    with service.executor() as executor:
        under_way = executor.submit(squared, 1)
        assert reached.wait(30)
        waiting = executor.submit(squared, 2)

        assert (under_way.state(), under_way.reason()) == ("received", "it is being sent to the service")
        assert (waiting.state(), waiting.reason()) == ("received", "it waits here to be sent to the service")
        assert (under_way.running(), waiting.running()) == (True, False)
        go.set()


def test_a_future_that_failed_says_why(service: Any) -> None:
    with service.executor() as executor:
        failed = executor.submit(dividing, 0)
        refused = executor.submit_to_registered_function(UNKNOWN)
        failed.exception(30), refused.exception(30)

        assert (failed.state(), failed.reason()) == (TaskState.FAILED, "ZeroDivisionError: division by zero")
        assert refused.state() is TaskState.FAILED
        assert "could not be resolved" in refused.reason()


def test_a_result_that_cannot_be_read_here_is_a_success_there(service: Any) -> None:
    service.paused = True
    with service.executor() as executor:
        future = executor.submit(squared, 3)
        service.wait_for_tasks(1)
        (task_id,) = service.tasks
        service.tasks[task_id].update(status="success", result="00\nAAAA")
        service.done.append(task_id)
        with service.changed:
            service.changed.notify_all()
        assert future.exception(30) is not None

        assert future.state() is TaskState.SUCCESS
        assert "the result of task" in future.reason()


def test_a_future_without_a_service_is_a_plain_one() -> None:
    future = FarcallFuture()

    assert future.state() is TaskState.RECEIVED
    assert future.cancel()
    assert (future.state(), future.reason()) == (TaskState.CANCELLED, "it was cancelled")


@pytest.fixture
def lost(service: Any, endpoint_id: str) -> tuple[Client, str]:
    """A task that killed its worker each time."""
    service.paused = True
    client: Client = service.client()
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=client.register_function(squared))
    notes: list[list[Any]] = [["waiting-for-nodes", 2.5 + place, note] for place, note in enumerate(ATTEMPTS)]
    service.tasks[task_id]["history"] = [["received", 1.5], *notes, ["failed", 9.5]]
    service.tasks[task_id].update(status="failed", exception=f"killed too often.\n{ATTEMPTS[1]}", completion_t="9.5")
    service.done.append(task_id)
    return client, task_id


def test_a_task_shows_its_history_and_its_attempts(lost: tuple[Client, str]) -> None:
    client, task_id = lost

    task = client.get_task(task_id)

    assert task["attempts"] == ATTEMPTS
    assert task["history"][0] == ["received", 1.5]
    assert task["history"][1] == ["waiting-for-nodes", 2.5, ATTEMPTS[0]]


def test_an_error_has_all_attempts_once(lost: tuple[Client, str]) -> None:
    client, task_id = lost

    with pytest.raises(TaskExecutionFailed) as caught:
        client.get_result(task_id)

    assert caught.value.remote_data == f"killed too often.\n{ATTEMPTS[1]}\n{ATTEMPTS[0]}"


def test_the_output_of_a_task_is_read_from_any_place(service: Any, endpoint_id: str) -> None:
    service.paused = True
    client: Client = service.client()
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=client.register_function(squared))
    service.print_to(task_id, "héllo\n")

    assert client.get_task_log(task_id)["text"] == "héllo\n"
    piece = client.get_task_log(task_id, after=2)
    assert (piece["text"], piece["next"], piece["ended"]) == ("llo\n", 6, False)
    assert client.get_task_log(task_id, "stderr")["text"] == ""


def test_the_output_of_a_task_is_followed_to_its_end(service: Any, endpoint_id: str) -> None:
    service.paused = True
    client: Client = service.client()
    task_id = client.run(1, endpoint_id=endpoint_id, function_id=client.register_function(squared))
    away = iter(range(2))
    texts = client.follow_task_log(task_id)

    service.print_to(task_id, "one\n")
    assert next(texts) == "one\n"
    service.script = lambda seen: (503, {"code": "DOWN", "message": "down"}) if next(away, None) is not None else None
    service.print_to(task_id, "two\n")
    assert next(texts) == "two\n"
    service.print_to(task_id, "three\n")
    service.run_all()
    assert list(texts) == ["three\n"]


def test_what_was_not_kept_of_an_output_is_said(service: Any, caplog: pytest.LogCaptureFixture) -> None:
    client: Client = service.client()
    piece = {"start": 100, "text": "rest\n", "next": 105, "ended": True}
    service.script = lambda seen: (200, piece) if seen.path.endswith("/log") else None

    assert list(client.follow_task_log(UNKNOWN)) == ["rest\n"]
    assert "100 characters of the stdout of task" in caplog.text


def test_what_is_no_stream_or_place_is_refused(service: Any) -> None:
    client: Client = service.client()
    with pytest.raises(ValueError, match="no stream 'out': a task has stdout and stderr"):
        client.get_task_log(UNKNOWN, "out")
    with pytest.raises(ValueError, match="after is a number of characters, 0 or more, not -1"):
        client.get_task_log(UNKNOWN, after=-1)


def test_the_service_says_who_is_calling_and_its_limits(service: Any) -> None:
    client: Client = service.client()
    answers = {"/v2/whoami": {"user": "owner"}, "/v2/limits": {"max_batch_tasks": 10}}
    service.script = lambda seen: (200, answers[seen.path]) if seen.path in answers else None

    assert (client.whoami(), client.get_limits()) == tuple(answers.values())
