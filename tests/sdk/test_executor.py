"""The Executor: batches, results, failures."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import uuid
import weakref
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from typing import Any

import pytest

from farcall import Executor, FuncXExecutor
from farcall.errors import NotFound, PayloadTooLarge, SerializationError, ServiceUnavailable, Unauthenticated
from farcall.serialize import DillCode, JSONData, Serializer
from farcall.transport import Transport


def squared(x: int) -> int:
    return x**2


def negated(x: int) -> int:
    return -x


def dividing(x: int) -> float:
    return 1 / x


class Gate:
    """Holds submits back, so that what is submitted meanwhile accumulates."""

    def __init__(self, service: Any) -> None:
        self.open = threading.Event()
        self.reached = threading.Event()
        service.script = self

    def __call__(self, seen: Any) -> None:
        if seen.path.endswith("/submit"):
            self.reached.set()
            assert self.open.wait(30)


def tasks_in(request: Any) -> int:
    return sum(map(len, request.body["tasks"].values()))


def test_hello_world(service: Any, endpoint_id: str) -> None:
    def hello_world() -> str:
        return "Hello World!"

    with FuncXExecutor(endpoint_id=endpoint_id, funcx_client=service.client()) as fxe:
        future = fxe.submit(hello_world)
        assert future.result() == "Hello World!"
        assert future.task_id in service.tasks


def test_what_accumulates_during_a_request_travels_in_the_next(service: Any) -> None:
    gate = Gate(service)
    with service.executor() as executor:
        first = executor.submit(squared, 0)
        assert gate.reached.wait(30)
        others = [executor.submit(squared, x) for x in range(1, 500)]
        gate.open.set()
        results = [future.result() for future in (first, *others)]

    assert results == [x**2 for x in range(500)]
    assert [tasks_in(request) for request in service.submits()] == [1, 499]
    assert len(service.requests("POST", "/v3/functions")) == 1


def test_batch_size_bounds_a_request(service: Any) -> None:
    gate = Gate(service)
    with service.executor(batch_size=4) as executor:
        futures = [executor.submit(squared, 0)]
        assert gate.reached.wait(30)
        futures += [executor.submit(squared, x) for x in range(10)]
        gate.open.set()

    assert [tasks_in(request) for request in service.submits()] == [1, 4, 4, 2]


def test_map_keeps_the_order_and_raises_where_it_failed(service: Any) -> None:
    with service.executor() as executor:
        assert list(executor.map(pow, [2, 3], [3, 2], timeout=30)) == [8, 9]
        results = executor.map(dividing, [1, 0])
        assert next(results) == 1.0
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_a_registered_function_runs_by_its_id(service: Any) -> None:
    with service.executor() as executor:
        function_id = executor.register_function(squared)
        future = executor.submit_to_registered_function(function_id, args=(3,))
        same = executor.submit(squared, 4)
        assert (future.result(), same.result()) == (9, 16)

        assert executor.register_function(squared, function_id) == function_id
        with pytest.raises(ValueError, match="has registered"):
            executor.register_function(squared)

    assert len(service.requests("POST", "/v3/functions")) == 1


def test_source_code_runs_by_its_id(service: Any) -> None:
    with service.executor() as executor:
        function_id = executor.register_source_code("def f(x, y):\n    return x - y\n", "f")

        assert executor.submit_to_registered_function(function_id, (3,), {"y": 1}).result() == 2


def test_functions_that_are_alike_are_registered_once(service: Any) -> None:
    with service.executor() as executor:
        futures = [executor.submit(lambda x: x + 1, x) for x in range(5)]
        assert [future.result() for future in futures] == [1, 2, 3, 4, 5]

    assert len(service.requests("POST", "/v3/functions")) == 1


def test_a_function_of_the_same_name_is_another_function(service: Any) -> None:
    def adding(n: int) -> Any:
        return lambda x: x + n

    with service.executor() as executor:
        assert [executor.submit(adding(n), 10).result() for n in range(3)] == [10, 11, 12]


def test_many_threads_share_an_executor(service: Any) -> None:
    with service.executor() as executor, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda x: executor.submit(squared, x).result(), range(200)))

    assert results == [x**2 for x in range(200)]


def test_executors_of_a_process_share_a_group_and_its_poll(service: Any) -> None:
    with service.executor() as one, service.executor() as other:
        assert one.task_group_id == other.task_group_id
        assert one.submit(squared, 2).result() == 4
        assert isinstance(one.task_group_id, uuid.UUID)
        assert one.task_group_id == other.task_group_id
        assert other.submit(squared, 3).result() == 9

    groups = {task["task_group_id"] for task in service.tasks.values()}
    assert len(groups) == 1


def test_as_completed_and_await_work(service: Any) -> None:
    async def awaiting(executor: Executor) -> list[Any]:
        return await asyncio.gather(*(executor.submit(squared, x) for x in range(3)))

    with service.executor() as executor:
        done = [future.result() for future in as_completed([executor.submit(squared, x) for x in range(3)], timeout=30)]
        assert sorted(done) == [0, 1, 4]
        assert asyncio.run(awaiting(executor)) == [0, 1, 4]


def test_a_result_that_comes_before_the_answer_to_its_submit_is_kept(service: Any) -> None:
    polled = threading.Event()

    with service.executor() as executor:
        executor.submit(squared, 1).result()

        def late(seen: Any) -> Any:
            if seen.path.endswith("/submit"):
                answer = service._submit(seen, seen.path.split("/")[3])
                assert polled.wait(30)
                return answer
            if seen.path.endswith("/results") and len(service.done) == 2 and seen.query["after"] == "2":
                polled.set()
            return None

        service.script = late
        assert executor.submit(squared, 5).result(timeout=30) == 25


def test_an_argument_that_cannot_be_sent_fails_its_own_future(service: Any) -> None:
    with service.executor() as executor:
        good, bad = executor.submit(squared, 2), executor.submit(squared, (each for each in ""))
        holding_a_future = executor.submit(lambda: good)

        assert good.result() == 4
        with pytest.raises(SerializationError, match="cannot be sent"):
            bad.result()
        with pytest.raises(SerializationError, match=r"send its result\(\)"):
            holding_a_future.result()


def test_a_refused_request_fails_its_futures_and_no_others(service: Any) -> None:
    with service.executor() as executor:
        unknown = executor.submit_to_registered_function(uuid.uuid4())
        with pytest.raises(NotFound, match="FUNCTION_NOT_FOUND"):
            unknown.result()

        assert executor.submit(squared, 2).result() == 4


def test_one_unknown_function_does_not_fail_its_neighbours(service: Any) -> None:
    gate = Gate(service)
    with service.executor() as executor:
        first = executor.submit(squared, 1)
        assert gate.reached.wait(30)
        neighbours = [executor.submit(squared, 2), executor.submit(negated, 3)]
        unknown = executor.submit_to_registered_function(uuid.uuid4())
        gate.open.set()

        assert [future.result() for future in (first, *neighbours)] == [1, 4, -3]
        with pytest.raises(NotFound):
            unknown.result()


def test_one_payload_that_is_too_large_does_not_fail_its_neighbours(service: Any) -> None:
    gate = Gate(service)

    def limit(seen: Any) -> Any:
        gate(seen)
        if seen.path.endswith("/submit") and any(len(p) > 1000 for each in seen.body["tasks"].values() for p in each):
            return 413, {"code": "TASK_PAYLOAD_TOO_LARGE", "message": "too large"}
        return None

    service.script = limit
    with service.executor() as executor:
        futures = [executor.submit(len, "x")]
        assert gate.reached.wait(30)
        futures += [executor.submit(len, "x" * length) for length in (2, 3, 5000, 4, 5)]
        gate.open.set()

        with pytest.raises(PayloadTooLarge, match="too large"):
            futures.pop(3).result()
        assert [future.result() for future in futures] == [1, 2, 3, 4, 5]


def test_a_function_that_is_refused_fails_only_its_own_tasks(service: Any) -> None:
    def no_lambdas(seen: Any) -> Any:
        if seen.path == "/v3/functions" and seen.body["function_name"] == "<lambda>":
            return 413, {"code": "FUNCTION_TOO_LARGE", "message": "too large"}
        return None

    service.script = no_lambdas
    with service.executor() as executor:
        refused, good = executor.submit(lambda: 1), executor.submit(squared, 2)

        assert good.result() == 4
        with pytest.raises(PayloadTooLarge):
            refused.result()


def test_an_answer_that_was_lost_makes_no_second_task(service: Any) -> None:
    lost = iter([True])

    def losing(seen: Any) -> Any:
        if seen.path.endswith("/submit") and next(lost, False):
            service._submit(seen, seen.path.split("/")[3])
            return 502, {"code": "GATEWAY", "message": "lost"}
        return None

    service.script = losing
    with service.executor() as executor:
        assert executor.submit(squared, 3).result() == 9

    assert len(service.submits()) == 2
    assert len(service.tasks) == 1


def test_a_group_that_the_service_forgot_is_replaced(service: Any) -> None:
    with service.executor() as executor:
        executor.submit(squared, 1).result()
        before = executor.task_group_id
        unknown = 404, {"code": "TASK_GROUP_NOT_FOUND", "message": "no such group"}
        service.script = lambda seen: unknown if (seen.body or {}).get("task_group_id") == str(before) else None

        assert executor.submit(squared, 2).result() == 4
        assert executor.task_group_id != before


def test_a_group_that_was_chosen_is_not_replaced(service: Any) -> None:
    unknown = 404, {"code": "TASK_GROUP_NOT_FOUND", "message": "no such group"}
    service.script = lambda seen: unknown if seen.path.endswith("/submit") else None
    with (
        service.executor(task_group_id=uuid.uuid4()) as executor,
        pytest.raises(NotFound, match="no such group"),
    ):
        executor.submit(squared, 1).result()


def test_results_arrive_after_the_service_was_away(
    service: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall.watcher._FIRST_PAUSE_S", 0.01)
    service.paused = True
    away = iter(range(3))

    def restarting(seen: Any) -> Any:
        if seen.path.endswith("/results") and next(away, None) is not None:
            return 503, {"code": "STARTING", "message": "not yet"}
        return None

    with caplog.at_level(logging.WARNING), service.executor() as executor:
        service.script = restarting
        future = executor.submit(squared, 3)
        while len(service.requests("GET", ".*/results")) < 4:
            service.run_all()
        assert future.result(timeout=30) == 9

    assert sum("trying again until it answers" in record.getMessage() for record in caplog.records) == 1


def test_a_token_that_was_revoked_ends_the_wait(service: Any) -> None:
    service.paused = True
    refused = 401, {"code": "INVALID_AUTH_TOKEN", "message": "revoked"}
    service.script = lambda seen: refused if seen.path.endswith("/results") else None

    with service.executor() as executor, pytest.raises(Unauthenticated, match="revoked"):
        executor.submit(squared, 3).result(timeout=30)


def test_nothing_is_asked_while_nothing_is_awaited(service: Any) -> None:
    with service.executor() as executor:
        executor.submit(squared, 1).result()
        asked = len(service.requests("GET", ".*/results"))
        again = executor.submit(squared, 2)
        again.result()

    # Each result may have taken an answer that was empty or only held another's, never a stream of them.
    assert asked <= 2
    assert len(service.requests("GET", ".*/results")) <= asked + 2


def test_tasks_of_an_earlier_program_are_found_again(service: Any, endpoint_id: str) -> None:
    earlier = service.client()
    batch = earlier.create_batch()
    function_id = earlier.register_function(squared)
    for x in range(5):
        batch.add(function_id, (x,))
    group_id = earlier.batch_run(endpoint_id, batch)["task_group_id"]

    with service.executor() as executor:
        futures = list(executor.reload_tasks(group_id))
        assert sorted(future.result(timeout=30) for future in futures) == [0, 1, 4, 9, 16]


def test_tasks_that_this_program_has_had_are_found_again_too(service: Any) -> None:
    with service.executor() as executor:
        assert executor.submit(squared, 3).result() == 9

        (future,) = (each for each in executor.reload_tasks() if service.tasks[each.task_id]["status"] == "success")

        assert future.result(timeout=30) == 9


def test_reloading_needs_a_group(service: Any) -> None:
    with service.executor() as executor, pytest.raises(ValueError, match="there is no task group yet"):
        executor.reload_tasks()


def test_settings_hold_for_what_is_submitted_afterwards(service: Any) -> None:
    with service.executor(user_endpoint_config={"a": 1}) as executor:
        executor.submit(squared, 1).result()
        executor.user_endpoint_config = {"a": 2}
        executor.resource_specification = {"num_nodes": 2}
        executor.result_serializers = [JSONData]
        executor.submit(squared, 2).result()

    first, second = (request.body for request in service.submits())
    assert first["user_endpoint_config"] == {"a": 1}
    assert "resource_specification" not in first
    assert (second["user_endpoint_config"], second["resource_specification"]) == ({"a": 2}, {"num_nodes": 2})
    assert second["result_serializers"] == ["globus_compute_sdk.serialize.JSONData"]


def test_another_serialiser_can_be_chosen(service: Any) -> None:
    with service.executor(serializer=Serializer(DillCode(), JSONData())) as executor:
        assert executor.submit(len, [1, 2]).result() == 2

    (request,) = service.submits()
    (payloads,) = request.body["tasks"].values()
    assert payloads == ["11\n11\n[[1, 2]]5\n11\n{}"]


def test_what_is_not_sent_yet_can_be_cancelled(service: Any) -> None:
    gate = Gate(service)
    with service.executor() as executor:
        first = executor.submit(squared, 1)
        assert gate.reached.wait(30)
        second, third = executor.submit(squared, 2), executor.submit(squared, 3)

        assert second.cancel()
        gate.open.set()

        assert (first.result(), third.result()) == (1, 9)
        with pytest.raises(CancelledError):
            second.result()

    assert len(service.tasks) == 2
    assert not service.cancels()


def test_shutdown_can_drop_what_is_not_sent(service: Any) -> None:
    gate = Gate(service)
    executor = service.executor()
    first = executor.submit(squared, 1)
    assert gate.reached.wait(30)
    second = executor.submit(squared, 2)

    executor.shutdown(wait=False, cancel_futures=True)
    gate.open.set()

    assert first.cancelled()
    assert second.cancelled()
    with pytest.raises(RuntimeError, match="shut down"):
        executor.submit(squared, 3)


def test_what_was_submitted_is_sent_though_nobody_waits(service: Any) -> None:
    executor = service.executor()
    future = executor.submit(squared, 4)

    executor.shutdown(wait=False)

    assert future.result(timeout=30) == 16


def test_a_forgotten_executor_ends_its_thread_and_keeps_its_promise(service: Any) -> None:
    executor = service.executor()
    future = executor.submit(squared, 4)
    gone = weakref.ref(executor)
    submitter = executor._submitter

    del executor
    gc.collect()

    assert gone() is None
    assert submitter._closed
    assert future.result(timeout=30) == 16


def test_without_an_endpoint_nothing_can_be_submitted(service: Any) -> None:
    with Executor(client=service.client()) as executor, pytest.raises(ValueError, match="has no endpoint_id"):
        executor.submit(squared, 1)


def test_what_is_no_setting_is_refused(service: Any) -> None:
    with pytest.raises(ValueError, match="endpoint_id 'ep1' is not a UUID"):
        Executor("ep1", service.client())
    with pytest.raises(TypeError, match="no setting 'endpoint'"):
        service.executor(endpoint="x")
    with pytest.raises(TypeError, match="resource_specification is a dictionary"):
        service.executor(resource_specification=[1])
    assert service.executor(container_id="c", batch_interval=1.0, amqp_port=443).amqp_port == 443


def test_a_service_that_stays_away_fails_the_tasks_and_the_executor_goes_on(service: Any) -> None:
    with service.executor() as executor:
        transport: Transport = executor.client.transport
        transport.retry_for_s = 0.0
        service.script = lambda seen: (503, {"code": "DOWN", "message": "down"})
        with pytest.raises(ServiceUnavailable, match="down"):
            executor.submit(squared, 1).result(timeout=30)

        service.script = lambda seen: None
        assert executor.submit(squared, 2).result(timeout=30) == 4


def test_a_worker_says_what_machine_it_runs_on(service: Any) -> None:
    with service.executor() as executor:
        assert "processors:" in executor.get_worker_hardware_details()
