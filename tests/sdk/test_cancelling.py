"""Cancelling: before, while and after a task is sent; by its future, by the client, and by somebody else."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, as_completed, wait
from typing import Any

import pytest

from farcall import Client, Executor, FarcallFuture
from farcall.cancelling import canceller_for
from farcall.errors import NotFound, ServiceUnavailable, TaskCancelled, TaskExecutionFailed

UNKNOWN = "5f0c9f7e-3d3b-4b52-8f55-3a5a3d2f6c11"
DOWN = 503, {"code": "DOWN", "message": "down"}


def squared(x: int) -> int:
    return x**2


def dividing(x: int) -> float:
    return 1 / x


@pytest.fixture
def waiting(service: Any) -> Any:
    """A service whose endpoint is away, so that tasks wait."""
    service.paused = True
    return service


def sent(service: Any, executor: Executor, number: int = 1) -> list[FarcallFuture]:
    """Futures of tasks that the service has."""
    futures = [executor.submit(squared, x) for x in range(number)]
    # Everything is sent, so that each has its id.
    assert not executor._submitter.drain(time.monotonic() + 30)
    assert all(future.task_id for future in futures)
    return futures


class Held:
    """Holds the first request to a path back until it is let go."""

    def __init__(self, service: Any, path: str) -> None:
        self.path, self.reached, self.go = path, threading.Event(), threading.Event()
        service.script = self

    def __call__(self, seen: Any) -> None:
        if seen.path.endswith(self.path) and not self.go.is_set():
            self.reached.set()
            assert self.go.wait(30)


def test_a_task_that_waits_is_cancelled_at_the_service(waiting: Any) -> None:
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        assert future.running()

        assert future.cancel()

        assert future.cancelled()
        assert not future.running()
        assert waiting.tasks[future.task_id]["status"] == "cancelled"
        with pytest.raises(CancelledError):
            future.result()
        with pytest.raises(CancelledError):
            future.exception()


def test_cancelling_again_changes_nothing_and_asks_nobody(waiting: Any) -> None:
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)

        assert [future.cancel(), future.cancel()] == [True, True]

    assert len(waiting.cancels()) == 1


def test_a_task_that_has_ended_is_not_cancelled(service: Any) -> None:
    with service.executor() as executor:
        future = executor.submit(squared, 3)
        future.result()

        assert not future.cancel()
        assert future.result() == 9

    assert not service.cancels()


def test_the_service_decides_a_race_with_the_end_of_the_task(waiting: Any) -> None:
    """The task has ended there, and its result has not come yet."""
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        held = Held(waiting, "/results")
        waiting.run_all()

        assert not future.cancel()
        assert not future.cancelled()

        held.go.set()
        assert future.result(timeout=30) == 0


def test_what_is_cancelled_while_its_request_is_under_way_is_cancelled_at_the_service_too(waiting: Any) -> None:
    held = Held(waiting, "/submit")
    with waiting.executor() as executor:
        future, other = executor.submit(squared, 1), executor.submit(squared, 2)
        assert held.reached.wait(30)

        assert future.cancel()
        assert future.cancelled()
        held.go.set()

        waiting.wait_for_tasks(2)
        with waiting.changed:
            assert waiting.changed.wait_for(lambda: len(waiting.done) == 1, 30)
        waiting.run_all()
        assert other.result(timeout=30) == 4
    (task_id,) = (task_id for task_id, task in waiting.tasks.items() if task["status"] == "cancelled")
    assert future.task_id == task_id


def test_a_cancelled_future_is_done_for_everybody_who_waits(waiting: Any) -> None:
    called: list[Any] = []
    with waiting.executor() as executor, ThreadPoolExecutor(4) as threads:
        first, second, third = sent(waiting, executor, 3)
        second.add_done_callback(called.append)
        in_result = threads.submit(lambda: second.exception(timeout=30))
        in_wait = threads.submit(wait, [first, second], 30, FIRST_COMPLETED)
        in_order = as_completed([second], timeout=30)

        second.cancel()

        assert next(in_order) is second
        assert in_wait.result(30).done == {second}
        with pytest.raises(CancelledError):
            in_result.result(30)
        assert called == [second]
        assert wait([second]).done == {second}
        waiting.run_all()
        assert [first.result(30), third.result(30)] == [0, 4]


def test_an_unsent_future_that_is_cancelled_is_done_at_once(waiting: Any) -> None:
    held = Held(waiting, "/submit")
    with waiting.executor() as executor:
        first = executor.submit(squared, 1)
        assert held.reached.wait(30)
        unsent = executor.submit(squared, 2)
        unsent.cancel()

        assert next(as_completed([unsent], timeout=5)) is unsent
        assert wait([unsent], timeout=5).done == {unsent}
        held.go.set()
        first.cancel()


def test_two_threads_that_cancel_agree(waiting: Any) -> None:
    with waiting.executor() as executor, ThreadPoolExecutor(8) as threads:
        for future in sent(waiting, executor, 20):
            assert list(threads.map(lambda _, future=future: future.cancel(), range(8))) == [True] * 8
            assert future.cancelled()


def test_a_cancel_from_elsewhere_reaches_the_future(waiting: Any) -> None:
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)

        assert waiting.client().cancel(future.task_id)

        with pytest.raises(CancelledError):
            future.result(timeout=30)
        assert future.cancelled()
        assert future.reason() == "cancelled by owner"


def test_what_is_cancelled_while_a_request_is_under_way_travels_together(waiting: Any) -> None:
    with waiting.executor() as executor, ThreadPoolExecutor(20) as threads:
        futures = sent(waiting, executor, 20)
        held = Held(waiting, "/cancel")
        first = threads.submit(futures[0].cancel)
        assert held.reached.wait(30)
        canceller = canceller_for(executor.client.transport)
        others = [threads.submit(future.cancel) for future in futures[1:]]
        while len(canceller._asked) < 19:
            threading.Event().wait(0.001)
        held.go.set()

        assert all(each.result(30) for each in (first, *others))

    assert [len(request.body["task_ids"]) for request in waiting.cancels()] == [1, 19]


def test_many_are_cancelled_in_one_request(waiting: Any) -> None:
    with waiting.executor() as executor:
        futures = sent(waiting, executor, 50)
        waiting.client().cancel(futures[0])

        answers = executor.client.cancel([*futures, UNKNOWN])

        assert all(future.cancelled() for future in futures)
    assert all(answers[future.task_id]["cancelled"] for future in futures)
    assert answers[UNKNOWN]["status"] == "unknown"
    assert [len(request.body["task_ids"]) for request in waiting.cancels()] == [1, 50, 1]


def test_a_task_that_is_not_there_is_said_to_be_missing(service: Any) -> None:
    with pytest.raises(NotFound, match=f"Task {UNKNOWN} not found"):
        service.client().cancel(UNKNOWN)


def test_a_group_is_cancelled_as_a_whole_in_as_many_requests_as_it_takes(waiting: Any) -> None:
    waiting.cancelled_at_once = 2
    with waiting.executor(task_group_id=UNKNOWN) as executor:
        (ended,) = sent(waiting, executor)
        waiting.run_all()
        ended.result(30)
        futures = sent(waiting, executor, 5)

        answer = executor.client.cancel(task_group_id=UNKNOWN)

        assert answer == {"taskgroup_id": UNKNOWN, "cancelled": 5, "ended": 1}
        for future in futures:
            with pytest.raises(CancelledError):
                future.result(timeout=30)


def test_what_is_to_be_cancelled_must_be_said(service: Any) -> None:
    client: Any = service.client()
    for wrong in (client.cancel, lambda: client.cancel(UNKNOWN, task_group_id=UNKNOWN)):
        with pytest.raises(TypeError, match="say what to cancel"):
            wrong()
    with pytest.raises(ValueError, match="task_id 'abc' is not a UUID"):
        client.cancel("abc")
    with pytest.raises(ValueError, match="task_id 'abc' is not a UUID"):
        client.cancel(["abc"])


def test_a_service_that_is_away_leaves_the_future_as_it_was(waiting: Any) -> None:
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        executor.client.transport.retry_for_s = 0.2
        waiting.script = lambda seen: DOWN if seen.path.endswith("/cancel") else None

        with pytest.raises(ServiceUnavailable, match="down"):
            future.cancel()

        assert not future.done()
        waiting.script = lambda seen: None
        assert future.cancel()


def test_the_service_is_told_when_it_is_back(waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall.cancelling._FIRST_PAUSE_S", 0.01)
    away = iter(range(3))
    with waiting.executor() as executor:
        futures = sent(waiting, executor, 3)
        executor.client.transport.retry_for_s = 0.0
        waiting.script = lambda seen: DOWN if seen.path.endswith("/cancel") and next(away, None) is not None else None

        executor.shutdown(wait=False, cancel_futures=True)

        assert all(future.cancelled() for future in futures)
        with waiting.changed:
            assert waiting.changed.wait_for(lambda: len(waiting.done) == 3, 30)


def test_shutdown_cancels_in_one_request_what_was_sent(waiting: Any) -> None:
    executor = waiting.executor()
    futures = sent(waiting, executor, 10)

    executor.shutdown(cancel_futures=True)

    assert all(future.cancelled() for future in futures)
    assert {task["status"] for task in waiting.tasks.values()} == {"cancelled"}
    assert len(waiting.cancels()) == 1


def test_whoever_leaves_a_map_cancels_the_rest(waiting: Any) -> None:
    with waiting.executor() as executor:
        results = executor.map(dividing, range(5))
        waiting.wait_for_tasks(5)
        with waiting.changed:
            failing = next(iter(waiting.tasks))
            waiting.tasks[failing].update(waiting._outcome(waiting.tasks[failing]))
            waiting.done.append(failing)
            waiting.changed.notify_all()

        with pytest.raises(ZeroDivisionError):
            next(results)

        with waiting.changed:
            assert waiting.changed.wait_for(lambda: len(waiting.done) == 5, 30)
    assert [task["status"] for task in waiting.tasks.values()] == ["failed", *["cancelled"] * 4]


def test_a_map_whose_time_is_over_cancels_all_of_it(waiting: Any) -> None:
    with waiting.executor() as executor:
        with pytest.raises(TimeoutError):
            list(executor.map(squared, range(3), timeout=0.01))
        assert not executor._submitter.drain(time.monotonic() + 30)

        with waiting.changed:
            assert waiting.changed.wait_for(
                lambda: all(task["status"] == "cancelled" for task in waiting.tasks.values()), 30
            )


@pytest.mark.parametrize("awaitable", [lambda future: future, asyncio.wrap_future], ids=["future", "wrapped"])
def test_a_cancelled_await_cancels_the_task(waiting: Any, awaitable: Any) -> None:
    async def leaving(future: FarcallFuture) -> None:
        async def awaiting() -> Any:
            return await awaitable(future)

        task = asyncio.create_task(awaiting())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        # Whatever is done here in the event loop's thread does not wait for the service.
        held = Held(waiting, "/cancel")
        asyncio.run(leaving(future))
        assert future.cancelled()
        held.go.set()

        with waiting.changed:
            assert waiting.changed.wait_for(lambda: future.task_id in waiting.done, 30)


def test_an_await_of_a_task_that_is_cancelled_elsewhere_ends(waiting: Any) -> None:
    async def awaiting(future: FarcallFuture) -> None:
        asyncio.get_running_loop().run_in_executor(None, waiting.client().cancel, future.task_id)
        with pytest.raises(asyncio.CancelledError):
            await future

    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        asyncio.run(awaiting(future))


def test_a_callback_may_cancel_others(waiting: Any) -> None:
    with waiting.executor() as executor:
        first, *others = sent(waiting, executor, 4)
        first.add_done_callback(lambda _: [other.cancel() for other in others])

        first.cancel()

        wait(others, timeout=30)
        assert all(future.cancelled() for future in others)


def test_a_result_of_a_cancelled_task_is_an_error_that_says_so(waiting: Any) -> None:
    with waiting.executor() as executor:
        (future,) = sent(waiting, executor)
        future.cancel()
        client: Client = executor.client

        with pytest.raises(TaskCancelled, match="cancelled by owner") as caught:
            client.get_result(str(future.task_id))

    assert isinstance(caught.value, TaskExecutionFailed)
    assert isinstance(caught.value, CancelledError)


def test_futures_of_an_earlier_program_can_be_cancelled(waiting: Any) -> None:
    with waiting.executor(task_group_id=UNKNOWN) as earlier:
        submitted = sent(waiting, earlier, 2)
        with waiting.executor() as executor:
            reloaded = list(executor.reload_tasks(UNKNOWN))

            assert all(future.cancel() for future in reloaded)

        for future in submitted:
            with pytest.raises(CancelledError):
                future.result(timeout=30)


def test_a_thread_without_work_ends_and_comes_back(waiting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall.cancelling._IDLE_S", 0.01)
    with waiting.executor() as executor:
        first, second = sent(waiting, executor, 2)
        assert first.cancel()
        canceller = canceller_for(executor.client.transport)
        thread = canceller._thread
        if thread is not None:
            thread.join(30)

        assert canceller._thread is None
        assert second.cancel()
