"""A tour in one file: register functions, run them on an endpoint, look at what comes back.

python examples/tutorial.py ENDPOINT_ID
"""

from __future__ import annotations

import sys

from farcall import Client, Executor


def hello_world():
    return "Hello World!"


def get_sum(items):
    return sum(items)


def get_date():
    from datetime import date  # a function states what it needs: it runs on another machine

    return date.today()


def echo(name):
    import subprocess

    return subprocess.run(["echo", "Hello", name], capture_output=True, text=True, check=True).stdout


def failing():
    raise ValueError("deterministic failure")


def estimate_pi(points):
    from random import random

    return 4 * sum(random() ** 2 + random() ** 2 < 1 for _ in range(points)) / points


def squared(x):
    return x**2


def main(endpoint_id: str) -> None:
    client = Client()

    print("\n# One function, one call")
    function_id = client.register_function(hello_world)
    task_id = client.run(endpoint_id=endpoint_id, function_id=function_id)
    print("hello_world() ->", client.get_result(task_id))

    print("\n# Arguments, a module, a program")
    for function, arguments in ((get_sum, ([1, 2, 3, 4, 5],)), (get_date, ()), (echo, ("World",))):
        function_id = client.register_function(function)
        task_id = client.run(*arguments, endpoint_id=endpoint_id, function_id=function_id)
        print(f"{function.__name__}{arguments} ->", repr(client.get_result(task_id)))

    print("\n# A function that fails raises its own exception here, with the remote traceback")
    task_id = client.run(endpoint_id=endpoint_id, function_id=client.register_function(failing))
    try:
        client.get_result(task_id)
    except ValueError as error:
        print("failing() raised", repr(error))
        print(str(error.__cause__).strip())

    print("\n# Many calls in one request")
    batch = client.create_batch()
    function_id = client.register_function(squared)
    for x in range(10):
        batch.add(x, endpoint_id=endpoint_id, function_id=function_id)
    for task_id in client.batch_run(batch)["tasks"][function_id]:
        print(client.get_result(task_id), end=" ")
    print()

    print("\n# The same with futures")
    with Executor(endpoint_id=endpoint_id) as executor:
        estimates = list(executor.map(estimate_pi, [100_000] * 4))
    print("estimates of pi:", estimates, "-> average", sum(estimates) / len(estimates))

    status = client.get_endpoint_status(endpoint_id)
    print("\n# The endpoint")
    print("status:", status["status"])
    print("workers:", status["logs"][0]["total_workers"])
    print("tasks:", status["logs"][0]["outstanding_tasks"])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
