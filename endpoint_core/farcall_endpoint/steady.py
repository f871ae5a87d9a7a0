"""Durations of Parsl's by a clock that nobody sets.

Parsl measures with the time of day. Where that jumps ahead, every heartbeat is overdue and all nodes are given up;
where it jumps back, blocks are looked after again, and heartbeats sent, only when the old time has come.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any


class _SteadyTime:
    """The module ``time``, whose time of day goes on from now as if nobody could set it."""

    def __init__(self) -> None:
        self._ahead_s = time.time() - time.monotonic()

    def time(self) -> float:
        return self._ahead_s + time.monotonic()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def steady(*modules: ModuleType) -> None:
    """Let these modules, which use ``time.time()`` for nothing else, measure by it."""
    for module in modules:
        module.time = _SteadyTime()  # type: ignore[attr-defined]
