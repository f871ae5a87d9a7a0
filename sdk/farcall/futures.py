"""The future that an Executor hands out, and what becomes of it in a forked child."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any, NoReturn

from farcall.errors import FarcallError
from farcall.outcomes import Outcome

log = logging.getLogger(__name__)


class FarcallFuture(Future[Any]):
    """A task's result to come; ``task_id`` is None until the service has accepted it. Can also be awaited."""

    def __init__(self, task_id: str | None = None) -> None:
        super().__init__()
        self.task_id = task_id

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> NoReturn:
        # dill would send a copy that nobody ever gives its result to.
        raise TypeError("a future cannot be sent to an endpoint: send its result()")

    def settle(self, outcome: Outcome) -> None:
        """Give it its end; the first one stays. Never raises: other futures may wait for their turn."""
        try:
            if outcome.error is not None:
                self.set_exception(outcome.error)
            else:
                self.set_result(outcome.value)
        except InvalidStateError:
            pass
        except BaseException:  # what the class Future lets through of its callbacks: SystemExit and the like
            log.exception("a callback of task %s raised", self.task_id)


def abandon_in_child(futures: Iterable[FarcallFuture]) -> None:
    """In a forked child: end its copies of the parent's futures, for which nothing here will ever bring a result.

    They are made anew first: another thread of the parent may have held a future's lock, and what the parent wanted
    to be called back for is not the child's to do.
    """
    for future in futures:
        future.__init__(future.task_id)  # type: ignore[misc]
        future.set_exception(
            FarcallError(
                f"task {future.task_id} was submitted before this process ({os.getpid()}) was forked: "
                "its result goes to the parent process"
            )
        )
