"""Kinds of tasks: what they do on the worker, and what must come of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any

from farcall.errors import TaskExecutionFailed
from farcall.outcomes import Outcome

LARGE = 1_000_000
#: The service may be away for long in a storm; who gives up and submits again makes new tasks.
PATIENCE_S = 900.0


def functions() -> dict[str, Callable[..., Any]]:  # noqa: PLR0915 -- each of them is short
    """What runs on workers. Each takes the path of the file of marks, the task's key, and what its kind adds.

    They are made in here so that they travel by value, with the helper that they share: no worker has this module.
    """

    def note(path, key, what):
        """Note it so that nothing can take it back."""
        import os
        import time

        file = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(file, f"{key} {what} {time.monotonic():.3f}\n".encode())
        os.fsync(file)
        os.close(file)

    def note_start(path, key):
        """Before anything else."""
        note(path, key, "start")

    def tiny(path, key):
        note_start(path, key)
        return 2 * key

    def brief(path, key):
        import time

        note_start(path, key)
        time.sleep(0.05)
        return 2 * key

    def printing(path, key):
        note_start(path, key)
        for line in range(200):
            print(f"task {key} says line {line}")
        return 2 * key

    def large(path, key, text):
        note_start(path, key)
        return text[::-1]

    def raising(path, key):
        note_start(path, key)
        raise ValueError(f"task {key} raises")

    def sleeping(path, key, seconds):
        import time

        note_start(path, key)
        time.sleep(seconds)
        return 2 * key

    def parental(path, key):
        import subprocess
        import time

        note_start(path, key)
        child = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
        grandchild = child.stdout.readline().strip()
        time.sleep(0.2)
        subprocess.run(["kill", grandchild, str(child.pid)], check=True)
        child.wait()
        return 2 * key

    def poisonous(path, key):
        import os
        import signal

        note_start(path, key)
        os.kill(os.getpid(), signal.SIGKILL)

    def once(path, key):
        import time

        note_start(path, key)
        time.sleep(0.1)
        result = 2 * key
        note(path, key, "end")
        return result

    def overlong(path, key):
        import time

        note_start(path, key)
        time.sleep(600)

    def stubborn(path, key):
        import time

        note_start(path, key)
        while True:
            try:
                time.sleep(600)
            except BaseException:
                continue

    def unwanted(path, key):
        import subprocess

        note_start(path, key)
        subprocess.run(["sh", "-c", "sleep 4 & wait"], check=True)
        return 2 * key

    made = (
        tiny, brief, printing, large, raising, sleeping, parental, poisonous,
        once, overlong, stubborn, unwanted,
    )  # fmt: skip
    return {function.__name__: function for function in made}


def _no_arguments(_key: int, _chance: random.Random) -> tuple[Any, ...]:
    return ()


def _text(key: int, _chance: random.Random) -> tuple[Any, ...]:
    return (f"{key:010d}" * (LARGE // 10),)


def _seconds(_key: int, chance: random.Random) -> tuple[Any, ...]:
    return (round(chance.uniform(2, 5), 2),)


def _is_double(task: Task, outcome: Outcome) -> bool:
    return outcome.error is None and outcome.value == 2 * task.key


def _is_reversed(task: Task, outcome: Outcome) -> bool:
    return outcome.error is None and outcome.value == task.arguments[0][::-1]


def _is_its_error(task: Task, outcome: Outcome) -> bool:
    return isinstance(outcome.error, ValueError) and str(outcome.error) == f"task {task.key} raises"


def _is_double_or_says_why_not(task: Task, outcome: Outcome) -> bool:
    """What must not start twice fails where nobody can tell how far it came; `losses` asks whether that is so."""
    return _is_double(task, outcome) or type(outcome.error) is TaskExecutionFailed


def _is_double_or_cancelled(task: Task, outcome: Outcome) -> bool:
    return _is_double(task, outcome) or isinstance(outcome.error, CancelledError)


def _is_out_of_time(_task: Task, outcome: Outcome) -> bool:
    return isinstance(outcome.error, TaskExecutionFailed) and "longer than" in str(outcome.error)


def _is_a_dead_worker(_task: Task, outcome: Outcome) -> bool:
    return isinstance(outcome.error, TaskExecutionFailed) and "worker" in str(outcome.error)


@dataclass(frozen=True)
class Kind:
    """What tasks of a kind do, and how to tell whether what came of one is what should."""

    name: str
    #: How many of a thousand tasks are of it.
    per_mille: int
    is_right: Callable[[Task, Outcome], bool] = _is_double
    arguments: Callable[[int, random.Random], tuple[Any, ...]] = _no_arguments
    #: Of the Executor that submits it.
    options: dict[str, Any] = field(default_factory=dict)
    #: The client changes its mind about them, at the latest after so long.
    cancelled_within_s: float | None = None

    @property
    def function(self) -> Callable[..., Any]:
        return _FUNCTIONS[self.name]


@dataclass(frozen=True)
class Task:
    """One task of the storm. ``key`` is its number in the schedule."""

    key: int
    kind: Kind
    arguments: tuple[Any, ...]
    #: When the client changes its mind about it.
    cancelled_after_s: float | None = None


_FUNCTIONS = functions()

KINDS = {
    kind.name: kind
    for kind in (
        Kind("tiny", 770),
        Kind("brief", 110),
        Kind("printing", 20),
        Kind("large", 2, _is_reversed, _text),
        Kind("raising", 20, _is_its_error),
        Kind("sleeping", 3, arguments=_seconds),
        Kind("parental", 6),
        Kind("poisonous", 1, _is_a_dead_worker, options={"max_retries": 2}),
        Kind("once", 60, _is_double_or_says_why_not, options={"max_retries": 0}),
        Kind("overlong", 1, _is_out_of_time, options={"timeout_s": 1.0}),
        Kind("stubborn", 1, _is_out_of_time, options={"timeout_s": 1.0}),
        Kind("unwanted", 5, _is_double_or_cancelled, cancelled_within_s=5.0),
    )
}
