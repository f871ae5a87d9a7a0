"""What runs on a node: the tasks of one call, one after the other, each in its own failure.

Whatever a user's code does, short of ending the process, becomes a result. Imports stay few: every worker of every
block waits for them.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from farcall import __version__
from farcall.errors import DeserializationError, FarcallError, MaxResultSizeExceeded
from farcall.serialize import Serializer, deserialize, deserialize_function, serialize_exception
from farcall.wire import (
    EXECUTION_END,
    EXECUTION_START,
    BatchedTask,
    ErrorDetails,
    FunctionCode,
    Result,
    TaskBatch,
    Transition,
    unpack_buffers,
    write_result,
)

from . import streams
from .calls import TASK_ID, Outcome, Setting, read_call, write_outcome
from .guards import TaskTimeout, node_timeout_s, time_limit

#: Loaded functions that a worker keeps.
MOST_FUNCTIONS = 100

#: A traceback may hold a message of any length, an exception an object of any size.
MOST_TRACEBACK_CHARACTERS = 512 * 1024
MOST_EXCEPTION_CHARACTERS = 64 * 1024

#: Where tasks begin.
_DIRECTORY = Path.cwd()

_functions: OrderedDict[str, Callable[..., Any]] = OrderedDict()


def run_batch(buffer: bytes) -> bytes:
    """Run the tasks of one call. The engine calls this by its name, see ``engine.TASK_EXECUTOR``."""
    started = time.perf_counter()
    setting, batch = read_call(buffer)
    results = []
    for task in batch.tasks:
        result = run_task(task, batch, setting)
        results.append((task.task_id, json.dumps(write_result(result), separators=(",", ":"))))
    return write_outcome(Outcome(time.perf_counter() - started, results))


def run_task(task: BatchedTask, batch: TaskBatch, setting: Setting) -> Result:
    """Run one task and say how it ended, value or failure."""
    os.environ["GC_TASK_UUID"] = os.environ[TASK_ID] = task.task_id
    process = os.getpid()
    streams.begin(task.task_id)
    started = time.time_ns()
    run = _Run(task, batch.functions[task.function_id], setting)
    error, exception, exit_code = None, None, 0
    try:
        data = run.value()
    # Also SystemExit and KeyboardInterrupt: a user's sys.exit() ends the task, not the worker.
    except BaseException as raised:
        exit_code = _exit_code(raised)
        data, error, exception = run.failure(raised)
    streams.flush()
    if os.getpid() != process:
        # The task forked, and this is the child, coming back into a worker of which there must be one.
        os._exit(exit_code)
    transitions = (
        Transition(started, EXECUTION_START, "worker"),
        Transition(time.time_ns(), EXECUTION_END, "worker"),
    )
    return Result(task.task_id, data, _details(setting.endpoint_id), error, transitions, exception)


class _Run:
    """One task on its way from text to text."""

    def __init__(self, task: BatchedTask, code: FunctionCode, setting: Setting) -> None:
        self._task = task
        self._code = code
        self._setting = setting
        self._in_user_code = False
        self._timeout_s: float | None = None

    def value(self) -> str:
        # Wherever the task before has gone.
        os.chdir(_DIRECTORY)
        self._timeout_s = _timeout_s(self._task, self._setting)
        # All of it, as the manager sees it, who ends this worker if it does not end the task.
        with time_limit(self._timeout_s):
            return self._value()

    def _value(self) -> str:
        function = _function(self._task.function_id, self._code)
        arguments, keywords = _arguments(self._task.payload)
        self._in_user_code = True
        value = function(*arguments, **keywords)
        self._in_user_code = False
        data = Serializer.serialize_from_list(value, self._task.options.get("result_serializers") or ())
        if len(data) > self._setting.result_limit:
            raise MaxResultSizeExceeded(len(data), self._setting.result_limit)
        return data

    def failure(self, raised: BaseException) -> tuple[str, ErrorDetails, str | None]:
        """What the submitter is shown, told and given to raise."""
        if isinstance(raised, TaskTimeout):
            _end_children(self._task.task_id)
            whose = "it was given" if "timeout_s" in self._task.options else "this endpoint allows"
            message = f"the task was stopped: it ran longer than the {self._timeout_s:g} s that {whose}"
            return f"{_traceback_text(raised)}\n{message}", ErrorDetails("TaskTimeout", message), None
        exception = _exception_text(raised)
        if isinstance(raised, FarcallError) and not self._in_user_code:
            # The user's code did not run, or has returned: our own frames would explain nothing.
            message = _shortened(_printable(str(raised)), MOST_TRACEBACK_CHARACTERS)
            name = type(raised).__name__
            return f"{name}: {message}", ErrorDetails(name, message), exception
        sentence = "An error occurred during the execution of this task"
        return _traceback_text(raised), ErrorDetails("RemoteExecutionError", sentence), exception


def _function(function_id: str, code: FunctionCode) -> Callable[..., Any]:
    if function_id in _functions:
        _functions.move_to_end(function_id)
        return _functions[function_id]
    (text,) = unpack_buffers(code.code)
    function: Callable[..., Any] = deserialize_function(text, code.python_version)
    _functions[function_id] = function
    if len(_functions) > MOST_FUNCTIONS:
        _functions.popitem(last=False)
    return function


def _arguments(payload: str) -> tuple[Any, Any]:
    buffers = unpack_buffers(payload)
    if len(buffers) != 2:
        raise DeserializationError(f"a payload holds positional and keyword arguments, this one {len(buffers)} buffers")
    return deserialize(buffers[0]), deserialize(buffers[1])


def _timeout_s(task: BatchedTask, setting: Setting) -> float | None:
    own = task.options.get("timeout_s")
    if own is not None:
        return float(own)
    if setting.task_timeout_s is not None:
        return setting.task_timeout_s
    return node_timeout_s()


def _end_children(task_id: str) -> None:
    """What a task has started ends with its time."""
    # It is needed seldom.
    from .killing import end_children

    streams.flush()
    end_children(task_id)


def _traceback_text(raised: BaseException) -> str:
    """The traceback as the user would see it at home: from the first frame that is not ours."""
    frames = raised.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") in _OUR_MODULES:
        frames = frames.tb_next
    try:
        text = "".join(traceback.format_exception(type(raised), raised, frames))
    except Exception as error:
        text = f"{type(raised).__name__} (its traceback cannot be shown: {type(error).__name__})"
    return _shortened(_printable(text), MOST_TRACEBACK_CHARACTERS)


_OUR_MODULES = frozenset({__name__, f"{__package__}.guards"})


def _printable(text: str) -> str:
    """A message may hold what no database or terminal takes: lone surrogates (as in odd file names) and NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _exception_text(raised: BaseException) -> str | None:
    text = serialize_exception(raised)
    return text if text is not None and len(text) <= MOST_EXCEPTION_CHARACTERS else None


def _exit_code(raised: BaseException) -> int:
    if isinstance(raised, SystemExit):
        return raised.code if isinstance(raised.code, int) else int(raised.code is not None)
    return 1


@lru_cache(maxsize=8)
def _details(endpoint_id: str) -> dict[str, Any]:
    """What describes this worker. The names are Globus Compute's, whose SDK compares versions by them."""
    return {
        "os": platform.platform(),
        "python_version": platform.python_version(),
        "dill_version": importlib.metadata.version("dill"),
        "globus_compute_sdk_version": __version__,
        "farcall_version": __version__,
        "hostname": platform.node(),
        "endpoint_id": endpoint_id,
    }
