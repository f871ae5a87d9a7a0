"""What becomes of tasks when parts of Globus Compute's endpoint end, by themselves or by force.

Run as the flows are, on an endpoint of `new_lively_endpoint`; the functions that are sent are nested ones, so that they
travel whole.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

from flows import TIMEOUT_S, Executor

LIVES = {}


def life(function):
    LIVES[function.__name__] = function
    return function


def wait_until(condition, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not come to pass that {what}"
        time.sleep(0.1)


def is_there(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@life
def a_task_of_a_killed_child_runs_again(client, endpoint_id):
    def noted(path):
        import os
        import time
        from pathlib import Path

        with Path(path).open("a") as file:
            # With this engine it runs in the process of the user endpoint itself.
            file.write(f"{os.getpid()}\n")
        starts = len(Path(path).read_text().splitlines())
        # The first start is to be killed, the second to end.
        time.sleep(100 if starts == 1 else 0)
        return starts

    with tempfile.TemporaryDirectory() as folder, Executor(endpoint_id=endpoint_id, client=client) as executor:
        path = Path(folder) / "starts"
        future = executor.submit(noted, str(path))
        wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "the task has started")

        os.kill(int(path.read_text()), signal.SIGKILL)

        # The dead one's file of its process id keeps a new one from starting for half a minute.
        assert future.result(2 * TIMEOUT_S) == 2


@life
def a_child_without_work_ends_and_comes_back_for_more(client, endpoint_id):
    def whose():
        import os

        return os.getpid()

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        first = executor.submit(whose).result(TIMEOUT_S)
        wait_until(lambda: not is_there(first), "the child has ended")

        assert executor.submit(whose).result(TIMEOUT_S) != first


@life
def each_configuration_has_a_child_of_its_own(client, endpoint_id):
    def setting():
        import os

        return os.getpid()

    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        plain = executor.submit(setting).result(TIMEOUT_S)
        executor.user_endpoint_config = {"workers": 3}
        other = executor.submit(setting).result(TIMEOUT_S)
        executor.user_endpoint_config = None

        assert plain != other
        assert executor.submit(setting).result(TIMEOUT_S) == plain


@life
def a_child_that_cannot_start_fails_its_tasks_in_words(client, endpoint_id):
    for config, word in (({"engine": "NoSuchEngine"}, "NoSuchEngine"), ({"workers": "many"}, "workers")):
        with Executor(endpoint_id=endpoint_id, client=client, user_endpoint_config=config) as executor:
            error = executor.submit(pow, 2, 5).exception(TIMEOUT_S)

            assert error is not None and word in str(error), error
    # The endpoint itself is none the worse.
    with Executor(endpoint_id=endpoint_id, client=client) as executor:
        assert executor.submit(pow, 2, 5).result(TIMEOUT_S) == 32


@life
def tasks_wait_for_an_endpoint_that_is_stopped(client, endpoint_id):
    """The test stops the endpoint before, and starts it again when this has submitted."""
    function_id = client.register_function(lambda: "late")
    assert client.get_endpoint_status(endpoint_id)["status"] == "offline"

    task_id = client.run(endpoint_id=endpoint_id, function_id=function_id)

    assert client.get_task(task_id)["pending"]
    (Path.home() / "waiting-task").write_text(task_id)


@life
def the_task_that_waited_has_run(client, endpoint_id):
    task_id = (Path.home() / "waiting-task").read_text()
    wait_until(lambda: not client.get_task(task_id)["pending"], "the task has ended")

    assert client.get_result(task_id) == "late"
    assert client.get_endpoint_status(endpoint_id)["status"] == "online"
