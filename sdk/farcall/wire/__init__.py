"""What travels between service, agent and worker: states, packed buffers, messages and their envelope.

A message on a queue is the byte ``0x01`` followed by UTF-8 JSON ``{"message_type": ..., "data": {...}}``. The types
``task``, ``result`` and ``ep_status_report`` are those of Globus Compute; ``task_batch``, ``result_batch``,
``output_batch``, ``dead_letter`` and ``command`` are Farcall's own, for a peer that knows them. Unknown fields are
ignored, so that either side may be the newer one. Nothing here unpickles anything.
"""

from __future__ import annotations

from .buffers import pack_buffers, unpack_buffers
from .envelope import ENVELOPE_VERSION, decode, encode, read_result, write_result
from .messages import (
    MOST_DEAD_LETTER_BYTES,
    STREAMS,
    BatchedTask,
    Command,
    DeadLetter,
    ErrorDetails,
    FunctionCode,
    Message,
    Output,
    OutputBatch,
    Result,
    ResultBatch,
    StatusReport,
    Task,
    TaskBatch,
)
from .states import EXECUTION_END, EXECUTION_START, FINAL_STATES, TaskState, Transition

__all__ = [
    "ACCEPTS_TASK_BATCH",
    "ENVELOPE_VERSION",
    "EXECUTION_END",
    "EXECUTION_START",
    "FINAL_STATES",
    "MOST_DEAD_LETTER_BYTES",
    "STREAMS",
    "BatchedTask",
    "Command",
    "DeadLetter",
    "ErrorDetails",
    "FunctionCode",
    "Message",
    "Output",
    "OutputBatch",
    "Result",
    "ResultBatch",
    "StatusReport",
    "Task",
    "TaskBatch",
    "TaskState",
    "Transition",
    "decode",
    "encode",
    "pack_buffers",
    "read_result",
    "unpack_buffers",
    "write_result",
]
#: What an agent names under ``accepts`` in its registration metadata to be sent many tasks in one message.
ACCEPTS_TASK_BATCH = "task_batch"
