"""Requests that wait for something to tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.waiting import TooManyWaiting

Found = TypeVar("Found")


def wait_for(ids: str | Sequence[str], wait_s: float, look: Callable[[], Found]) -> Found:
    """What ``look`` finds, as soon as that is something or the time is over.

    ``ids`` are the group, or the groups and tasks, whose news may change it. No database connection is held meanwhile.
    """
    wait_s = min(wait_s, services().config.max_wait_s)
    named = [ids] if isinstance(ids, str) else ids
    if not wait_s:
        return look()
    deadline = time.monotonic() + wait_s
    try:
        while True:
            with services().waiting.listen(*named) as news:
                # News before anything could have come: the service is going down and holds nobody any more.
                going_down = news.is_set()
                found = look()
                if found or going_down or not news.wait(max(0.0, deadline - time.monotonic())):
                    return found
    except TooManyWaiting as error:
        raise ApiError(
            429,
            "TOO_MANY_WAITING",
            "Too many requests are waiting for results here: ask again in a moment",
            {"Retry-After": "1"},
        ) from error
