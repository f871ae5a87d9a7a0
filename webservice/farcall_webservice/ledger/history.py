"""A task's history as its row keeps it: a line a change, ``state seconds``."""

from __future__ import annotations


def line(state: str, at: float) -> str:
    """
    >>> line("running", 1.5)
    'running 1.500000\\n'
    """
    return f"{state} {at:.6f}\n"
