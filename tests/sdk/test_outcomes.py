"""What a task's document says, and what of it cannot be loaded here."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import pytest

from farcall.errors import DeserializationError, TaskExecutionFailed
from farcall.outcomes import outcome_of
from farcall.serialize import DillCode, JSONData, Serializer, deserialize, serialize, serialize_exception


class Speechless(Exception):
    def __str__(self) -> str:
        raise TypeError("no words")


class Unloadable:
    """Raises what it is given when it is loaded."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raising, (self.error,)


def raising(error: BaseException) -> None:
    raise error


def result_of(value: Any, **details: str) -> dict[str, Any]:
    return {"task_id": "t1", "status": "success", "result": serialize(value), "details": details}


@pytest.mark.parametrize("error", [ValueError("bad"), Speechless(), SystemExit(3), GeneratorExit()])
def test_a_result_that_raises_while_it_is_loaded_is_an_error_like_any_other(error: BaseException) -> None:
    outcome = outcome_of(result_of(Unloadable(error)), deserialize)

    assert isinstance(outcome.error, DeserializationError)
    assert "the result of task t1" in str(outcome.error)
    assert type(error).__name__ in str(outcome.error)


def test_ctrl_c_while_a_result_is_loaded_stays_ctrl_c() -> None:
    with pytest.raises(KeyboardInterrupt):
        outcome_of(result_of(Unloadable(KeyboardInterrupt())), deserialize)


def test_another_python_is_mentioned_where_warnings_are_errors_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall.outcomes._warned", set())
    document = result_of(Unloadable(ValueError("bad")), python_version="3.2.1", endpoint_id="e1")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        outcome = outcome_of(document, deserialize)

    assert f"The worker ran Python 3.2.1, this is {sys.version.split()[0]}." in str(outcome.error)


def test_an_exception_is_not_loaded_in_a_way_that_is_not_allowed() -> None:
    only_json = Serializer(DillCode(), JSONData(), allowed_deserializer_types=[DillCode, JSONData])
    document = {"status": "failed", "exception": "Traceback: bad", "exception_object": serialize_exception(KeyError(1))}

    assert isinstance(outcome_of(document, deserialize).error, KeyError)
    refused = outcome_of(document, only_json.deserialize).error

    assert isinstance(refused, TaskExecutionFailed)
    assert refused.remote_data == "Traceback: bad"


def test_an_exception_that_ends_the_program_when_loaded_leaves_the_remote_traceback() -> None:
    document = {
        "status": "failed",
        "exception": "Traceback: bad",
        "exception_object": serialize(Unloadable(SystemExit())),
    }

    assert isinstance(outcome_of(document, deserialize).error, TaskExecutionFailed)
