"""Results that the agent makes itself, for tasks of which no worker will report one."""

from __future__ import annotations

import json
from collections.abc import Sequence

from farcall.wire import ErrorDetails, Result, Transition, write_result


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


def failure(task_id: str, code: str, message: str, history: Sequence[Transition] = ()) -> tuple[str, str]:
    """A failed task's id and the JSON text of its result, as the journal takes it."""
    result = Result(task_id, message, error_details=ErrorDetails(code, message), task_statuses=history)
    return task_id, json.dumps(write_result(result), separators=(",", ":"))
