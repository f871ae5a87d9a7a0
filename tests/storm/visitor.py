"""A user's program that submits some tasks and is gone, as when somebody closes a laptop.

``python -m tests.storm.visitor URL TOKEN ENDPOINT_ID MARKS KEY...`` prints, before it kills itself, the ids of the
group and of the tasks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from tests.storm.tasks import KINDS, PATIENCE_S

from farcall import Client, Executor


def main() -> None:
    url, token, endpoint_id, markers, *keys = sys.argv[1:]
    client = Client(service_url=url, token=token)
    client.transport.retry_for_s = PATIENCE_S
    executor = Executor(endpoint_id=endpoint_id, client=client)
    futures = [executor.submit(KINDS["brief"].function, markers, int(key)) for key in keys]
    while not all(future.task_id for future in futures):
        time.sleep(0.01)
    sys.stdout.write(json.dumps({"group": str(executor.task_group_id), "tasks": [each.task_id for each in futures]}))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
