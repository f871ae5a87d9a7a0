"""What travels together, what is run again, and what is given up."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
import zmq
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost
from parsl.executors.high_throughput.executor import HTEXFuture

from farcall.wire import BatchedTask, FunctionCode, Transition
from farcall_endpoint import backlog, remaining, verdicts
from farcall_endpoint.attempts import Attempt
from farcall_endpoint.calls import Outcome, Setting, read_call, write_outcome
from farcall_endpoint.engine import CALLS_PER_WORKER, Engine
from farcall_endpoint.failures import NodesLost, TooLittleTime, WorkerEnded
from farcall_endpoint.held import Call
from farcall_endpoint.journal import Unfinished
from farcall_endpoint.sightings import Node, Started
from farcall_endpoint.verdicts import Verdict

LOST = WorkerLost(0, "node1")


def result_of(task_id: str) -> str:
    return json.dumps({"task_id": task_id, "data": f"value of {task_id}"})


class RecordingExecutor:
    """Stands where Parsl's does: keeps the calls until the test ends them."""

    def __init__(self) -> None:
        self.bad_state_is_set = False
        self.calls: list[tuple[list[str], Future[bytes]]] = []
        self.refuses = False
        self.error: Exception | None = None
        self.cancelled: list[int] = []
        self.contexts: list[dict[str, Any]] = []

    def submit_payload(self, context: dict[str, Any], buffer: bytes) -> Future[bytes]:
        if self.refuses:
            raise zmq.Again
        if self.error is not None:
            raise self.error
        assert context["task_executor"] == {"f": "farcall_endpoint.worker.run_batch"}
        self.contexts.append(context["farcall"])
        future = HTEXFuture(len(self.calls))
        self.calls.append(([task.task_id for task in read_call(buffer)[1].tasks], future))
        return future

    def cancel_calls(self, call_ids: Collection[int]) -> None:
        self.cancelled += call_ids

    def open_calls(self) -> list[list[str]]:
        return [ids for ids, future in self.calls if not future.done()]

    def finish(self, number: int, *, took_s: float = 0.0) -> None:
        ids, future = self.calls[number]
        future.set_result(write_outcome(Outcome(took_s, [(task_id, result_of(task_id)) for task_id in ids])))


class Bench:
    """An engine with nothing real around it."""

    def __init__(self, *, max_retries: int = 2, workers: int = 1) -> None:
        self.results: dict[str, str] = {}
        self.failed: list[Attempt] = []
        #: Which of those that must not start twice may have started.
        self.handed_over: list[str] = []
        self.disk_is_full = False
        self.demands = 0
        self.engine = Engine(Setting("some-endpoint", task_timeout_s=60), max_retries=max_retries, listener=self)
        self.engine.on_demand = self._demand
        self.executor = RecordingExecutor()
        self.engine.use(self.executor)  # type: ignore[arg-type]
        self.engine.expect(workers=workers, expected=workers)

    def add(self, *task_ids: str, function_id: str = "f", attempts: int = 0, **options: Any) -> None:
        tasks = [Unfinished(BatchedTask(task_id, function_id, "payload", options), attempts) for task_id in task_ids]
        self.engine.add({function_id: FunctionCode("code")}, tasks)

    def lose(self, number: int, error: Exception) -> None:
        self.executor.calls[number][1].set_exception(error)

    def sight(self, number: int, task_id: str) -> None:
        self.engine.started([Started(number, task_id, 1_000, "n1", 0)])

    @property
    def lost(self) -> list[str]:
        """The tasks whose attempts failed and count."""
        return [attempt.task_id for attempt in self.failed if attempt.counts]

    def learn_that_it_is_quick(self) -> None:
        self.add("first")
        self.executor.finish(0, took_s=0.000_01)
        self.executor.calls.clear()

    # -- what the engine tells

    def ended(self, results: Sequence[tuple[str, str]]) -> None:
        self.results.update(results)

    def attempted(self, failed: Sequence[Attempt]) -> None:
        self.failed += failed

    def handing_over(self, task_ids: Sequence[str]) -> None:
        if self.disk_is_full:
            raise sqlite3.OperationalError("database or disk is full")
        self.handed_over += task_ids

    def not_started(self, task_ids: Sequence[str]) -> None:
        self.handed_over = [task_id for task_id in self.handed_over if task_id not in task_ids]

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

    assert bench.results == {"a": result_of("a")}
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
    bench = Bench(max_retries=0, workers=2)
    bench.learn_that_it_is_quick()

    bench.add(*"abcd")
    handed = bench.executor.open_calls()
    bench.lose(0, LOST)

    assert handed == [["a"], ["b"]]
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

    assert bench.results == {"a": result_of("a")}
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
    monkeypatch.setattr(backlog, "MOST_FUNCTIONS", 1)
    bench.add("a")
    judge = verdicts.on_loss

    def learn_another_and_judge(call: Call, error: BaseException) -> list[Verdict]:
        bench.engine._backlog.learn({"g": FunctionCode("code")}, in_use=bench.engine._functions_in_calls)
        return judge(call, error)

    monkeypatch.setattr(verdicts, "on_loss", learn_another_and_judge)
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


def states(told: dict[str, list[Transition]]) -> dict[str, list[str]]:
    return {task_id: [transition.state for transition in transitions] for task_id, transitions in told.items()}


def test_the_state_of_a_task_is_told_once_and_when_it_changes(bench: Bench) -> None:
    bench.add(*"abc")
    bench.sight(0, "a")

    first = bench.engine.news(older_than_s=-1, most=10)
    second = bench.engine.news(older_than_s=-1, most=10)
    bench.sight(1, "b")
    third = bench.engine.news(older_than_s=-1, most=10)

    assert first["a"] == [Transition(1_000, "running", "endpoint", "on n1")]
    assert states(first) == {"a": ["running"], "b": ["waiting-for-launch"], "c": ["waiting-for-nodes"]}
    assert second == {}
    assert states(third) == {"b": ["running"]}


def test_where_a_task_waits_is_told_only_if_it_waits_for_long_and_that_it_runs_at_once(bench: Bench) -> None:
    bench.add(*"abc")
    bench.sight(0, "a")

    assert states(bench.engine.news(older_than_s=60, most=10)) == {"a": ["running"]}


def test_what_is_told_at_a_time_is_bounded_and_the_rest_comes_next(bench: Bench) -> None:
    bench.add(*"abc")

    told = [len(bench.engine.news(older_than_s=-1, most=2)) for _ in range(3)]

    assert told == [2, 1, 0]


def test_a_sighting_of_a_call_that_has_ended_is_nothing_new(bench: Bench) -> None:
    bench.add("a")
    bench.executor.finish(0)

    bench.sight(0, "a")
    bench.sight(99, "z")

    assert bench.engine.news(older_than_s=-1, most=10) == {}


# -- attempts ---------------------------------------------------------------------------------------------------------

KILLED = WorkerEnded("died", "n1", 2, "a", -9, "it used 3.9 of the 4 GB that there are", "the last words\n")


def test_a_worker_that_died_is_counted_against_the_task_that_it_ran_and_no_other(bench: Bench) -> None:
    bench.learn_that_it_is_quick()
    bench.add(*"abcdef")

    bench.lose(0, WorkerEnded("died", "n1", 2, "b", -9))

    assert bench.lost == ["b"]
    assert bench.failed[0].note == ("attempt 1 of 3 ended: worker 2 on node n1 was killed by signal 9 (SIGKILL)")
    bench.executor.finish(1)
    assert bench.executor.open_calls() == [["a"], ["b"]]
    # Only the one that may be to blame travels alone from now on.
    bench.executor.finish(2)
    bench.executor.finish(3)
    bench.executor.finish(4)
    assert sorted(bench.results) == ["a", "b", "c", "d", "e", "f", "first"]


def test_a_poison_task_is_told_how_each_worker_ended(bench: Bench) -> None:
    bench.add("a")

    for number in range(3):
        bench.lose(number, KILLED)

    result = json.loads(bench.results["a"])
    error = result["error_details"]
    assert error["code"] == "WorkerLost"
    for expected in (
        "signal 9 (SIGKILL)",
        "it used 3.9 of the 4 GB that there are",
        "the last words",
        "attempt 1 of 3",
        "attempt 2 of 3",
        "attempt 3 of 3",
        "It was started 3 times",
    ):
        assert expected in error["user_message"]
    assert [transition["note"][:14] for transition in result["task_statuses"]] == [
        f"attempt {number} of 3" for number in (1, 2, 3)
    ]


def test_what_is_said_of_memory_ends_its_sentence_once(bench: Bench) -> None:
    bench.add("a", max_retries=1)
    bench.sight(0, "a")
    bench.lose(0, WorkerEnded("died", "n1", 0, "a", -9, "It had used 2.0 GB."))
    bench.lose(1, WorkerEnded("died", "n1", 0, "a", -9, "It had used 2.0 GB."))

    message = error_of(bench.results["a"])["user_message"]
    assert "2.0 GB." in message
    assert ".." not in message


def test_an_exit_code_is_told_too(bench: Bench) -> None:
    bench.add("a", max_retries=0)

    bench.lose(0, WorkerEnded("died", "n1", 2, "a", 3))

    assert "ended with exit code 3" in error_of(bench.results["a"])["user_message"]


def test_each_attempt_is_told_at_once_and_again_with_the_result_that_comes_in_the_end(bench: Bench) -> None:
    bench.add("a")
    bench.lose(0, KILLED)

    told = bench.engine.news(older_than_s=60, most=10)
    _, future = bench.executor.calls[1]
    text = json.dumps({"task_id": "a", "data": "value", "task_statuses": [{"state": "execution-start"}]})
    future.set_result(write_outcome(Outcome(0.0, [("a", text)])))

    assert [transition.note for transition in told["a"]] == [bench.failed[0].note]
    result = json.loads(bench.results["a"])
    assert result["data"] == "value"
    assert [status.get("note", status["state"]) for status in result["task_statuses"]] == [
        bench.failed[0].note,
        "execution-start",
    ]


def test_a_task_may_ask_for_another_number_of_retries_than_the_endpoints(bench: Bench) -> None:
    bench.add("a", max_retries=1)

    bench.lose(0, KILLED)
    bench.lose(1, KILLED)

    assert bench.lost == ["a", "a"]
    assert "attempt 2 of 2" in error_of(bench.results["a"])["user_message"]


def test_attempts_before_a_restart_are_in_the_final_result(bench: Bench) -> None:
    before = Attempt("a", 5, "attempt 1 of 3 ended: the node burned")
    task = BatchedTask("a", "f", "payload")
    bench.engine.add({"f": FunctionCode("code")}, [Unfinished(task, 1, [before])])

    bench.lose(0, KILLED)
    bench.lose(1, KILLED)

    assert "the node burned" in error_of(bench.results["a"])["user_message"]


def test_a_call_that_came_back_without_having_begun_is_not_counted_but_not_for_ever(bench: Bench) -> None:
    bench.add("a")

    for number in range(verdicts.MOST_RETURNS):
        bench.lose(number, WorkerEnded("died", "n1", 0))
    uncounted = list(bench.lost)
    bench.lose(verdicts.MOST_RETURNS, WorkerEnded("died", "n1", 0))

    assert uncounted == []
    assert bench.lost == ["a"]


def test_a_worker_that_was_killed_as_the_time_was_over_ends_its_task_as_a_timeout(bench: Bench) -> None:
    bench.learn_that_it_is_quick()
    bench.add(*"abcd", timeout_s=5)

    bench.lose(0, WorkerEnded("timeout", "n1", 0, "a", -9))

    assert bench.lost == []
    error = error_of(bench.results["a"])
    assert error["code"] == "TaskTimeout"
    assert "its limit of 5 s" in error["user_message"]
    assert "b" not in bench.results


# -- what must not start twice ----------------------------------------------------------------------------------------


def test_what_must_not_start_twice_is_noted_first_and_handed_over_to_free_workers_only() -> None:
    bench = Bench(workers=2)

    bench.add(*"abcd", max_retries=0)

    assert bench.executor.open_calls() == [["a"], ["b"]]
    assert bench.handed_over == ["a", "b"]
    bench.executor.finish(0)
    assert bench.executor.open_calls() == [["b"], ["c"]]


def test_without_workers_nothing_that_must_not_start_twice_is_handed_over_and_it_keeps_out_no_others() -> None:
    bench = Bench(workers=0)

    bench.add("a", max_retries=0)
    bench.add("b")

    assert bench.executor.open_calls() == [["b"]]


def test_what_must_not_start_twice_gets_its_turn_among_others() -> None:
    bench = Bench(workers=1)
    bench.add(*"abcdef")
    bench.add("once", max_retries=0)

    for number in range(4):
        bench.executor.finish(number, took_s=10.0)

    assert ["once"] in [ids for ids, _ in bench.executor.calls]


def test_while_it_cannot_be_noted_it_is_not_handed_over(bench: Bench) -> None:
    bench.disk_is_full = True
    bench.add("a", max_retries=0)
    before = bench.executor.open_calls()

    bench.disk_is_full = False
    bench.engine.expect(workers=1, expected=1)

    assert before == []
    assert bench.executor.open_calls() == [["a"]]


@pytest.mark.parametrize("how", ["another executor", "a bad executor", "its manager", "all nodes", "a restart"])
def test_what_must_not_start_twice_fails_with_the_reason_if_it_may_have_started(bench: Bench, how: str) -> None:
    if how == "a restart":
        task = BatchedTask("a", "f", "payload", {"max_retries": 0})
        bench.engine.add({"f": FunctionCode("code")}, [Unfinished(task, handed_over=True)])
    else:
        bench.add("a", max_retries=0)
    if how == "another executor":
        bench.engine.use(RecordingExecutor())  # type: ignore[arg-type]
    elif how == "a bad executor":
        bench.executor.bad_state_is_set = True
        bench.lose(0, RuntimeError("the executor is bad"))
    elif how == "its manager":
        bench.lose(0, ManagerLost(b"manager", "n1"))
    elif how == "all nodes":
        bench.engine.all_nodes_lost(NodesLost("all blocks have ended"), running_calls=1)

    assert error_of(bench.results["a"])["code"] == "WorkerLost"
    assert bench.engine.task_ids() == set()
    assert bench.engine.load().payload_bytes == 0


def test_what_has_not_started_is_handed_over_again_though_it_must_not_start_twice(bench: Bench) -> None:
    bench.add("a", max_retries=0)

    bench.lose(0, WorkerEnded("died", "n1", 0))

    assert bench.results == {}
    assert bench.executor.open_calls() == [["a"]]


def test_what_was_handed_over_again_may_have_started_though_it_had_not_the_first_time(bench: Bench) -> None:
    bench.add("a", max_retries=0)

    bench.lose(0, WorkerEnded("died", "n1", 0))

    assert len(bench.executor.calls) == 2
    assert "a" in bench.handed_over


def test_what_parsl_did_not_take_has_not_started(bench: Bench) -> None:
    bench.executor.refuses = True

    bench.add("a", max_retries=0)

    assert bench.handed_over == []
    assert bench.engine.load().waiting == 1


# -- cancelling -------------------------------------------------------------------------------------------------------


def test_a_task_that_waits_is_cancelled_at_once(bench: Bench) -> None:
    bench.add(*"abcd")

    bench.engine.cancel(["c", "d", "unknown"])

    assert {key: error_of(text)["code"] for key, text in bench.results.items()} == {"c": "Cancelled", "d": "Cancelled"}
    assert bench.engine.task_ids() == {"a", "b"}
    assert bench.executor.cancelled == []


def test_a_task_that_was_handed_over_is_cancelled_where_it_is(bench: Bench) -> None:
    bench.add("a")

    bench.engine.cancel(["a"])
    bench.engine.cancel(["a"])
    asked = list(bench.executor.cancelled)
    bench.lose(0, WorkerEnded("cancelled", "n1", 0, "a", -15))

    assert asked == [0]
    assert error_of(bench.results["a"])["code"] == "Cancelled"
    assert bench.lost == []
    assert bench.engine.task_ids() == set()


def test_the_others_of_a_cancelled_tasks_call_run_again_and_are_not_to_blame(bench: Bench) -> None:
    bench.learn_that_it_is_quick()
    bench.add(*"abcd")

    bench.engine.cancel(["a"])
    bench.lose(0, WorkerEnded("cancelled", "n1", 0, "a", -15))
    bench.executor.finish(1)

    assert error_of(bench.results["a"])["code"] == "Cancelled"
    assert bench.lost == []
    assert bench.executor.open_calls() == [["b"]]


def test_a_task_that_runs_is_not_ended_because_another_of_its_call_was_cancelled(bench: Bench) -> None:
    bench.learn_that_it_is_quick()
    bench.add(*"abcd")
    bench.sight(0, "a")

    bench.engine.cancel(["b"])
    before = list(bench.executor.cancelled)
    bench.sight(0, "b")

    assert before == []
    assert bench.executor.cancelled == [0]


def test_a_cancelled_task_whose_worker_dies_by_itself_does_not_run_again(bench: Bench) -> None:
    bench.add(*"ab")
    bench.engine.cancel(["a", "b"])

    bench.lose(0, KILLED)
    bench.engine.use(RecordingExecutor())  # type: ignore[arg-type]

    assert {error_of(text)["code"] for text in bench.results.values()} == {"Cancelled"}
    assert bench.engine.task_ids() == set()


def test_a_task_that_ended_before_it_could_be_cancelled_has_its_result(bench: Bench) -> None:
    bench.add("a")

    bench.engine.cancel(["a"])
    bench.executor.finish(0)

    assert bench.results == {"a": result_of("a")}


def test_a_task_that_was_cancelled_before_it_came_is_not_run(bench: Bench) -> None:
    bench.engine.add({"f": FunctionCode("code")}, [Unfinished(BatchedTask("a", "f", "payload"), cancelled=True)])

    assert error_of(bench.results["a"])["code"] == "Cancelled"
    assert bench.executor.calls == []


# -- time limits ------------------------------------------------------------------------------------------------------


def node(left_s: float | None, uid: str = "m1") -> Node:
    return Node(uid, "0", "n1", 1, None if left_s is None else time.time() + left_s)


def test_a_task_waits_while_no_node_has_time_for_it_and_others_do_not(bench: Bench) -> None:
    bench.engine.nodes_changed([node(10)])
    bench.add("long", timeout_s=60)
    bench.add("short", timeout_s=5)
    before = bench.executor.open_calls(), bench.engine.outstanding()

    bench.engine.nodes_changed([node(10), node(3600, "m2")])

    # The worker that is there is of no use to the long one, so it takes one more.
    assert before == ([["short"]], 3)
    assert bench.executor.open_calls() == [["short"], ["long"]]


def test_the_node_is_told_when_to_end_a_task_by_force_and_how_much_time_it_needs(bench: Bench) -> None:
    bench.add("own", timeout_s=5)
    bench.add("the endpoints")

    assert bench.executor.contexts == [{"timeout_s": 5.0, "needs_s": 5.0}, {"timeout_s": 60, "needs_s": None}]


def test_a_node_that_does_not_know_when_it_ends_has_time(bench: Bench) -> None:
    bench.engine.nodes_changed([node(None)])

    bench.add("a", timeout_s=60)

    assert bench.executor.open_calls() == [["a"]]


def test_a_task_that_a_node_gave_back_for_lack_of_time_waits_a_while_and_is_not_to_blame(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.add("a", timeout_s=60)

    bench.lose(0, TooLittleTime("the block ends in 10 s"))
    at_once = bench.executor.open_calls()
    monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + remaining.FIRST_PAUSE_S)
    bench.engine.expect(workers=1, expected=1)

    assert at_once == []
    assert bench.lost == []
    assert bench.executor.open_calls() == [["a"]]


def test_a_clock_that_jumps_does_not_make_a_blocks_time_longer_or_shorter(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = node(600)
    bench.engine.nodes_changed([there])

    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 3600)
    bench.engine.nodes_changed([there])
    bench.add("a", timeout_s=60)

    assert bench.executor.open_calls() == [["a"]]
