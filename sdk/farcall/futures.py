"""The future that an Executor hands out, and what becomes of it in a forked child."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, Any, NoReturn

from farcall.cancelling import Answers, canceller_for, is_cancelled
from farcall.errors import FarcallError, TaskExecutionFailed, described
from farcall.outcomes import Outcome
from farcall.wire import TaskState

if TYPE_CHECKING:
    from farcall.transport import Transport

log = logging.getLogger(__name__)


class FarcallFuture(Future[Any]):
    """A task's result to come; ``task_id`` is None until the service has accepted it. Can also be awaited.

    To the class Future it is pending until it ends, so that it can be cancelled at any time.
    """

    def __init__(self, task_id: str | None = None, transport: Transport | None = None) -> None:
        super().__init__()
        self.task_id = task_id
        self._transport = transport
        self._sent = task_id is not None
        self._ended_as: TaskState | None = None
        self._said = ""
        self._unnotified = True

    def __await__(self) -> Generator[Any, None, Any]:
        import asyncio

        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> NoReturn:
        # dill would send a copy that nobody ever gives its result to.
        raise TypeError("a future cannot be sent to an endpoint: send its result()")

    # -- for whoever holds it --

    def cancel(self) -> bool:
        """Cancel the task wherever it is; a running one is stopped with everything that it started.

        True if that is how it ends, False if it had ended otherwise. Once the task is sent, the service decides: this
        waits for its answer, and raises :class:`~farcall.errors.ServiceUnavailable`, with nothing changed, when there
        is none for some ten seconds. Before that, and where an event loop runs, the future is cancelled at once, and
        the service is told in the background. For many futures :meth:`farcall.Client.cancel` is quicker.
        """
        if self.done():
            return self.cancelled()
        task_id, transport = self.task_id, self._transport
        if task_id is None or transport is None or _in_event_loop():
            return self.cancel_at_once()
        return self.hear(canceller_for(transport).ask([task_id])[task_id])

    def running(self) -> bool:
        """Whether it is sent and has not ended; :meth:`state` says more."""
        return self._sent and not self.done()

    def state(self) -> TaskState:
        """Where the task is: asks the service, unless it has ended.

        It is ``received`` too while it waits here to be sent. A task that succeeded stays so where its result could not
        be read.
        """
        if self.done():
            return TaskState.CANCELLED if self.cancelled() else self._ended_as or TaskState.FAILED
        document = self._ask()
        return TaskState(document["status"]) if document else TaskState.RECEIVED

    def reason(self) -> str:
        """Why it is where it is, in words, such as what it waits for; an empty text where nothing is to be said."""
        if self.cancelled():
            return self._said or "it was cancelled"
        if self.done():
            error = self.exception()
            if isinstance(error, TaskExecutionFailed):
                return error.remote_data.strip()
            return "" if error is None else described(error)
        document = self._ask()
        if document:
            return str(document.get("reason") or "")
        return "it is being sent to the service" if self._sent else "it waits here to be sent to the service"

    def _ask(self) -> dict[str, Any] | None:
        """What the service says of it; None where it does not know it yet."""
        if self.task_id is None or self._transport is None:
            return None
        document: dict[str, Any] = self._transport.get(f"/v2/tasks/{self.task_id}")
        return document

    # -- for whoever brings it its end --

    def begin(self) -> bool:
        """Its request goes out now. False if it should not, because it is cancelled."""
        self._sent = True
        return not self.done()

    def settle(self, outcome: Outcome) -> None:
        """Give it its end; the first one stays. Never raises: other futures may wait for their turn."""
        try:
            if outcome.state is TaskState.CANCELLED:
                self.cancel_here(outcome.reason)
                return
            self._ended_as = outcome.state
            if outcome.error is not None:
                self.set_exception(outcome.error)
            else:
                self.set_result(outcome.value)
        except InvalidStateError:
            pass
        except BaseException:  # what the class Future lets through of its callbacks: SystemExit and the like
            log.exception("a callback of task %s raised", self.task_id)

    def hear(self, said: dict[str, Any]) -> bool:
        """What the service answered to the wish to cancel it: whether it is cancelled."""
        return is_cancelled(said) and self.cancel_here(str(said.get("reason") or ""))

    def cancel_here(self, reason: str = "") -> bool:
        """It ends as cancelled, and who waits for it learns it. False if it had ended otherwise."""
        if not self.done():
            self._said = reason
        try:
            return super().cancel()
        finally:
            # Of several threads one takes it out.
            if self.cancelled() and vars(self).pop("_unnotified", False):
                self.set_running_or_notify_cancel()

    def cancel_at_once(self) -> bool:
        """End as cancelled here, without a request; the service hears of it as soon as it knows the task."""
        cancelled = self.cancel_here()
        # The id is set before the submitter looks whether it is cancelled: one of the two tells the service.
        if cancelled and self.task_id is not None and self._transport is not None:
            canceller_for(self._transport).tell([self.task_id])
        return cancelled


def _in_event_loop() -> bool:
    """Whether waiting here would keep all coroutines of this thread waiting."""
    asyncio = sys.modules.get("asyncio")
    if asyncio is None:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def cancel_all(futures: Iterable[FarcallFuture], transport: Transport, *, wait: bool = True) -> Answers:
    """Cancel many in as few requests as can be; what the service says of each that it has.

    Without ``wait`` as :meth:`FarcallFuture.cancel_at_once`, and it has said nothing yet.
    """
    sent: dict[str, list[FarcallFuture]] = {}
    for future in futures:
        if future.task_id is None:
            # Its id may come in this moment; it is cancelled here all the same.
            future.cancel_at_once()
        elif wait or not future.done():
            sent.setdefault(future.task_id, []).append(future)
    if not sent:
        return {}
    if not wait:
        for future in (future for several in sent.values() for future in several):
            future.cancel_here()
        canceller_for(transport).tell(sent)
        return {}
    answers = canceller_for(transport).ask(sent)
    for task_id, said in answers.items():
        for future in sent[task_id] if said["cancelled"] else ():
            future.hear(said)
    return answers


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
