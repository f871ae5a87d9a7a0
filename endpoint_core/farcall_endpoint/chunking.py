"""How many tasks should travel to a worker in one call.

A call costs about a millisecond however many tasks it holds, so short tasks travel together; but what travels together
is also lost together and waits for each other, so long tasks travel alone. Pure decisions, nothing here acts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: How much work one call should be. Long enough that a call's own millisecond does not count, short enough that nobody
#: notices having waited for it.
AIM_S = 0.030

#: However short the tasks are: a lost call means that all of its tasks run again.
MOST_TASKS = 200

#: However small their number is: a call's payload passes through several processes as one piece.
MOST_BYTES = 4 * 1024 * 1024


def estimate(earlier: float | None, sample: float) -> float:
    """What to expect of a function's run time after one more observation: it rises at once and falls slowly.

    One slow call among many quick ones should make us careful for a while; one quick among slow ones proves little.

    >>> estimate(None, 0.5)
    0.5
    >>> estimate(0.1, 2.0)
    2.0
    >>> estimate(1.0, 0.5)
    0.9
    """
    return sample if earlier is None else max(sample, 0.8 * earlier + 0.2 * sample)


def tasks_per_call(expected_s: float | None, *, waiting: int, free_calls: int) -> int:
    """How many of the ``waiting`` tasks of one function go into the next call, if ``free_calls`` can be made now.

    A function that nobody has seen begins with one; what is there is spread over all who are free.

    >>> tasks_per_call(None, waiting=1000, free_calls=4)
    1
    >>> tasks_per_call(0.001, waiting=1000, free_calls=4)
    30
    >>> tasks_per_call(0.000_01, waiting=1000, free_calls=4)
    200
    >>> tasks_per_call(0.000_01, waiting=10, free_calls=4)
    3
    >>> tasks_per_call(60.0, waiting=1000, free_calls=4)
    1
    """
    if expected_s is None:
        return 1
    wanted = MOST_TASKS if expected_s * MOST_TASKS <= AIM_S else int(AIM_S / expected_s)
    spread = math.ceil(waiting / max(free_calls, 1))
    return max(1, min(wanted, spread, MOST_TASKS))


def within_bytes(sizes: Sequence[int], *, most: int = MOST_BYTES) -> int:
    """How many of the first tasks, by the sizes of their payloads, fit into one call; one always does.

    >>> within_bytes([10, 10, 10], most=25)
    2
    >>> within_bytes([100, 1], most=25)
    1
    """
    total = 0
    for position, size in enumerate(sizes):
        total += size
        if total > most:
            return max(1, position)
    return len(sizes)
