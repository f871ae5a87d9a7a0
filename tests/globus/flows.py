"""What a user does with an SDK and an endpoint, written once: for the other SDK only the import changes.

`programs/session.py` runs each of these in a process of its own, with the variable FLOWS_SDK saying which SDK is meant.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from typing import Any

SDK = os.environ.get("FLOWS_SDK", "farcall")
if SDK == "farcall":
    from farcall import Client, Executor, MPIFunction, ShellFunction
    from farcall import serialize as ways
else:
    from globus_compute_sdk import Client, Executor, MPIFunction, ShellFunction
    from globus_compute_sdk import serialize as ways

TIMEOUT_S = 60
UNKNOWN = "00000000-0000-4000-8000-000000000000"
MEGABYTE = 1024 * 1024

Flow = Callable[[Client, str], None]
FLOWS: dict[str, Flow] = {}
#: Those that want an endpoint with MPI.
MPI_FLOWS: dict[str, Flow] = {}


def signed_in() -> Client:
    """A client as a user makes one."""
    token = os.environ.get("FLOWS_TOKEN")
    if SDK == "farcall" or token is None:
        return Client()
    from globus_sdk import AccessTokenAuthorizer

    return Client(environment="local", authorizer=AccessTokenAuthorizer(token))


def flow(function: Flow) -> Flow:
    FLOWS[function.__name__] = function
    return function


def double(x):
    return 2 * x


def unchanged(*args, **kwargs):
    return args, kwargs


def wait_for_result(client: Any, task_id: str) -> Any:
    """`get_result` of one SDK waits and that of the other raises TaskPending."""
    import time

    deadline = time.monotonic() + TIMEOUT_S
    while client.get_task(task_id)["pending"]:
        assert time.monotonic() < deadline, f"task {task_id} is still pending"
        time.sleep(0.05)
    return client.get_result(task_id)


# -- the Executor -----------------------------------------------------------------------------------------------------


@flow
def a_call_comes_back(client, endpoint_id):
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        future = executor.submit(double, 21)

        assert future.result(TIMEOUT_S) == 42
        assert uuid.UUID(future.task_id)
        assert executor.submit(pow, 2, 5).result(TIMEOUT_S) == 32


@flow
def values_of_every_kind_come_back_unchanged(client, endpoint_id):
    values = [None, True, 0, 2**70, 1.5, 1j, "ä€😀", "", b"\0\xff", (), [1, [2]], {"ключ": {3}}, "x" * MEGABYTE]

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        futures = [executor.submit(unchanged, value, name=value) for value in values]

        assert [future.result(TIMEOUT_S) for future in futures] == [((value,), {"name": value}) for value in values]


@flow
def three_hundred_calls_come_back_each_to_its_own_future(client, endpoint_id):
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        futures = [executor.submit(double, number) for number in range(300)]

        assert [future.result(TIMEOUT_S) for future in futures] == [2 * number for number in range(300)]


@flow
def several_executors_work_side_by_side(client, endpoint_id):
    with (
        Executor(endpoint_id=endpoint_id, client=client) as one,
        Executor(endpoint_id=endpoint_id, client=client) as two,
        Executor(endpoint_id=endpoint_id, client=client, task_group_id=uuid.uuid4()) as apart,
    ):
        # A group that the service does not know is refused; the others go on.
        refused = apart.submit(double, 0)
        futures = [executor.submit(double, number) for number in range(5) for executor in (one, two)]

        assert [future.result(TIMEOUT_S) for future in futures] == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]
        assert refused.exception(TIMEOUT_S) is not None


@flow
def an_exception_of_the_function_is_raised_with_its_remote_traceback(client, endpoint_id):
    def failing_deep_down():
        return {}["missing key"]

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        error = executor.submit(failing_deep_down).exception(TIMEOUT_S)

        told = f"{error!r} {error} {error.__cause__}"
        assert "KeyError" in told and "missing key" in told, told
        assert "failing_deep_down" in told, told
        assert executor.submit(double, 1).result(TIMEOUT_S) == 2


@flow
def a_lambda_and_a_closure_travel(client, endpoint_id):
    factor = 7

    def scaled(x):
        return x * factor

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        assert executor.submit(lambda x: x + 1, 1).result(TIMEOUT_S) == 2
        assert executor.submit(scaled, 6).result(TIMEOUT_S) == 42


@flow
def a_registered_function_is_called_by_its_id(client, endpoint_id):
    function_id = client.register_function(double)

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        assert executor.submit_to_registered_function(function_id, args=(4,)).result(TIMEOUT_S) == 8
        assert executor.submit_to_registered_function(function_id, kwargs={"x": 5}).result(TIMEOUT_S) == 10


@flow
def another_process_takes_over_the_tasks(client, endpoint_id):
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:

        def slow(x):
            import time

            time.sleep(1.5)
            return x

        executor = Executor(endpoint_id=endpoint_id, client=signed_in())
        futures = [executor.submit(double, 21), executor.submit(slow, "late")]
        assert futures[0].result(TIMEOUT_S) == 42
        while futures[1].task_id is None:
            pass
        os.write(write_end, str(executor.task_group_id).encode())
        os._exit(0)
    os.close(write_end)
    group_id = os.read(read_end, 100).decode()
    assert os.waitpid(child, 0)[1] == 0

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        futures = list(executor.reload_tasks(group_id))

        assert sorted(str(future.result(TIMEOUT_S)) for future in futures) == ["42", "late"]


@flow
def a_shell_function_returns_what_the_command_wrote(client, endpoint_id):
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        greeting = executor.submit(ShellFunction("echo Hello {name}; echo oops >&2"), name="World")
        failing = executor.submit(ShellFunction("exit 3"))
        slow = executor.submit(ShellFunction("sleep 30", walltime=0.5))
        as_dictionary = executor.submit(ShellFunction("echo hi", return_dict=True))

        result = greeting.result(TIMEOUT_S)
        # Where a worker of theirs has no sandbox, it says so there too.
        assert (result.returncode, result.stdout.strip(), result.stderr.splitlines()[0]) == (0, "Hello World", "oops")
        assert result.cmd == "echo Hello World; echo oops >&2"
        assert failing.result(TIMEOUT_S).returncode == 3
        assert slow.result(TIMEOUT_S).returncode == 124
        assert as_dictionary.result(TIMEOUT_S)["stdout"].strip() == "hi"


def mpi_flow(function: Flow) -> Flow:
    MPI_FLOWS[function.__name__] = function
    return function


@mpi_flow
def an_mpi_function_starts_as_many_ranks_as_were_asked_for(client, endpoint_id):
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        executor.resource_specification = {"num_nodes": 1, "ranks_per_node": 2, "num_ranks": 2}

        result = executor.submit(MPIFunction("echo {word}"), word="rank").result(TIMEOUT_S)

        assert result.returncode == 0, vars(result)
        assert result.stdout.count("rank") == 2, result.stdout


# -- the Client -------------------------------------------------------------------------------------------------------


@flow
def run_and_get_result_work_without_an_executor(client, endpoint_id):
    function_id = client.register_function(unchanged)

    task_id = client.run(1, "two", endpoint_id=endpoint_id, function_id=function_id, three=3)

    assert wait_for_result(client, task_id) == ((1, "two"), {"three": 3})
    assert client.get_task(task_id)["status"] == "success"


@flow
def a_failed_run_raises_when_its_result_is_asked_for(client, endpoint_id):
    def failing():
        raise ValueError("deterministic failure")

    task_id = client.run(endpoint_id=endpoint_id, function_id=client.register_function(failing))

    try:
        wait_for_result(client, task_id)
    except Exception as error:
        assert "deterministic failure" in f"{error} {error.__cause__}"
    else:
        raise AssertionError("nothing was raised")


@flow
def a_batch_runs_and_its_results_are_asked_for_together(client, endpoint_id):
    import time

    doubling, passing = client.register_function(double), client.register_function(unchanged)
    batch = client.create_batch()
    for number in range(20):
        batch.add(doubling, args=(number,))
    batch.add(passing, kwargs={"a": None})

    submitted = client.batch_run(endpoint_id, batch)

    ids = [*submitted["tasks"][doubling], *submitted["tasks"][passing]]
    deadline = time.monotonic() + TIMEOUT_S
    results = client.get_batch_result(ids)
    while any(result["pending"] for result in results.values()) and time.monotonic() < deadline:
        time.sleep(0.1)
        results = client.get_batch_result(ids)
    assert [results[task_id]["result"] for task_id in ids] == [*(2 * n for n in range(20)), ((), {"a": None})]
    assert uuid.UUID(submitted["task_group_id"])


@flow
def source_code_is_registered_as_it_is(client, endpoint_id):
    function_id = client.register_source_code("def tripled(x):\n    return 3 * x\n", "tripled")

    task_id = client.run(5, endpoint_id=endpoint_id, function_id=function_id)

    assert wait_for_result(client, task_id) == 15


@flow
def functions_are_shown_and_deleted(client, endpoint_id):
    def documented():
        """Says what it does."""

    function_id = client.register_function(documented)

    shown = client.get_function(function_id)
    assert shown["function_name"] == "documented"
    assert "Says what it does" in shown["description"]
    client.delete_function(function_id)
    for refused in (
        lambda: client.get_function(function_id),
        lambda: client.run(endpoint_id=endpoint_id, function_id=function_id),
    ):
        try:
            refused()
        except Exception as error:
            assert function_id in str(error), error
        else:
            raise AssertionError("a deleted function was found")


@flow
def endpoints_tell_about_themselves(client, endpoint_id):
    assert endpoint_id in [each["uuid"] for each in client.get_endpoints()]
    assert endpoint_id in [each["uuid"] for each in client.get_endpoints(role="any")]
    assert client.get_endpoint_status(endpoint_id)["status"] == "online"
    about = client.get_endpoint_metadata(endpoint_id)
    assert about["uuid"] == endpoint_id and about["hostname"], about
    allowed = client.get_allowed_functions(endpoint_id)
    assert (allowed["restricted"], allowed["functions"]) == (False, [])


@flow
def a_worker_tells_what_machine_it_runs_on(client, endpoint_id):
    task_id = client.get_worker_hardware_details(endpoint_id)

    # Our worker and theirs say it in different words.
    assert os.uname().nodename in wait_for_result(client, task_id)


@flow
def what_does_not_exist_is_said_to_be_unknown(client, endpoint_id):
    for unknown in (
        lambda: client.get_task(UNKNOWN),
        lambda: client.get_function(UNKNOWN),
        lambda: client.get_endpoint_status(UNKNOWN),
        lambda: client.run(endpoint_id=UNKNOWN, function_id=client.register_function(double)),
    ):
        try:
            unknown()
        except Exception as error:
            assert UNKNOWN in str(error), error
        else:
            raise AssertionError("something that does not exist was found")


# -- how values travel, and how large they may be ---------------------------------------------------------------------


@flow
def a_function_travels_by_every_strategy(client, endpoint_id):
    names = ("DillCode", "PureSourceTextInspect", "PureSourceDill", "DillCodeTextInspect", "DillCodeSource")
    futures = {}

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        for name in (*names, "CombinedCode", "AllCodeStrategies"):
            executor.serializer = ways.ComputeSerializer(strategy_code=getattr(ways, name)())
            # A function is registered once, so another strategy needs another object.
            function_id = executor.register_function(_copy_of_double())
            futures[name] = executor.submit_to_registered_function(function_id, args=(4,))

        assert {name: future.result(TIMEOUT_S) for name, future in futures.items()} == dict.fromkeys(futures, 8)


@flow
def arguments_travel_by_every_strategy(client, endpoint_id):
    for name in ("DillDataBase64", "JSONData", "AllDataStrategies"):
        serializer = ways.ComputeSerializer(strategy_data=getattr(ways, name)())
        with Executor(endpoint_id=endpoint_id, client=client, serializer=serializer) as executor:
            assert executor.submit(double, 4).result(TIMEOUT_S) == 8, name
            assert executor.submit(unchanged, "ä", key=[None, 1.5]).result(TIMEOUT_S) is not None, name


@flow
def results_travel_by_the_strategies_that_were_asked_for(client, endpoint_id):
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        executor.result_serializers = [ways.JSONData]
        # JSON has no tuples, so that a list comes back shows which way it came.
        assert executor.submit(unchanged, 1).result(TIMEOUT_S) == [[1], {}]
        executor.result_serializers = [ways.DillDataBase64]
        assert executor.submit(unchanged, 1).result(TIMEOUT_S) == ((1,), {})


@flow
def arguments_and_results_may_be_just_so_large(client, endpoint_id):
    def of_length(size):
        return b"x" * size

    # Four characters carry three bytes, and each line of 76 a newline more.
    fits = int(10 * MEGABYTE * 3 / 4 * 76 / 77) - 1000
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        assert executor.submit(len, b"x" * fits).result(TIMEOUT_S) == fits
        assert len(executor.submit(of_length, fits).result(TIMEOUT_S)) == fits
        too_large = executor.submit(of_length, 8 * MEGABYTE).exception(TIMEOUT_S)
        assert "MaxResultSizeExceeded" in repr(too_large) or "exceed" in str(too_large), too_large
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        refused = executor.submit(len, b"x" * (8 * MEGABYTE)).exception(TIMEOUT_S)
        assert refused is not None and "limit" in str(refused), refused


def _copy_of_double():
    # By a name that it has in the file, for the strategies that send its text.
    import types

    return types.FunctionType(double.__code__, {}, "double")
