"""How a task ended, as a value or an exception, from what the service says of it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from farcall.errors import DeserializationError, TaskCancelled, TaskExecutionFailed, described
from farcall.serialize import deserialize_exception
from farcall.wire import FINAL_STATES, TaskState

_SERIALISED = ("result", "exception_object")
#: Endpoints whose other version of Python or dill was already mentioned.
_warned: set[str] = set()


class Outcome(NamedTuple):
    """A value, or an error; ``error`` is None for a task that ended well.

    ``state`` is how the task ended at the service, which an error that was met here does not change. ``reason`` says in
    words why it has no value.
    """

    value: Any = None
    error: BaseException | None = None
    state: TaskState = TaskState.FAILED
    reason: str = ""


def is_done(document: Mapping[str, Any]) -> bool:
    return str(document.get("status", "")).lower() in FINAL_STATES


def outcome_of(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> Outcome:
    """What a done task's document says. What cannot be loaded here is an error like any other, however it fails."""
    try:
        if "result" in document:
            return Outcome(deserialize(document["result"]), state=TaskState.SUCCESS)
        reason = _reason_of(document)
        if _is_cancelled(document):
            return Outcome(error=TaskCancelled(reason, _ended_at(document)), state=TaskState.CANCELLED, reason=reason)
        return Outcome(error=_error_of(document, reason, deserialize), reason=reason)
    except BaseException as error:  # loading runs the user's code, which may raise anything, SystemExit too
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # somebody pressed Ctrl-C
        why = str(error) if isinstance(error, DeserializationError) else described(error)
        hint = _version_hint(document.get("details") or {})
        unreadable = DeserializationError(f"the result of task {document.get('task_id')}: {why}{hint}")
        return Outcome(error=unreadable, state=TaskState.SUCCESS if "result" in document else TaskState.FAILED)


def readable(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> dict[str, Any]:
    """A task's document with what its texts stand for in their place, whether it is ``pending``, and its ``attempts``.

    ``attempts`` says of each attempt that ended without the task's end how it ended, in words.
    """
    shown = described_task(document)
    shown["pending"] = Pending(not is_done(document))
    shown.pop("exception", None)
    if is_done(document):
        outcome = outcome_of(document, deserialize)
        shown.update({"result": outcome.value} if outcome.error is None else {"exception": outcome.error})
    return shown


class Pending(str):
    """Whether a task is still to be done: ``"True"`` or ``"False"`` where texts are compared, and true or false."""

    __slots__ = ()

    def __new__(cls, pending: bool) -> Pending:
        return super().__new__(cls, str(pending))

    def __bool__(self) -> bool:
        return str.__eq__(self, "True")

    def __eq__(self, other: object) -> bool:
        return bool(self) is other if isinstance(other, bool) else str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def described_task(document: Mapping[str, Any]) -> dict[str, Any]:
    """A task's document without what would have to be loaded, and with its ``attempts``."""
    shown = {key: value for key, value in document.items() if key not in _SERIALISED}
    return {**shown, "attempts": attempts_of(document)} if "history" in document else shown


def attempts_of(document: Mapping[str, Any]) -> list[str]:
    """What the history says of attempts that were lost with a worker, node or endpoint."""
    notes = (str(change[2]) for change in document.get("history") or () if len(change) > 2)
    return [note for note in notes if note.startswith("attempt ")]


def _is_cancelled(document: Mapping[str, Any]) -> bool:
    return str(document.get("status", "")).lower() == TaskState.CANCELLED


def _ended_at(document: Mapping[str, Any]) -> str:
    return str(document.get("completion_t") or "0")


def _reason_of(document: Mapping[str, Any]) -> str:
    """What the service says, and the attempts that it does not mention there."""
    said = document.get("exception") or document.get("reason") or f"the task ended as {document.get('status')!r}"
    text = str(said)
    return "\n".join([text, *(attempt for attempt in attempts_of(document) if attempt not in text)])


def _error_of(document: Mapping[str, Any], reason: str, deserialize: Callable[[str], Any]) -> Exception:
    """The original exception where it can be rebuilt, with the remote traceback as its cause."""
    failed = TaskExecutionFailed(reason, _ended_at(document))
    serialised = document.get("exception_object")
    original = deserialize_exception(serialised, deserialize) if serialised else None
    if original is None:
        return failed
    original.__cause__ = failed
    return original


def _version_hint(details: Mapping[str, Any]) -> str:
    theirs, ours = details.get("python_version"), sys.version.split()[0]
    if not theirs or str(theirs).split(".")[:2] == ours.split(".")[:2]:
        return ""
    hint = f" The worker ran Python {theirs}, this is {ours}."
    endpoint_id = str(details.get("endpoint_id"))
    if endpoint_id not in _warned:
        _warned.add(endpoint_id)
        # Where warnings are errors, the one that has the hint is error enough.
        with suppress(UserWarning):
            warnings.warn(
                f"A result of endpoint {endpoint_id} could not be loaded.{hint} "
                "Use the same minor version on both sides, or return plain data.",
                UserWarning,
                stacklevel=2,
            )
    return hint
