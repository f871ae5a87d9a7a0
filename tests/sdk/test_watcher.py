"""Who gets a group's results, whatever else goes wrong or happens at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any

import pytest

from farcall import Client, Executor
from farcall.errors import DeserializationError, ServiceUnavailable
from farcall.watcher import watcher_for


def squared(x: int) -> int:
    return x**2


def leaving(code: int) -> None:
    raise SystemExit(code)


class Leaving:
    """A value that ends the program that loads it."""

    def __reduce__(self) -> Any:
        return leaving, (3,)


def make_leaving() -> Leaving:
    return Leaving()


def watcher_of(executor: Executor) -> Any:
    return watcher_for(executor.client.transport, str(executor.task_group_id))


def test_a_result_that_cannot_be_loaded_strands_no_other_of_its_page(service: Any) -> None:
    service.paused = True
    with service.executor() as executor:
        bad = executor.submit(make_leaving)
        good = [executor.submit(squared, x) for x in range(20)]
        service.wait_for_tasks(21)
        service.run_all()

        with pytest.raises(DeserializationError, match="SystemExit"):
            bad.result(timeout=30)
        assert [future.result(timeout=30) for future in good] == [x**2 for x in range(20)]


def test_a_callback_that_ends_its_thread_strands_no_other_future(service: Any) -> None:
    def leave(done: Future[Any]) -> None:
        raise SystemExit

    service.paused = True
    with service.executor() as executor:
        futures = [executor.submit(squared, x) for x in range(5)]
        futures[0].add_done_callback(leave)
        service.wait_for_tasks(5)
        service.run_all()

        assert [future.result(timeout=30) for future in futures] == [0, 1, 4, 9, 16]


def test_reloading_takes_nothing_from_whoever_waits_already(service: Any) -> None:
    service.paused = True
    with service.executor(task_group_id="6fae8fa0-8d8c-4f0c-9c07-5b2f0c3f3d6e") as executor:
        submitted = executor.submit(squared, 3)
        service.wait_for_tasks(1)
        (reloaded,) = executor.reload_tasks()
        (once_more,) = executor.reload_tasks()
        service.run_all()

        assert [future.result(timeout=30) for future in (submitted, reloaded, once_more)] == [9, 9, 9]


def test_reloading_during_a_submit_leaves_the_submit_its_result(service: Any) -> None:
    """The task is done and known to the group before the answer to its submit says whose it is."""
    accepted, answer_it = threading.Event(), threading.Event()

    def late(seen: Any) -> Any:
        if seen.path.endswith("/submit"):
            answer = service._submit(seen, seen.path.split("/")[3])
            accepted.set()
            assert answer_it.wait(30)
            return answer
        return None

    with service.executor(task_group_id="6fae8fa0-8d8c-4f0c-9c07-5b2f0c3f3d6e") as executor:
        service.script = late
        submitted = executor.submit(squared, 3)
        assert accepted.wait(30)
        (reloaded,) = executor.reload_tasks()
        assert reloaded.result(timeout=30) == 9
        answer_it.set()

        assert submitted.result(timeout=30) == 9


def test_what_is_reloaded_while_a_page_is_handed_out_is_read_again(service: Any) -> None:
    """The first future's callback runs in the watcher's thread, before that thread could do anything else."""
    service.paused = True
    found: list[Any] = []
    with service.executor() as executor, service.executor() as other:
        submitted = executor.submit(squared, 3)
        reloaded = threading.Event()

        def reload(done: Future[Any]) -> None:
            found.extend(other.reload_tasks())
            reloaded.set()

        submitted.add_done_callback(reload)
        service.wait_for_tasks(1)
        service.run_all()
        assert reloaded.wait(30)

        assert [future.result(timeout=30) for future in found] == [9]


def test_reloading_outlasts_a_service_that_is_away_for_a_moment(service: Any) -> None:
    with service.executor() as executor:
        executor.submit(squared, 3).result()
        away = iter([True])

        def restarting(seen: Any) -> Any:
            if seen.path.endswith("/results") and seen.query["wait"] == "0" and next(away, False):
                return 503, {"code": "STARTING", "message": "not yet"}
            return None

        service.script = restarting
        (reloaded,) = executor.reload_tasks()

        assert reloaded.result(timeout=30) == 9


def test_reloading_that_fails_leaves_nothing_behind_to_wait_for(service: Any) -> None:
    executor = service.executor()
    executor.submit(squared, 3).result()
    executor.client.transport.retry_for_s = 0.0
    service.script = lambda seen: (503, {"code": "DOWN", "message": "down"}) if seen.path.endswith("/results") else None

    with pytest.raises(ServiceUnavailable, match="down"):
        executor.reload_tasks()

    assert watcher_of(executor)._awaited() == 0
    executor.shutdown(wait=True)


def test_a_thread_without_work_ends_and_comes_back(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall.watcher._IDLE_S", 0.01)
    with service.executor() as executor:
        assert executor.submit(squared, 2).result(timeout=30) == 4
        thread = watcher_of(executor)._thread
        if thread is not None:
            thread.join(30)

        assert watcher_of(executor)._thread is None
        assert executor.submit(squared, 3).result(timeout=30) == 9

    # It went on where it was.
    assert service.requests("GET", ".*/results")[-1].query["after"] != "0"


def test_where_too_many_wait_results_are_looked_for_now_and_then(
    service: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("farcall.watcher._LOOK_EVERY_S", 0.01)
    full = 429, {"code": "TOO_MANY_WAITING", "message": "too many wait"}
    service.script = lambda seen: full if seen.query.get("wait", "0") != "0" else None
    with service.executor() as executor:
        assert list(executor.map(squared, range(5), timeout=30)) == [0, 1, 4, 9, 16]

    assert not caplog.records


class PickyError(Exception):
    """One that cannot be copied."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}")


class BadTempered:
    """An authorizer that fails when it is told to."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def get_authorization_header(self) -> str:
        if self.error is not None:
            raise self.error
        return "Bearer fc_token"

    def handle_missing_authorization(self) -> bool:
        return False


@pytest.mark.parametrize("error", [PickyError("here", "no"), SystemExit(3)])
@pytest.mark.parametrize("known", [True, False], ids=["registered", "unregistered"])
def test_an_error_of_any_kind_fails_its_tasks_and_the_executor_goes_on(
    service: Any, endpoint_id: str, error: BaseException, known: bool
) -> None:
    authorizer = BadTempered()
    client = Client(service_url=service.url, authorizer=authorizer)
    with Executor(endpoint_id, client) as executor:
        if known:
            executor.register_function(squared)
        authorizer.error = error
        futures = [executor.submit(squared, x) for x in range(3)]
        assert [type(future.exception(timeout=30)) for future in futures] == [type(error)] * 3

        authorizer.error = None
        assert executor.submit(squared, 4).result(timeout=30) == 16
