"""How tasks are to be run: retries and time limits, said once or for some calls."""

from __future__ import annotations

from typing import Any

import pytest

from farcall import Executor


def squared(x: int, timeout_s: int = 0) -> int:
    return x**2 + timeout_s


def options_of(request: Any) -> tuple[Any, Any]:
    return request.body.get("max_retries"), request.body.get("timeout_s")


def test_an_executor_says_them_with_every_request(service: Any) -> None:
    with service.executor(max_retries=0, timeout_s=5) as executor:
        executor.submit(squared, 1).result()
        executor.max_retries, executor.timeout_s = 3, None
        executor.submit(squared, 1).result()

    assert [options_of(request) for request in service.submits()] == [(0, 5.0), (3, None)]
    assert "timeout_s" not in service.submits()[1].body


def test_some_calls_have_others_and_keep_their_own_keywords(service: Any) -> None:
    with service.executor(timeout_s=5) as executor:
        function_id = executor.register_function(squared)
        assert executor.with_options(max_retries=0).submit(squared, 2, timeout_s=3).result() == 7
        assert list(executor.with_options(timeout_s=None).map(squared, [1, 2])) == [1, 4]
        variant = executor.with_options(timeout_s=1)
        assert variant.submit_to_registered_function(function_id, (3,), {"timeout_s": 1}).result() == 10

    assert [options_of(request) for request in service.submits()] == [(0, 5.0), (None, None), (None, 1.0)]


def test_what_has_equal_options_travels_together(service: Any) -> None:
    service.paused = True
    with service.executor() as executor:
        queue = executor._submitter
        with queue._changed:  # nothing is taken while this is held
            for limit in (1, 2, 1.0, 2):
                executor.with_options(timeout_s=limit, resource_specification={"a": 1, "b": 2}).submit(squared, limit)
            executor.with_options(resource_specification={"b": 2, "a": 1}, timeout_s=1).submit(squared, 9)
        service.wait_for_tasks(5)
        service.run_all()

    assert [sum(map(len, request.body["tasks"].values())) for request in service.submits()] == [3, 2]


def test_another_endpoint_can_be_chosen_for_some_calls(service: Any) -> None:
    other = "5f0c9f7e-3d3b-4b52-8f55-3a5a3d2f6c11"
    with Executor(client=service.client()) as executor:
        assert executor.with_options(endpoint_id=other).submit(squared, 2).result() == 4

    assert service.submits()[0].path == f"/v3/endpoints/{other}/submit"


def test_a_variant_ends_with_its_executor(service: Any) -> None:
    executor = service.executor()
    with executor.with_options(max_retries=0) as variant:
        assert variant.submit(squared, 2).result() == 4
    assert executor.submit(squared, 2).result() == 4

    executor.shutdown()

    with pytest.raises(RuntimeError, match="shut down"):
        variant.submit(squared, 2)


def test_a_client_says_them_of_runs_and_batches(service: Any, endpoint_id: str) -> None:
    client = service.client().with_options(max_retries=0, timeout_s=60)
    function_id = client.register_function(squared)
    client.run(1, timeout_s=2, endpoint_id=endpoint_id, function_id=function_id)
    batch = client.create_batch(timeout_s=1)
    batch.add(function_id, (2,))
    client.batch_run(endpoint_id, batch)
    with Executor(endpoint_id, client) as executor:
        executor.submit(squared, 3).result()

    assert [options_of(request) for request in service.submits()] == [(0, 60.0), (0, 1.0), (0, 60.0)]
    (task, *_) = service.tasks.values()
    assert client.get_result(task["task_id"]) == 3


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"max_retries": -1}, ValueError, "write 0 for a task that must never be started twice"),
        ({"max_retries": 1.5}, TypeError, "max_retries is a whole number or None, not 1.5"),
        ({"max_retries": True}, TypeError, "max_retries is a whole number or None, not True"),
        ({"timeout_s": 0}, ValueError, "timeout_s is 0: write how many seconds the task may run"),
        ({"timeout_s": float("inf")}, ValueError, "timeout_s is inf"),
        ({"timeout_s": float("nan")}, ValueError, "timeout_s is nan"),
        ({"timeout_s": "5"}, TypeError, "timeout_s is a number of seconds or None, not '5'"),
    ],
)
def test_what_cannot_be_meant_is_refused_everywhere(service: Any, options: Any, error: Any, words: str) -> None:
    executor, client = service.executor(), service.client()
    with pytest.raises(error, match=words):
        service.executor(**options)
    with pytest.raises(error, match=words):
        executor.with_options(**options)
    with pytest.raises(error, match=words):
        client.with_options(**options)
    with pytest.raises(error, match=words):
        client.create_batch(**options)
    ((name, value),) = options.items()
    with pytest.raises(error, match=words):
        setattr(executor, name, value)


def test_what_is_no_option_is_refused(service: Any) -> None:
    with pytest.raises(TypeError, match=r"there is no option 'retries'; there are endpoint_id, .*, max_retries"):
        service.executor().with_options(retries=1)
