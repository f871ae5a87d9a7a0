"""What a task prints, read piece by piece."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from farcall.ids import UUIDLike, as_id
from farcall.transport import Transport
from farcall.wire import STREAMS

log = logging.getLogger(__name__)

#: The longest that the service keeps one request waiting, and how much longer we wait for its answer.
_WAIT_S = 25
_PATIENCE_S = 20


def read_log(
    transport: Transport,
    task_id: UUIDLike,
    stream: str,
    after: int,
    *,
    wait_s: float = 0,
    retry_for_s: float | None = None,
) -> dict[str, Any]:
    """One piece: ``text`` from the character ``start`` on, ``next`` to go on with, and whether it has ``ended``."""
    if stream not in STREAMS:
        raise ValueError(f"there is no stream {stream!r}: a task has {' and '.join(STREAMS)}")
    if isinstance(after, bool) or not isinstance(after, int) or after < 0:
        raise ValueError(f"after is a number of characters, 0 or more, not {after!r}")
    found: dict[str, Any] = transport.get(
        f"/v2/tasks/{as_id(task_id, 'task_id')}/log",
        params={"stream": stream, "after": after, "wait": round(wait_s, 3)},
        timeout_s=wait_s + _PATIENCE_S,
        retry_for_s=retry_for_s,
    )
    return found


def follow_log(transport: Transport, task_id: UUIDLike, stream: str, after: int) -> Iterator[str]:
    """The texts as they come, until the task has ended. A service that is away for a while is waited for."""
    while True:
        piece = read_log(transport, task_id, stream, after, wait_s=_WAIT_S, retry_for_s=math.inf)
        if piece["start"] > after:
            log.warning("%d characters of the %s of task %s were not kept", piece["start"] - after, stream, task_id)
        if piece["text"]:
            yield piece["text"]
        after = piece["next"]
        if piece["ended"]:
            return
