"""A task's history as its row keeps it: a line a change, ``state seconds`` or ``state seconds note``."""

from __future__ import annotations

from collections.abc import Iterable

from farcall.wire import FINAL_STATES, TaskState, Transition
from farcall_webservice.ledger.values import REPORTABLE_STATES

#: Of a note so much is kept; of a history that has grown so long nothing more is, but its end.
MAX_NOTE_CHARACTERS = 2000
MAX_CHARACTERS = 50_000


def line(state: str, at: float, note: str = "") -> str:
    r"""One change.

    >>> line("running", 1.5), line("waiting-for-nodes", 2, "attempt 1 of 3 ended:\nkilled")
    ('running 1.500000\n', 'waiting-for-nodes 2.000000 attempt 1 of 3 ended: killed\n')
    """
    words = " ".join(storable(note[:MAX_NOTE_CHARACTERS]).split())
    return f"{state} {at:.6f} {words}\n" if words else f"{state} {at:.6f}\n"


def lines_of(transitions: Iterable[Transition]) -> list[str]:
    """What an agent may say of a task, in its order."""
    return [line(t.state, t.timestamp / 1e9, t.note) for t in transitions if t.state in REPORTABLE_STATES]


def read(history: str) -> list[list[str | float]]:
    r"""The changes in order of time, each ``[state, seconds]`` or ``[state, seconds, note]``; what came twice is once.

    The end comes last, whatever the clocks of those say who wrote down the rest. That a task is on its queue is written
    a moment later, and may come after it was taken from there: it was there by then.

    >>> read("received 1.0\nsuccess 2.0\nrunning 3.0\nrunning 3.0 on node n1\nreceived 1.0\n")
    [['received', 1.0], ['running', 3.0, 'on node n1'], ['success', 2.0]]
    >>> read("received 1.0\nwaiting-for-ep 1.05\nrunning 1.02\n")
    [['received', 1.0], ['waiting-for-ep', 1.02], ['running', 1.02]]
    """
    changes = [_parse(each) for each in history.splitlines()]
    # Nothing was said of the task before this was written: only then it is the first that is written.
    if [state for state, _, _ in changes[:2]] == [TaskState.RECEIVED, TaskState.WAITING_FOR_EP]:
        taken = [at for state, at, _ in changes if state in REPORTABLE_STATES and at >= changes[0][1]]
        state, at, note = changes[1]
        changes[1] = state, min([at, *taken]), note
    notes: dict[tuple[str, float], str] = {}
    for state, at, note in changes:
        notes[state, at] = notes.get((state, at)) or note
    # What has the same time stays in its order.
    ordered = sorted(notes, key=lambda key: (key[0] in FINAL_STATES, key[1]))
    return [[*key, notes[key]] if notes[key] else [*key] for key in ordered]


def _parse(text: str) -> tuple[str, float, str]:
    state, _, rest = text.partition(" ")
    seconds, _, note = rest.partition(" ")
    return state, float(seconds), note


def storable(text: str) -> str:
    """What no database takes, lone surrogates and NUL, in the way in which Python writes it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
