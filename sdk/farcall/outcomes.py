"""How a task ended, as a value or an exception, from what the service says of it."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from farcall.errors import DeserializationError, TaskExecutionFailed, described
from farcall.serialize import deserialize_exception
from farcall.wire import FINAL_STATES

_SERIALISED = ("result", "exception", "exception_object")
#: Endpoints whose other version of Python or dill was already mentioned.
_warned: set[str] = set()


class Outcome(NamedTuple):
    """One of the two; ``error`` is None for a task that ended well."""

    value: Any = None
    error: BaseException | None = None


def is_done(document: Mapping[str, Any]) -> bool:
    return str(document.get("status", "")).lower() in FINAL_STATES


def outcome_of(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> Outcome:
    """What a done task's document says. What cannot be loaded here is an error like any other, however it fails."""
    try:
        if "result" in document:
            return Outcome(deserialize(document["result"]))
        return Outcome(error=_error_of(document, deserialize))
    except BaseException as error:  # loading runs the user's code, which may raise anything, SystemExit too
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise  # somebody pressed Ctrl-C
        why = str(error) if isinstance(error, DeserializationError) else described(error)
        hint = _version_hint(document.get("details") or {})
        return Outcome(error=DeserializationError(f"the result of task {document.get('task_id')}: {why}{hint}"))


def readable(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> dict[str, Any]:
    """A task's document with what its texts stand for in their place, and whether it is ``pending``."""
    done = is_done(document)
    shown = {key: value for key, value in document.items() if key not in _SERIALISED}
    shown["pending"] = Pending(not done)
    if done:
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


def _error_of(document: Mapping[str, Any], deserialize: Callable[[str], Any]) -> Exception:
    """The original exception where it can be rebuilt, with the remote traceback as its cause."""
    text = document.get("exception") or document.get("reason") or f"the task ended as {document.get('status')!r}"
    failed = TaskExecutionFailed(str(text), str(document.get("completion_t") or "0"))
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
