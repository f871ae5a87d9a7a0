"""What endpoints say of themselves with each heartbeat, and what follows from it."""

from __future__ import annotations

import itertools
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import Row, Table, bindparam, select, update

from farcall import wire
from farcall_webservice import foreign
from farcall_webservice.children import Children
from farcall_webservice.database import Database
from farcall_webservice.dispatch import Dispatcher
from farcall_webservice.ledger import Ledger
from farcall_webservice.models import Endpoint

log = logging.getLogger(__name__)

#: A message younger than this may still be on its way; see Ledger.unaccounted.
GRACE_S = 10.0
#: The code of a task that its endpoint has lost, and that is not sent again.
LOST = "TASK_LOST"
#: A task is lost when two reports so far apart say so: its result may be in the hands of a collector that is slow, or
#: has just connected, where nobody can count it.
BELIEVED_AFTER_S = 8.0
#: So many endpoints' lost tasks are remembered.
ENDPOINTS_REMEMBERED = 1000
#: A user endpoint that says goodbye may take so long until it is gone.
GOODBYE_S = 1.5

assert isinstance(Endpoint.__table__, Table)
_ENDPOINTS = Endpoint.__table__
_SENDER = select(_ENDPOINTS).where(_ENDPOINTS.c.id == bindparam("endpoint"))
_HEARD_FROM = (
    update(_ENDPOINTS)
    .where(_ENDPOINTS.c.id == bindparam("endpoint"))
    .values(
        last_heartbeat_at=bindparam("now"),
        heartbeat_period=bindparam("period"),
        last_report=bindparam("report", type_=_ENDPOINTS.c.last_report.type),
    )
)


class UnknownEndpoint(LookupError):
    """A report came from an endpoint that nobody has registered."""


class Reports:
    """Notes reports. ``tell`` is called with the groups that have news."""

    def __init__(
        self,
        database: Database,
        ledger: Ledger,
        dispatcher: Dispatcher,
        children: Children,
        tell: Callable[[Collection[str]], None],
    ) -> None:
        self._database = database
        self._ledger = ledger
        self._dispatcher = dispatcher
        self._children = children
        self._tell = tell
        #: By endpoint: what its reports say is lost, and since when they do.
        self._missing: OrderedDict[str, dict[str, float]] = OrderedDict()

    def note(self, endpoint_id: str, reports: Sequence[wire.StatusReport]) -> None:
        """Note an endpoint's reports, which came in this order. Raises :class:`UnknownEndpoint`."""
        with self._database.reading() as connection:
            sender = connection.execute(_SENDER, {"endpoint": endpoint_id}).one_or_none()
        if sender is None:
            raise UnknownEndpoint(f"nobody has registered endpoint {endpoint_id}")
        failures = [report for report in reports if foreign.start_error(report) is not None]
        for report in failures:
            self._note_failure(sender, report)
        heartbeats = [report for report in reports if foreign.start_error(report) is None]
        if heartbeats:
            self._note_heartbeats(sender, heartbeats)

    def _note_failure(self, sender: Row[Any], report: wire.StatusReport) -> None:
        text = foreign.start_error(report) or ""
        log.warning("endpoint %s reports a failure: %s", sender.id, text)
        # What is reported in the parent's name says the same with less, and nothing of the parent itself.
        if sender.parent_id is not None:
            self._tell(self._children.start_failed(sender.id, text))

    def _note_heartbeats(self, sender: Row[Any], reports: Sequence[wire.StatusReport]) -> None:
        latest = reports[-1]
        period = latest.global_state.get("heartbeat_period", foreign.USUAL_PERIOD_S)
        if not isinstance(period, int | float):
            period = foreign.USUAL_PERIOD_S
        said = {
            "endpoint": sender.id,
            "now": time.time(),
            "period": 0.0 if foreign.says_goodbye(latest) else float(period),
            "report": dict(latest.global_state),
        }
        with self._database.writing() as connection:
            connection.execute(_HEARD_FROM, said)
        for report in reports:
            if report.task_statuses:
                self._ledger.record_states(sender.id, report.task_statuses)
        self._dispatcher.heed(sender.id, held=False)
        if foreign.takes_batches(sender.details) and not foreign.says_goodbye(latest):
            self._repeat_cancel(sender.id)
        if latest.holds is not None:
            self._reconcile(sender.id, latest.holds)
        elif sender.parent_id is not None:
            self._note_child(sender, reports)
        elif foreign.is_core(sender.details):
            if not foreign.says_goodbye(latest):
                self._look_after_children(sender.id)
        else:
            self._reconcile_idle(sender, latest)

    def _repeat_cancel(self, endpoint_id: str) -> None:
        """Tell an agent once more that tasks of its were cancelled; the first word may have been lost."""
        if self._ledger.has_unconfirmed(endpoint_id, older_than_s=GRACE_S):
            self._dispatcher.command(endpoint_id, wire.Command("cancel"))

    def _note_child(self, child: Row[Any], reports: Sequence[wire.StatusReport]) -> None:
        latest = reports[-1]
        for goodbye, _ in itertools.groupby(reports, foreign.says_goodbye):
            self._children.heard(child.id, goodbye=goodbye)
        if foreign.says_goodbye(latest):
            self._dispatcher.look_after(child.id, in_s=GOODBYE_S)
        else:
            self._reconcile_idle(child, latest)

    def _look_after_children(self, parent_id: str) -> None:
        for child_id in self._children.with_unfinished_tasks(parent_id):
            self._tell(self._children.give_up(child_id))
            self._dispatcher.look_after(child_id)

    def _reconcile(self, endpoint_id: str, holds: Sequence[str]) -> None:
        """Send again what the agent should have but neither it nor its queue has, nor a result that is on its way."""
        unaccounted = self._ledger.unaccounted(endpoint_id, holds, grace_s=GRACE_S)
        lost = list(unaccounted.taken)
        if unaccounted.sent and self._dispatcher.queued_messages(endpoint_id) == 0:
            lost += unaccounted.sent
        if lost and self._dispatcher.queued_results():
            return
        believed = self._believed(endpoint_id, lost)
        if believed:
            self._send_again(endpoint_id, believed, were_taken=False)

    def _believed(self, endpoint_id: str, lost: Sequence[str]) -> list[str]:
        """Those of these lost tasks that an earlier report has missed too."""
        now = time.monotonic()
        before = self._missing.pop(endpoint_id, {})
        since = {task_id: before.get(task_id, now) for task_id in lost}
        believed = [task_id for task_id in lost if now - since[task_id] >= BELIEVED_AFTER_S]
        # Once it was sent again, it has to be missed anew.
        self._missing[endpoint_id] = {each: since[each] for each in lost if now - since[each] < BELIEVED_AFTER_S}
        if not self._missing[endpoint_id]:
            del self._missing[endpoint_id]
        while len(self._missing) > ENDPOINTS_REMEMBERED:
            self._missing.popitem(last=False)
        return believed

    def _reconcile_idle(self, runner: Row[Any], latest: wire.StatusReport) -> None:
        """The same for an endpoint that does not say what it holds, but has now said twice that it has nothing to do.

        A task that it was sent before it said so the first time, and whose result has not come since, is lost.
        """
        if not (foreign.is_idle(runner.last_report) and foreign.is_idle(latest.global_state)):
            return
        since_s = time.time() - runner.last_heartbeat_at
        if since_s < (runner.heartbeat_period or 0.0) / 2:
            # They have waited for a collector, and the later one says no more than the earlier one.
            return
        lost = self._ledger.unaccounted(runner.id, (), grace_s=since_s + GRACE_S)
        if lost.sent and not self._dispatcher.queued_messages(runner.id) and not self._dispatcher.queued_results():
            self._send_again(runner.id, lost.sent, were_taken=True)

    def _send_again(self, endpoint_id: str, task_ids: Sequence[str], *, were_taken: bool) -> None:
        hopeless = self._ledger.hopeless(task_ids, were_taken=were_taken)
        if hopeless:
            log.warning("endpoint %s has lost %d tasks that are not sent again, and fail", endpoint_id, len(hopeless))
            failures = [
                wire.Result(task_id, reason, error_details=wire.ErrorDetails(LOST, reason))
                for task_id, reason in hopeless.items()
            ]
            self._tell(self._ledger.record_results(None, failures))
        again = [task_id for task_id in task_ids if task_id not in hopeless]
        # As many as there is room for: the others are found missing with a later report.
        outgoing = self._ledger.resend(again, at_most=self._dispatcher.room_to_send_again)
        if outgoing:
            count = sum(len(batch.tasks) for batch in outgoing)
            log.warning("sending %d tasks to endpoint %s again: it does not hold them", count, endpoint_id)
            self._dispatcher.send_again(outgoing)
