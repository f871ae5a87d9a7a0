"""Results that the agent makes itself, for tasks of which no worker will report one."""

from __future__ import annotations

import json

from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

from farcall.wire import ErrorDetails, Result, write_result


class NodesLost(Exception):
    """All nodes ended at once, with what they were running."""


class WorkerEnded(Exception):
    """A worker ended while it had a call, by itself or because it was told to. It travels from the node to the agent.

    ``cause`` is ``died``, ``cancelled`` or ``timeout``; ``task_id`` is the task that it was running, None if none had
    begun; ``exit_code`` is negative for the number of a signal, None where it is not known.
    """

    def __init__(
        self,
        cause: str,
        hostname: str,
        worker: int,
        task_id: str | None = None,
        exit_code: int | None = None,
        memory: str = "",
        stderr: str = "",
    ) -> None:
        # With all of them as its args, an exception can be pickled.
        super().__init__(cause, hostname, worker, task_id, exit_code, memory, stderr)
        self.cause = cause
        self.hostname = hostname
        self.worker = worker
        self.task_id = task_id
        self.exit_code = exit_code
        #: A sentence about the memory that it used, if that may be why it died.
        self.memory = memory
        #: The end of what the task printed to it.
        self.stderr = stderr


class TooLittleTime(Exception):
    """A node gives a call back because its block ends before the call's time limit: another node may have longer."""


def failure(task_id: str, code: str, message: str) -> tuple[str, str]:
    """A failed task's id and the JSON text of its result, as the journal takes it."""
    result = Result(task_id, message, error_details=ErrorDetails(code, message))
    return task_id, json.dumps(write_result(result), separators=(",", ":"))


def lost_for_good(task_id: str, attempts: int, error: BaseException) -> tuple[str, str]:
    """The failure of a task that has lost as many workers as its endpoint allows; ``error`` is what Parsl said last."""
    times = "once" if attempts == 1 else f"{attempts} times"
    if isinstance(error, (WorkerLost, ManagerLost, NodesLost, WorkerEnded)):
        what = (
            "The worker process ended before the task did: the task called os._exit, was killed by a signal, or ran "
            f"out of memory, or its node was lost. It was started {times}."
        )
        return failure(task_id, "WorkerLost", f"{what} The last time: {error}")
    what = f"The worker could not run the task at all. It was started {times}."
    return failure(task_id, "WorkerFailed", f"{what} The last time: {type(error).__name__}: {error}")
