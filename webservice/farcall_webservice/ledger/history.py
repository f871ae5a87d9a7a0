"""A task's history as its row keeps it: a line a change, ``state seconds`` or ``state seconds note``."""

from __future__ import annotations

from collections.abc import Iterable

from farcall.wire import FINAL_STATES, Transition
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

    The end comes last, whatever the clocks of those say who wrote down the rest.

    >>> read("received 1.0\nsuccess 2.0\nrunning 3.0\nrunning 3.0 on node n1\nreceived 1.0\n")
    [['received', 1.0], ['running', 3.0, 'on node n1'], ['success', 2.0]]
    """
    notes: dict[tuple[str, float], str] = {}
    for each in history.splitlines():
        state, _, rest = each.partition(" ")
        seconds, _, note = rest.partition(" ")
        key = state, float(seconds)
        notes[key] = notes.get(key) or note
    ordered = sorted(notes, key=lambda key: (key[0] in FINAL_STATES, key[1]))
    return [[*key, notes[key]] if notes[key] else [*key] for key in ordered]


def storable(text: str) -> str:
    """What no database takes, lone surrogates and NUL, in the way in which Python writes it."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
