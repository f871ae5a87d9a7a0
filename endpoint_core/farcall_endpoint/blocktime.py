"""How much time the tasks of a node need, and how much its block has left."""

from __future__ import annotations

import time
from typing import Any

from farcall.errors import ConfigurationError

from .failures import TooLittleTime
from .guards import node_timeout_s

#: Calls that do not fit into the rest of the block's time are given back so often at most: they may come again at once.
GIVING_BACK_S = 1.0


class BlockTime:
    """Which calls of Parsl's still fit into a block that ends at ``ends_at``, in seconds since 1970, or never.

    Not for several threads at a time.
    """

    def __init__(self, ends_at: float | None) -> None:
        # By a clock that nobody sets.
        self._ends = None if ends_at is None else time.monotonic() + ends_at - time.time()
        self._default_timeout_s = _node_timeout_s()
        self._untimely: list[dict[str, Any]] = []
        self._given_back = float("-inf")

    def fits(self, task: dict[str, Any]) -> bool:
        needs_s = _needs_s(task)
        return self._ends is None or needs_s is None or time.monotonic() + needs_s <= self._ends

    def limit_of(self, task: dict[str, Any] | None) -> float | None:
        """Seconds after which the task is to be stopped; None if it may run for ever."""
        own = _said_of(task).get("timeout_s")
        return self._default_timeout_s if own is None else float(own)

    def put_aside(self, task: dict[str, Any]) -> None:
        """This one does not fit."""
        self._untimely.append(task)

    def to_be_given_back(self) -> list[tuple[dict[str, Any], TooLittleTime]]:
        """Those that were put aside, with what to say of each; none if some were given back only just now."""
        now = time.monotonic()
        if not self._untimely or now < self._given_back + GIVING_BACK_S:
            return []
        self._given_back = now
        rest_s = (self._ends or now) - now
        untimely, self._untimely = self._untimely, []
        return [
            (task, TooLittleTime(f"the task may take {_needs_s(task):g} s, and this block ends in {rest_s:.0f} s"))
            for task in untimely
        ]


def _node_timeout_s() -> float | None:
    try:
        return node_timeout_s()
    except ConfigurationError:
        # Each task says so.
        return None


def _needs_s(task: dict[str, Any] | None) -> float | None:
    """How much time there must be for it: a limit that is the same for all tasks does not say that each needs it."""
    said = _said_of(task)
    needs_s = said.get("needs_s", said.get("timeout_s"))
    return None if needs_s is None else float(needs_s)


def _said_of(task: dict[str, Any] | None) -> dict[str, Any]:
    return ((task or {}).get("context") or {}).get("farcall") or {}
