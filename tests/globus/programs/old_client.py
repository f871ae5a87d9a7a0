"""What every version of Globus Compute's SDK can do: run a function by an Executor, and by its Client.

Run with the Python of that version and the id of an endpoint.
"""

from __future__ import annotations

import importlib.util
import sys
import time

if importlib.util.find_spec("funcx"):
    from funcx import FuncXClient as Client
    from funcx import FuncXExecutor as Executor
else:
    from globus_compute_sdk import Client, Executor

TIMEOUT_S = 100


def double(x):
    return 2 * x


def main(endpoint_id: str) -> None:
    with Executor(endpoint_id=endpoint_id) as executor:
        futures = [executor.submit(double, number) for number in range(3)]
        assert [future.result(timeout=TIMEOUT_S) for future in futures] == [0, 2, 4]

    client = Client()
    task_id = client.run(21, endpoint_id=endpoint_id, function_id=client.register_function(double))
    deadline = time.monotonic() + TIMEOUT_S
    while client.get_task(task_id)["pending"]:
        assert time.monotonic() < deadline, f"task {task_id} is still pending"
        time.sleep(0.5)
    assert client.get_result(task_id) == 42


if __name__ == "__main__":
    main(sys.argv[1])
