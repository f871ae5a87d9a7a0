"""Ids in the order of time: UUIDs of version 7 (RFC 9562).

What is new stands at the end of an index, so that writing it costs the same however much there is already. Random ids
would each go to a place of their own among millions. Python has such ids of its own from 3.14 on.
"""

from __future__ import annotations

import os
import threading
import time

#: Of version 7 within the first 64 bits, of the variant within the last.
_VERSION, _VARIANT = 0x7000, 1 << 63
_RANDOM = (1 << 62) - 1


class _Steps:
    """The time in steps of a quarter of a microsecond: milliseconds, and twelve bits after them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def take(self, count: int) -> int:
        """The first of so many that nobody has. They may run ahead of the clock for as long as making ids takes."""
        now = (time.time_ns() << 12) // 1_000_000
        with self._lock:
            first = max(now, self._last + 1)
            self._last = first + count - 1
        return first


_steps = _Steps()


def new_id() -> str:
    """As text; greater than all that this process has made before."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """So many, in their order."""
    first = _steps.take(count)
    random = os.urandom(8 * count)
    return [_text(first + place, int.from_bytes(random[8 * place : 8 * place + 8])) for place in range(count)]


def _text(steps: int, random: int) -> str:
    high = (steps >> 12) << 16 | _VERSION | steps & 0xFFF
    digits = f"{high << 64 | _VARIANT | random & _RANDOM:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
