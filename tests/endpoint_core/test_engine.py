"""What travels together, what is run again, and what is given up."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import zmq
from parsl.executors.high_throughput.errors import WorkerLost

from farcall.wire import BatchedTask, FunctionCode, TaskState
from farcall_endpoint import engine as engine_module
from farcall_endpoint.calls import Outcome, Setting, read_call, write_outcome
from farcall_endpoint.engine import CALLS_PER_WORKER, Engine
from farcall_endpoint.journal import Unfinished

LOST = WorkerLost(0, "node1")


class RecordingExecutor:
    """Stands where Parsl's does: keeps the calls until the test ends them."""

    def __init__(self) -> None:
        self.bad_state_is_set = False
        self.calls: list[tuple[list[str], Future[bytes]]] = []
        self.refuses = False
        self.error: Exception | None = None

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> Future[bytes]:
        if self.refuses:
            raise zmq.Again
        if self.error is not None:
            raise self.error
        assert context == {"task_executor": {"f": "farcall_endpoint.worker.run_batch"}}
        future: Future[bytes] = Future()
        self.calls.append(([task.task_id for task in read_call(buffer)[1].tasks], future))
        return future

    def open_calls(self) -> list[list[str]]:
        return [ids for ids, future in self.calls if not future.done()]

    def finish(self, number: int, *, took_s: float = 0.0) -> None:
        ids, future = self.calls[number]
        future.set_result(write_outcome(Outcome(took_s, [(task_id, f"result of {task_id}") for task_id in ids])))


class Bench:
    """An engine with nothing real around it."""

    def __init__(self, *, max_retries: int = 2, workers: int = 1) -> None:
        self.results: dict[str, str] = {}
        self.lost: list[str] = []
        self.demands = 0
        self.engine = Engine(
            Setting("some-endpoint"), max_retries=max_retries, on_results=self._take, on_lost=self.lost.extend
        )
        self.engine.on_demand = self._demand
        self.executor = RecordingExecutor()
        self.engine.use(self.executor)  # type: ignore[arg-type]
        self.engine.expect(workers=workers, expected=workers)

    def add(self, *task_ids: str, function_id: str = "f", attempts: int = 0) -> None:
        tasks = [Unfinished(BatchedTask(task_id, function_id, "payload"), attempts) for task_id in task_ids]
        self.engine.add({function_id: FunctionCode("code")}, tasks)

    def learn_that_it_is_quick(self) -> None:
        self.add("first")
        self.executor.finish(0, took_s=0.000_01)
        self.executor.calls.clear()

    def _take(self, results: Sequence[tuple[str, str]]) -> None:
        self.results.update(results)

    def _demand(self) -> None:
        self.demands += 1


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    load = bench.engine.load()
    assert (load.payload_bytes == 0) == (load.waiting + load.handed_over == 0)


def error_of(text: str) -> dict[str, str]:
    error: dict[str, str] = json.loads(text)["error_details"]
    return error


def test_a_function_never_seen_travels_alone_and_most_of_it_waits(bench: Bench) -> None:
    bench.add(*"abcdefgh")

    assert bench.executor.open_calls() == [["a"], ["b"]]
    assert len(bench.executor.calls) == CALLS_PER_WORKER
    assert bench.engine.load().waiting == 6


def test_a_quick_function_travels_together_spread_over_whoever_is_free(bench: Bench) -> None:
    bench.learn_that_it_is_quick()

    bench.add(*"abcdefgh")

    assert bench.executor.open_calls() == [list("abcd"), list("efgh")]


def test_results_are_passed_on_and_make_room_for_more(bench: Bench) -> None:
    bench.add(*"abc")

    bench.executor.finish(0, took_s=10.0)

    assert bench.results == {"a": "result of a"}
    assert bench.executor.open_calls() == [["b"], ["c"]]


def test_a_long_queue_of_one_function_does_not_keep_out_another(bench: Bench) -> None:
    bench.add(*"abcd")
    bench.add("x", function_id="g")

    bench.executor.finish(0, took_s=10.0)
    bench.executor.finish(1, took_s=10.0)

    assert ["x"] in bench.executor.open_calls()


def test_tasks_lost_together_run_again_one_by_one_and_none_is_blamed(bench: Bench) -> None:
    bench.learn_that_it_is_quick()
    bench.add(*"abcd")

    bench.executor.calls[0][1].set_exception(LOST)

    assert bench.lost == []
    assert bench.executor.open_calls() == [["c", "d"], ["a"]]


def test_a_task_lost_alone_is_tried_again_and_then_given_up(bench: Bench) -> None:
    bench.add("a")

    for number in range(3):
        bench.executor.calls[number][1].set_exception(LOST)

    assert bench.lost == ["a", "a", "a"]
    assert bench.executor.open_calls() == []
    error = error_of(bench.results["a"])
    assert error["code"] == "WorkerLost"
    assert "called os._exit, was killed by a signal, or ran out of memory" in error["user_message"]
    assert "3 times" in error["user_message"]
    assert "node1" in error["user_message"]


def test_attempts_before_a_restart_count(bench: Bench) -> None:
    bench.add("a", attempts=2)

    bench.executor.calls[0][1].set_exception(LOST)

    assert error_of(bench.results["a"])["code"] == "WorkerLost"


def test_tasks_that_may_not_be_tried_again_travel_alone() -> None:
    bench = Bench(max_retries=0)
    bench.learn_that_it_is_quick()

    bench.add(*"abcd")
    bench.executor.calls[0][1].set_exception(LOST)

    assert error_of(bench.results["a"])["code"] == "WorkerLost"
    assert bench.executor.open_calls() == [["b"], ["c"]]


def test_an_outcome_that_cannot_be_read_is_a_loss(bench: Bench) -> None:
    bench.add("a")

    bench.executor.calls[0][1].set_result(b"garbage")

    assert bench.lost == ["a"]
    assert bench.executor.open_calls() == [["a"]]


def test_another_executor_runs_what_the_earlier_one_had_in_the_same_order(bench: Bench) -> None:
    bench.add(*"abc")
    another = RecordingExecutor()

    bench.engine.use(another)  # type: ignore[arg-type]
    bench.engine.expect(workers=2, expected=2)
    bench.executor.finish(0)

    assert another.open_calls() == [["a"], ["b"], ["c"]]
    assert bench.lost == []
    assert bench.results == {}


def test_an_executor_that_takes_nothing_loses_nothing(bench: Bench) -> None:
    bench.executor.refuses = True

    bench.add(*"ab")

    assert bench.demands > 0
    assert bench.engine.load().waiting == 2


def test_whatever_parsl_raises_loses_nothing_and_the_next_round_tries_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.executor.error = RuntimeError("Parsl has gone bad")
    bench.add(*"ab")
    bench.add("x", function_id="g")
    waited = bench.engine.load().waiting, bench.engine.task_ids()

    bench.executor.error = None
    bench.engine.expect(workers=4, expected=4)

    assert waited == (3, {"a", "b", "x"})
    assert sorted(bench.executor.open_calls()) == [["a"], ["b"], ["x"]]
    assert "Parsl has gone bad" in caplog.text


def test_a_result_is_passed_on_though_parsl_takes_no_more_tasks(bench: Bench) -> None:
    bench.add(*"abc")
    bench.executor.error = RuntimeError("Parsl has gone bad")

    bench.executor.finish(0)

    assert bench.results == {"a": "result of a"}
    assert bench.engine.task_ids() == {"b", "c"}


def test_an_executor_gone_bad_meanwhile_is_told_of(bench: Bench) -> None:
    def go_bad(context: Any, buffer: bytes) -> Future[bytes]:
        bench.executor.bad_state_is_set = True
        raise RuntimeError("Parsl has gone bad")

    bench.executor.submit_payload = go_bad  # type: ignore[method-assign]
    bench.add("a")

    assert bench.demands == 1
    assert bench.engine.load().waiting == 1


def test_a_lost_task_runs_again_though_its_function_was_forgotten_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "MOST_FUNCTIONS", 1)
    bench.add("a")

    def learn_another(task_ids: Sequence[str]) -> None:
        bench.add("x", function_id="g")

    bench.engine._on_lost = learn_another
    bench.executor.calls[0][1].set_exception(LOST)

    assert ["a"] in bench.executor.open_calls()


def test_losses_of_an_executor_gone_bad_are_nobodys_fault(bench: Bench) -> None:
    bench.add("a")

    bench.executor.bad_state_is_set = True
    bench.executor.calls[0][1].set_exception(RuntimeError("the executor is bad"))

    assert bench.lost == []
    assert bench.engine.load().waiting == 1


def test_all_tasks_can_be_failed_at_once_and_late_results_are_ignored(bench: Bench) -> None:
    bench.add(*"abc")

    bench.engine.fail_all("NoWorkers", "no block starts")
    bench.executor.finish(0)

    assert {error_of(text)["code"] for text in bench.results.values()} == {"NoWorkers"}
    assert sorted(bench.results) == ["a", "b", "c"]
    assert bench.engine.outstanding() == 0


def test_with_nobody_to_run_it_a_task_asks_for_a_block() -> None:
    bench = Bench(workers=0)

    bench.add("a")

    assert bench.demands == 1


def test_the_state_of_a_task_is_told_once_and_when_it_changes(bench: Bench) -> None:
    bench.add(*"abc")

    first = bench.engine.changes(older_than_s=-1, running_calls=1, most=10)
    second = bench.engine.changes(older_than_s=-1, running_calls=2, most=10)

    assert first == {
        "a": TaskState.RUNNING,
        "b": TaskState.WAITING_FOR_LAUNCH,
        "c": TaskState.WAITING_FOR_NODES,
    }
    assert second == {"b": TaskState.RUNNING}


def test_short_tasks_are_not_spoken_of(bench: Bench) -> None:
    bench.add(*"abc")

    assert bench.engine.changes(older_than_s=60, running_calls=1, most=10) == {}
