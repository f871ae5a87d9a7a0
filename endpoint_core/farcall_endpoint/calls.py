"""What the agent hands to a worker in one call, and what comes back.

Both are bytes, so that the engine between agent and worker carries them without looking inside.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from farcall.errors import WireError
from farcall.wire import BatchedTask, FunctionCode, TaskBatch, decode, encode, pack_buffers, unpack_buffers

#: Characters of a serialised result; what Globus Compute allows, so that a result that passes here passes there.
RESULT_LIMIT = 10 * 1024 * 1024

#: The variable with the id of the task that a worker is running; what the task starts has it as well.
TASK_ID = "FARCALL_TASK_ID"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all tasks of an endpoint."""

    endpoint_id: str
    #: Seconds after which a task is stopped that does not say so itself; None leaves it to ``GC_TASK_TIMEOUT`` on the
    #: node.
    task_timeout_s: float | None = None
    result_limit: int = RESULT_LIMIT


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call: how long it took in all, and each task's result as it goes onto the wire."""

    busy_s: float
    #: Task id and JSON text of its :class:`farcall.wire.Result`. The text is made once, on the worker, and carried
    #: through journal and mailbox as it is.
    results: Sequence[tuple[str, str]]


def write_call(setting: Setting, functions: Mapping[str, FunctionCode], tasks: Sequence[BatchedTask]) -> bytes:
    return json.dumps(asdict(setting)).encode() + b"\n" + encode(TaskBatch(functions, tasks))


def read_call(buffer: bytes) -> tuple[Setting, TaskBatch]:
    setting, _, body = buffer.partition(b"\n")
    batch = decode(body)
    if not isinstance(batch, TaskBatch):
        raise WireError(f"a call holds a task batch, not a {type(batch).__name__}")
    return Setting(**json.loads(setting)), batch


def write_outcome(outcome: Outcome) -> bytes:
    texts = [text for result in outcome.results for text in result]
    return pack_buffers([repr(outcome.busy_s), *texts]).encode("utf-8", "surrogatepass")


def read_outcome(buffer: bytes) -> Outcome:
    busy_s, *texts = unpack_buffers(buffer.decode("utf-8", "surrogatepass"))
    return Outcome(float(busy_s), list(zip(texts[::2], texts[1::2], strict=True)))
