"""The Client, in the words of the tutorial and in those of Globus Compute 4.19."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from farcall import Client, FuncXClient, config
from farcall.errors import NotFound, TaskExecutionFailed, TaskPending, VersionMismatch


def squared(x: int) -> int:
    """Times itself."""
    return x**2


def failing() -> None:
    raise Exception("deterministic failure")


@pytest.fixture
def gcc(service: Any) -> Client:
    client: Client = service.client()
    return client


def test_a_client_needs_no_argument_where_the_service_runs(service: Any) -> None:
    config.write_credentials(service.url, "fc_token")

    assert FuncXClient().register_function(squared) in service.functions


def test_a_setting_that_is_none_is_refused(service: Any) -> None:
    with pytest.raises(TypeError, match="no setting 'servce_url'"):
        Client(servce_url=service.url)
    with pytest.warns(UserWarning, match="logs in with a token"):
        service.client(app=object(), funcx_home="x")


def test_a_registration_says_what_the_function_is(service: Any, gcc: Client) -> None:
    function_id = gcc.register_function(squared, public=True, metadata={"project": "pi"})

    body = service.functions[function_id]
    assert (body["function_name"], body["description"], body["public"]) == ("squared", "Times itself.", True)
    assert body["meta"]["serde_identifier"] == "12"
    assert body["meta"]["project"] == "pi"


def test_a_function_runs_and_its_result_is_waited_for(service: Any, gcc: Client, endpoint_id: str) -> None:
    task_id = gcc.run(7, endpoint_id=endpoint_id, function_id=gcc.register_function(squared))

    assert gcc.get_result(task_id) == 49


def test_source_code_can_be_registered(service: Any, gcc: Client, endpoint_id: str) -> None:
    function_id = gcc.register_source_code("def add(a, b=1):\n    return a + b\n", "add")

    assert gcc.get_result(gcc.run(1, b=2, endpoint_id=endpoint_id, function_id=function_id)) == 3
    assert service.functions[function_id]["serialized"] is False


def test_a_failed_function_raises_what_it_raised_and_shows_where(gcc: Client, endpoint_id: str) -> None:
    task_id = gcc.run(endpoint_id=endpoint_id, function_id=gcc.register_function(failing))

    with pytest.raises(Exception, match=r"^deterministic failure$") as caught:
        gcc.get_result(task_id)

    assert type(caught.value) is Exception
    assert isinstance(caught.value.__cause__, TaskExecutionFailed)
    assert "in failing" in "".join(traceback.format_exception(caught.value))


def test_without_the_exception_itself_the_traceback_is_raised(service: Any, gcc: Client, endpoint_id: str) -> None:
    task_id = gcc.run(endpoint_id=endpoint_id, function_id=gcc.register_function(failing))
    del service.tasks[task_id]["exception_object"]

    with pytest.raises(TaskExecutionFailed, match="deterministic failure"):
        gcc.get_result(task_id)


def test_a_result_that_is_not_there_in_time_is_pending(service: Any, gcc: Client, endpoint_id: str) -> None:
    service.paused = True
    task_id = gcc.run(2, endpoint_id=endpoint_id, function_id=gcc.register_function(squared))

    with pytest.raises(TaskPending, match="waiting-for-ep"):
        gcc.get_result(task_id, timeout=0)


def test_pending_is_a_text_for_some_and_a_truth_for_others(service: Any, gcc: Client, endpoint_id: str) -> None:
    service.paused = True
    task_id = gcc.run(2, endpoint_id=endpoint_id, function_id=gcc.register_function(squared))

    waiting = gcc.get_task(task_id)
    service.run_all()
    done = gcc.get_task(task_id)

    assert waiting["pending"] == "True"
    assert waiting["pending"] == True  # noqa: E712  # what Globus Compute's users write
    assert waiting["pending"]
    assert done["pending"] != "True"
    assert not done["pending"]
    assert (done["status"], done["result"]) == ("success", 4)


def test_a_batch_as_the_tutorial_writes_it(service: Any, gcc: Client, endpoint_id: str) -> None:
    function_id = gcc.register_function(squared)
    batch = gcc.create_batch()
    for x in range(10):
        batch.add(x, endpoint_id=endpoint_id, function_id=function_id)

    batch_res = gcc.batch_run(batch)

    results = gcc.get_batch_result(batch_res)
    assert [results[task_id]["result"] for task_id in batch_res.task_ids] == [x**2 for x in range(10)]
    assert len(service.submits()) == 1


def test_a_batch_as_globus_compute_writes_it(service: Any, gcc: Client, endpoint_id: str) -> None:
    function_id = gcc.register_function(squared)
    batch = gcc.create_batch(user_endpoint_config={"worker_init": "true"})
    batch.add(function_id, (3,))
    batch.add(function_id, args=(), kwargs={"x": 4})
    batch.add(function_id=function_id, args=(5,))

    answer = gcc.batch_run(endpoint_id, batch)

    done = gcc.get_batch_result(answer["tasks"][function_id])
    assert [done[task_id]["result"] for task_id in answer["tasks"][function_id]] == [9, 16, 25]
    assert answer["endpoint_id"] == endpoint_id
    assert service.submits()[0].body["user_endpoint_config"] == {"worker_init": "true"}


def test_a_batch_for_two_endpoints_makes_a_request_for_each(service: Any, gcc: Client, endpoint_id: str) -> None:
    other = endpoint_id.replace("4b", "5b")
    function_id = gcc.register_function(squared)
    batch = gcc.create_batch()
    for x, target in enumerate([endpoint_id, other, endpoint_id]):
        batch.add(x, endpoint_id=target, function_id=function_id)

    batch_res = gcc.batch_run(batch)

    results = gcc.get_batch_result(batch_res)
    assert [results[task_id]["result"] for task_id in batch_res.task_ids] == [0, 1, 4]
    assert len(service.submits()) == 2


def test_a_batch_that_names_no_endpoint_or_holds_nothing_says_so(gcc: Client) -> None:
    batch = gcc.create_batch()
    with pytest.raises(ValueError, match="the batch is empty"):
        gcc.batch_run(batch)

    batch.add("4b116d3c-1703-4f8f-9f6f-39921e5864df", (1,))
    with pytest.raises(ValueError, match="say which endpoint"):
        gcc.batch_run(batch)


@pytest.mark.parametrize(
    ("args", "kwargs", "error"),
    [
        ((), {}, "function_id is missing"),
        (("not-an-id",), {}, "is not a UUID"),
        (("4b116d3c-1703-4f8f-9f6f-39921e5864df", 1), {}, "args is a tuple, not int"),
        (("4b116d3c-1703-4f8f-9f6f-39921e5864df", (), {1: 2}), {}, "kwargs is a dictionary whose keys are texts"),
    ],
)
def test_a_call_that_cannot_be_meant_is_refused(gcc: Client, args: Any, kwargs: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        gcc.create_batch().add(*args, **kwargs)


def test_one_result_that_cannot_be_read_hides_no_other(service: Any, gcc: Client, endpoint_id: str) -> None:
    function_id = gcc.register_function(squared)
    ids = [gcc.run(x, endpoint_id=endpoint_id, function_id=function_id) for x in (1, 2)]
    service.tasks[ids[0]]["result"] = "00\nAAAA"

    results = gcc.get_batch_result(ids)

    assert "cannot be loaded here" in str(results[ids[0]]["exception"])
    assert results[ids[1]]["result"] == 4


def test_another_python_is_mentioned_once_when_a_result_cannot_be_read(
    service: Any, gcc: Client, endpoint_id: str
) -> None:
    task_id = gcc.run(1, endpoint_id=endpoint_id, function_id=gcc.register_function(squared))
    details = {"python_version": "3.2.1", "endpoint_id": "an endpoint that no other test uses"}
    service.tasks[task_id].update(result="00\nAAAA", details=details)

    with pytest.warns(UserWarning, match=r"The worker ran Python 3\.2\.1"):
        gcc.get_batch_result([task_id])
    assert "3.2.1" in str(gcc.get_task(task_id)["exception"])


def test_an_unknown_task_is_not_found(gcc: Client, endpoint_id: str) -> None:
    with pytest.raises(NotFound, match=r"Task .* not found"):
        gcc.get_result(endpoint_id)


def test_what_is_no_id_is_said_before_anything_is_sent(service: Any, gcc: Client) -> None:
    sent = len(service.seen)

    with pytest.raises(ValueError, match="endpoint_uuid 'ep1' is not a UUID"):
        gcc.get_endpoint_status("ep1")

    assert len(service.seen) == sent


def test_tasks_are_listed_page_by_page(service: Any, gcc: Client) -> None:
    pages = {None: {"tasks": [{"task_id": "1"}], "next": "n"}, "n": {"tasks": [{"task_id": "2"}], "next": None}}
    service.script = lambda seen: (200, pages[seen.query.get("after")]) if seen.path == "/v2/tasks" else None

    assert [task["task_id"] for task in gcc.tasks(state="failed")] == ["1", "2"]
    assert [task["task_id"] for task in gcc.tasks(limit=1)] == ["1"]
    assert service.requests("GET", "/v2/tasks")[0].query == {"state": "failed"}


def test_functions_are_found_by_words(service: Any, gcc: Client) -> None:
    service.script = lambda seen: (
        (200, {"functions": [{"function_name": "pi"}], "next": None}) if seen.path == "/v2/functions" else None
    )

    assert gcc.find_functions("pi", scope="mine") == [{"function_name": "pi"}]
    assert service.seen[-1].query == {"search": "pi", "scope": "mine"}


def test_the_results_of_a_group_can_be_had_at_once(service: Any, gcc: Client, endpoint_id: str) -> None:
    function_id = gcc.register_function(squared)
    batch = gcc.create_batch()
    for x in range(3):
        batch.add(function_id, (x,))

    group_id = gcc.batch_run(endpoint_id, batch)["task_group_id"]

    assert sorted(each["result"] for each in gcc.get_task_group_results(group_id).values()) == [0, 1, 4]


def test_a_service_that_needs_a_newer_client_says_which(service: Any) -> None:
    client = service.client()
    _, versions = service.answer(service.seen[-1])
    service.script = lambda seen: (200, {**versions, "min_farcall_version": "99.1"})

    with pytest.raises(VersionMismatch, match=r"needs farcall 99\.1 or newer"):
        client.version_check()
