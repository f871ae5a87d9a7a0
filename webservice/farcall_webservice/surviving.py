"""Threads that must survive whatever happens: what fails is logged, and tried again after a pause."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0


def keep_at(
    work: Callable[[], None], *, explain: Callable[[Exception], str | None], wait: Callable[[float], bool]
) -> None:
    """Do the work until it returns, or until ``wait`` does not want it tried again after so many seconds.

    ``explain`` says what is behind an error that is to be expected, and of any other nothing.
    """
    pause = FIRST_PAUSE_S
    while True:
        started = time.monotonic()
        try:
            work()
            return
        except Exception as error:
            if time.monotonic() - started > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            explanation = explain(error)
            if explanation is not None:
                log.warning("%s; trying again in %.1f s", explanation, pause)
            else:
                log.exception("the work failed; trying again in %.1f s", pause)
        if not wait(pause):
            return
        pause = min(2 * pause, LONGEST_PAUSE_S)
