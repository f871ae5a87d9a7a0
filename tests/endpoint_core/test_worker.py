"""What runs on a node, task by task."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farcall.serialize import deserialize, deserialize_exception, serialize
from farcall.wire import BatchedTask, FunctionCode, Result, TaskBatch, pack_buffers, read_result
from farcall_endpoint import worker
from farcall_endpoint.calls import Setting, read_outcome, write_call

SETTING = Setting("some-endpoint")


@pytest.fixture(autouse=True)
def fresh_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing loaded; and what tasks do to the process, which here is the tests' own, is undone."""
    worker._functions.clear()
    monkeypatch.chdir(Path.cwd())
    # Its children are the servers of other tests. That a task's are ended is tested where there is a real worker.
    monkeypatch.setattr(worker, "_end_children", lambda _: None)
    for name in ("GC_TASK_UUID", "FARCALL_TASK_ID"):
        monkeypatch.setenv(name, "")


def code_of(function: Callable[..., Any]) -> FunctionCode:
    return FunctionCode(pack_buffers([serialize(function)]))


def run(function: Callable[..., Any] | FunctionCode, *arguments: Any, **changes: Any) -> Result:
    code = function if isinstance(function, FunctionCode) else code_of(function)
    payload = changes.pop("payload", pack_buffers([serialize(arguments), serialize({})]))
    task = BatchedTask("some-task", "some-function", payload, changes.pop("options", {}))
    setting = Setting("some-endpoint", **changes)
    outcome = read_outcome(worker.run_batch(write_call(setting, {"some-function": code}, [task])))
    ((task_id, text),) = outcome.results
    result = read_result(json.loads(text))
    assert task_id == result.task_id == "some-task"
    return result


def test_a_value_comes_back_with_what_describes_the_worker() -> None:
    result = run(lambda a, b: a + b, 1, 2)

    assert deserialize(result.data) == 3
    assert result.error_details is None
    assert result.details is not None
    assert {"os", "python_version", "dill_version", "globus_compute_sdk_version"} <= set(result.details)
    assert result.details["endpoint_id"] == "some-endpoint"
    assert [transition.state for transition in result.task_statuses] == ["execution-start", "execution-end"]


def test_many_tasks_in_one_call_fail_or_succeed_each_for_itself() -> None:
    tasks = [BatchedTask(str(n), "f", pack_buffers([serialize((n,)), serialize({})])) for n in range(3)]

    outcome = read_outcome(worker.run_batch(write_call(SETTING, {"f": code_of(lambda n: 1 // n)}, tasks)))

    results = [read_result(json.loads(text)) for _, text in outcome.results]
    assert [result.error_details is None for result in results] == [False, True, True]


def test_a_function_is_loaded_once() -> None:
    run(lambda: 1)

    # The same id: its code is not looked at again.
    assert deserialize(run(FunctionCode("no code at all")).data) == 1


def test_a_traceback_begins_with_the_users_own_frames() -> None:
    def divide(a: int, b: int) -> float:
        return a / b

    result = run(divide, 1, 0)

    assert result.error_details is not None
    assert result.error_details.code == "RemoteExecutionError"
    assert result.data.startswith("Traceback (most recent call last)")
    assert "in divide" in result.data
    assert "ZeroDivisionError: division by zero" in result.data
    assert "farcall_endpoint" not in result.data
    assert result.exception_object is not None
    assert isinstance(deserialize_exception(result.exception_object), ZeroDivisionError)


@pytest.mark.parametrize("raised", [SystemExit("bye"), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_a_program_ends_only_the_task(raised: BaseException) -> None:
    def end() -> None:
        raise raised

    result = run(end)

    assert result.error_details is not None
    assert type(raised).__name__ in result.data


def test_code_that_does_not_load_says_why_without_our_frames() -> None:
    result = run(FunctionCode(pack_buffers(["st\nf:import no_such_module\ndef f():\n    return 1\n"])))

    assert result.error_details is not None
    assert result.error_details.code == "DeserializationError"
    assert "no_such_module" in result.error_details.user_message
    assert "Traceback" not in result.data


def test_a_payload_that_is_none_says_so() -> None:
    result = run(lambda: 1, payload="garbage")

    assert result.error_details is not None
    assert result.error_details.code == "WireError"


def test_a_value_that_cannot_be_sent_says_so() -> None:
    result = run(lambda: (n for n in range(3)))

    assert result.error_details is not None
    assert result.error_details.code == "SerializationError"
    assert "generator" in result.data


def test_a_result_over_the_limit_fails_with_both_sizes() -> None:
    result = run(lambda: "x" * 10_000, result_limit=1000)

    assert result.error_details is not None
    assert result.error_details.code == "MaxResultSizeExceeded"
    assert "exceeds the limit of 1000" in result.error_details.user_message


def test_the_serialisers_that_the_submitter_names_are_tried_in_their_order() -> None:
    options = {"result_serializers": ["globus_compute_sdk.serialize.JSONData", "farcall.serialize.DillDataBase64"]}

    assert run(lambda value: value, [1, 2], options=options).data == "11\n[1, 2]"
    assert run(lambda value: value, {1, 2}, options=options).data.startswith("00\n")


def test_an_enormous_message_is_shortened_and_no_exception_object_is_sent() -> None:
    def fail() -> None:
        raise ValueError("y" * 5_000_000)

    result = run(fail)

    assert len(result.data) < 600_000
    assert "characters left out" in result.data
    assert result.exception_object is None


def test_a_message_with_lone_surrogates_or_nul_becomes_text_that_every_database_takes() -> None:
    def fail() -> None:
        raise ValueError("bad name \udcff and \0")

    result = run(fail)

    assert "ValueError: bad name \\udcff and \\0" in result.data


def test_a_message_of_ours_about_such_a_text_is_taken_too() -> None:
    result = run(FunctionCode(pack_buffers(["st\nf:raise ImportError('no \udcff, no \0')\n"])))

    assert result.error_details is not None
    for text in (result.data, result.error_details.user_message):
        assert "\0" not in text
        assert text.encode().decode() == text


def test_an_exception_that_cannot_even_be_printed_is_a_failure_like_others() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not even this")

    def fail() -> None:
        raise Odd

    assert "Odd" in run(fail).data


def test_a_task_that_runs_too_long_is_stopped() -> None:
    def sleep() -> None:
        time.sleep(60)

    result = run(sleep, task_timeout_s=0.05)

    assert result.error_details is not None
    assert result.error_details.code == "TaskTimeout"
    assert "longer than the 0.05 s" in result.error_details.user_message


def test_the_nodes_own_time_limit_holds_if_the_endpoint_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GC_TASK_TIMEOUT", "0.05")

    result = run(lambda: time.sleep(60))

    assert result.error_details is not None
    assert result.error_details.code == "TaskTimeout"


def test_a_time_limit_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GC_TASK_TIMEOUT", "soon")

    result = run(lambda: 1)

    assert result.error_details is not None
    assert "GC_TASK_TIMEOUT on this node is 'soon'" in result.error_details.user_message


def test_a_task_knows_its_own_id() -> None:
    def own_ids() -> tuple[str, str]:
        return os.environ["GC_TASK_UUID"], os.environ["FARCALL_TASK_ID"]

    assert deserialize(run(own_ids).data) == ("some-task", "some-task")


def test_a_task_begins_where_it_should_wherever_the_one_before_has_gone() -> None:

    def where_and_then_elsewhere() -> str:
        import os
        import pathlib

        here = str(pathlib.Path.cwd())
        os.chdir("/")
        return here

    results = [run(where_and_then_elsewhere) for _ in range(2)]

    assert [deserialize(result.data) for result in results] == 2 * [str(worker._DIRECTORY)]


def test_a_child_that_comes_back_from_a_fork_is_not_a_second_worker() -> None:
    def fork() -> int:
        child = os.fork()
        return child and os.waitpid(child, 0)[1]

    parent = os.getpid()
    result = run(fork)

    assert os.getpid() == parent
    assert deserialize(result.data) == 0


def test_importing_the_worker_brings_neither_parsl_nor_kombu() -> None:
    program = "import sys, farcall_endpoint.worker; print({'parsl', 'kombu', 'urllib3'} & set(sys.modules))"

    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert printed == "set()\n"


def test_a_call_that_is_no_task_batch_is_refused() -> None:
    from farcall.errors import WireError
    from farcall.wire import Command, encode

    with pytest.raises(WireError, match="not a Command"):
        worker.run_batch(b"{}\n" + encode(Command("stop")))


def test_calls_and_outcomes_survive_lone_surrogates() -> None:
    from farcall_endpoint.calls import Outcome, read_call, write_outcome

    task = BatchedTask("t", "f", "\ud800")
    setting, batch = read_call(write_call(SETTING, {"f": FunctionCode("c")}, [task]))
    outcome = read_outcome(write_outcome(Outcome(0.5, [("t", "\ud800"), ("u", "")])))

    assert (setting, batch) == (SETTING, TaskBatch({"f": FunctionCode("c")}, [task]))
    assert outcome == Outcome(0.5, [("t", "\ud800"), ("u", "")])
