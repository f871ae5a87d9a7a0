"""The whole loop as a user sees it: a function goes out, its value or its failure comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from running import RunningEndpoint, RunningService

from farcall import Client, Executor, ShellFunction
from farcall.errors import (
    DeserializationError,
    Forbidden,
    NotFound,
    PayloadTooLarge,
    TaskExecutionFailed,
    TaskPending,
    Unauthenticated,
)

TIMEOUT_S = 60
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
def client(service: RunningService) -> Client:
    return Client(service_url=service.url, token=service.token)


@pytest.fixture
def executor(client: Client, endpoint: RunningEndpoint) -> Iterator[Executor]:
    with Executor(endpoint_id=endpoint.id, client=client) as executor:
        yield executor


def double(x):
    return 2 * x


def test_values_come_back_in_order_through_map(executor: Executor) -> None:
    assert list(executor.map(double, range(500), timeout=TIMEOUT_S)) == [2 * x for x in range(500)]


def test_large_values_and_every_kind_of_builtin_come_back_unchanged(executor: Executor) -> None:
    values = [None, True, -1, 2**70, 1.5, "ä\ud83d", b"\0\xff", (1,), [2], {"a": {3}}, 1j, "x" * 3_000_000]

    futures = [executor.submit(lambda x: x, value) for value in values]

    assert [future.result(TIMEOUT_S) for future in futures] == values


def test_a_closure_over_helpers_and_constants_travels(executor: Executor) -> None:
    factor = 7

    def helper(x):
        return x * factor

    assert executor.submit(lambda x: helper(x) + 1, 6).result(TIMEOUT_S) == 43


def test_an_exception_is_raised_as_its_own_class_with_the_remote_traceback(executor: Executor) -> None:
    def failing():
        raise KeyError("what is missing")

    with pytest.raises(KeyError, match="what is missing") as caught:
        executor.submit(failing).result(TIMEOUT_S)

    assert isinstance(caught.value.__cause__, TaskExecutionFailed)
    assert "in failing" in str(caught.value.__cause__)


@pytest.mark.parametrize("ending", ["os._exit", "SIGKILL", "SIGSEGV"])
def test_a_task_that_ends_its_worker_fails_in_words_and_others_go_on(executor: Executor, ending: str) -> None:
    def deadly(how):
        import os
        import signal

        if how == "os._exit":
            os._exit(3)
        os.kill(os.getpid(), getattr(signal, how))

    doomed = executor.submit(deadly, ending)
    others = [executor.submit(double, x) for x in range(20)]

    with pytest.raises(TaskExecutionFailed, match="worker process ended"):
        doomed.result(TIMEOUT_S)
    assert [other.result(TIMEOUT_S) for other in others] == [2 * x for x in range(20)]


def test_a_task_that_ends_its_node_is_started_no_more_often_than_retries_allow(
    executor: Executor, endpoint: RunningEndpoint
) -> None:
    def deadly(path):
        import os
        import pathlib
        import signal
        import time

        with pathlib.Path(path).open("a") as starts:
            starts.write("started\n")
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)

    starts = endpoint.directory / "starts"

    with pytest.raises(TaskExecutionFailed, match="its node was lost"):
        executor.submit(deadly, str(starts)).result(TIMEOUT_S)

    assert len(starts.read_text().splitlines()) == 3
    assert executor.submit(double, 21).result(TIMEOUT_S) == 42


def test_an_exit_a_fork_and_megabytes_of_output_do_no_harm(executor: Executor) -> None:
    def leave():
        raise SystemExit(4)

    def fork():
        import os

        child = os.fork()
        if child:
            os.waitpid(child, 0)
        return "one value"

    def shout():
        print("x" * 5_000_000)
        return "done"

    left, forked, shouted = (executor.submit(function) for function in (leave, fork, shout))

    assert isinstance(left.exception(TIMEOUT_S), (SystemExit, TaskExecutionFailed))
    assert forked.result(TIMEOUT_S) == "one value"
    assert shouted.result(TIMEOUT_S) == "done"


def test_memory_beyond_a_limit_is_an_error_of_that_task_alone(executor: Executor) -> None:
    def greedy():
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (2**31, hard))
        try:
            return len(bytearray(2**34))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

    with pytest.raises(MemoryError):
        executor.submit(greedy).result(TIMEOUT_S)


def test_arguments_and_results_that_cannot_travel_say_so(executor: Executor) -> None:
    def give_back_a_generator():
        return (x for x in range(3))

    unsendable = executor.submit(double, (x for x in range(3)))
    unreturnable = executor.submit(give_back_a_generator)

    assert "generator" in str(unsendable.exception(TIMEOUT_S))
    assert "generator" in str(unreturnable.exception(TIMEOUT_S))


def test_a_result_over_the_limit_fails_with_both_sizes(executor: Executor) -> None:
    failure = executor.submit(lambda: "x" * 12_000_000).exception(TIMEOUT_S)

    assert failure is not None
    assert "10485760" in str(failure)


def test_an_argument_over_the_limit_fails_alone(executor: Executor) -> None:
    too_large = executor.submit(len, "x" * 12_000_000)
    small = executor.submit(len, "abc")

    assert isinstance(too_large.exception(TIMEOUT_S), PayloadTooLarge)
    assert small.result(TIMEOUT_S) == 3


def test_code_that_the_worker_cannot_import_says_what_was_tried(client: Client, endpoint: RunningEndpoint) -> None:
    function_id = client.register_source_code("def broken(:\n    pass\n", "broken")
    task_id = client.run(endpoint_id=endpoint.id, function_id=function_id)

    with pytest.raises(DeserializationError, match="SyntaxError"):
        client.get_result(task_id, timeout=TIMEOUT_S)


def test_unknown_ids_are_named(client: Client, endpoint: RunningEndpoint) -> None:
    function_id = client.register_function(double)

    with pytest.raises(NotFound, match=UNKNOWN):
        client.run(1, endpoint_id=UNKNOWN, function_id=function_id)
    with pytest.raises(NotFound, match=UNKNOWN):
        client.run(1, endpoint_id=endpoint.id, function_id=UNKNOWN)
    with pytest.raises(NotFound, match=UNKNOWN):
        client.get_result(UNKNOWN)


def farcall_webservice(service: RunningService, *arguments: str) -> str:
    return subprocess.run(
        [f"{sys.executable.rpartition('/')[0]}/farcall-webservice", *arguments],
        env=service.environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout


def test_another_users_things_are_refused_and_tokens_are_checked(
    service: RunningService, client: Client, endpoint: RunningEndpoint
) -> None:
    farcall_webservice(service, "user", "add", "eve")
    eves = Client(service_url=service.url, token=farcall_webservice(service, "token", "create", "eve").split()[-1])
    mine = client.register_function(double)
    task_id = client.run(1, endpoint_id=endpoint.id, function_id=mine)

    with pytest.raises(Forbidden):
        eves.run(1, endpoint_id=endpoint.id, function_id=eves.register_function(double))
    with pytest.raises(Forbidden):
        eves.get_function(mine)
    with pytest.raises(Forbidden):
        eves.get_task(task_id)
    with pytest.raises(Unauthenticated):
        Client(service_url=service.url, token="fc_wrong").get_endpoints()


def test_commands_end_with_their_walltime_and_all_that_they_started(executor: Executor) -> None:
    marker = f"farcall-test-{os.getpid()}-{time.monotonic_ns()}"
    endless = ShellFunction(f"sleep 987 & exec -a {marker} sleep 987", walltime=1)

    result = executor.submit(endless).result(TIMEOUT_S)

    assert result.returncode == 124
    assert subprocess.run(["pgrep", "-f", marker], check=False).returncode == 1


def test_a_later_session_gets_the_results_of_an_earlier_one(
    service: RunningService, client: Client, endpoint: RunningEndpoint
) -> None:
    program = (
        "import sys\nfrom farcall import Executor\n"
        f"executor = Executor(endpoint_id={endpoint.id!r})\n"
        "first = executor.submit(pow, 2, 5)\nfirst.result(60)\n"
        "[executor.submit(pow, 2, n) for n in range(5)]\n"
        "print(executor.task_group_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=service.environment, check=True, capture_output=True, text=True, timeout=90
    )

    with Executor(endpoint_id=endpoint.id, client=client) as later:
        futures = later.reload_tasks(done.stdout.strip())
        assert sorted(future.result(TIMEOUT_S) for future in futures) == [1, 2, 4, 8, 16, 32]
    assert not done.stderr


def test_a_task_without_an_end_blocks_nobody_else_and_a_pending_one_says_so(
    client: Client, endpoint: RunningEndpoint, executor: Executor
) -> None:
    def wait_for(path):
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)

    path = str(endpoint.directory / "go-on")
    task_id = client.run(path, endpoint_id=endpoint.id, function_id=client.register_function(wait_for))

    try:
        assert executor.submit(double, 4).result(TIMEOUT_S) == 8
        with pytest.raises(TaskPending):
            client.get_result(task_id, timeout=0)
        assert client.get_task(task_id)["pending"]
    finally:
        Path(path).touch()
    assert client.get_result(task_id, timeout=TIMEOUT_S) is None


def test_functions_can_be_found_by_what_they_are(client: Client) -> None:
    def spectroscopic():
        """Analyse the spectrum of a star."""

    function_id = client.register_function(spectroscopic, metadata={"field": "astronomy"})

    for text in ("spectroscopic", "spectrum of a star", "astronomy"):
        assert function_id in [found["function_uuid"] for found in client.get_functions(search=text)]


def test_signals_to_the_waiting_client_are_not_swallowed(service: RunningService, endpoint: RunningEndpoint) -> None:
    program = (
        "from farcall import Executor\nimport signal, time\n"
        # A shell that runs the tests in the background has them ignore the signal.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"executor = Executor(endpoint_id={endpoint.id!r})\n"
        "future = executor.submit(time.sleep, 3)\nprint('submitted', flush=True)\nfuture.result()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=service.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]

    assert "KeyboardInterrupt" in said
    assert process.returncode != 0
