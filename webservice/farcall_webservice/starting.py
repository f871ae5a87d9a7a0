"""Carries out the starts of user endpoints that `children` decides on, in the dispatcher's thread.

Of a child's queue only tasks are taken off that have ended. All others stay, and what its last life has lost is sent
again. So a start that is broken off can be carried out once more, and until it has been it is not forgotten.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from farcall.wire import BatchedTask
from farcall_webservice import foreign, queues
from farcall_webservice.catalogue import Catalogue
from farcall_webservice.children import Children, Circumstances, Start
from farcall_webservice.ledger import Ledger
from farcall_webservice.publisher import Publisher

log = logging.getLogger(__name__)

#: Of what was lost, so much is sent before everybody else has a turn.
TASKS_PER_TURN = 500
#: A queue that holds so many tasks is not looked through where their number says that none was lost.
MANY = 1000
#: What has failed so often, each time over a new connection, is left to the next look at the child.
MOST_TRIES = 5


@dataclass
class _Step:
    """A start, or tasks that it has yet to send."""

    child_id: str
    start: Start | None
    tasks: Sequence[BatchedTask]
    #: How many messages were on the queue at the look that led to the start.
    messages: int = 0
    tries: int = 0


class Starter:
    """Looks at user endpoints and starts them. For one thread."""

    def __init__(
        self, children: Children, ledger: Ledger, catalogue: Catalogue, tell: Callable[[Collection[str]], None]
    ) -> None:
        """``tell`` is called with the groups that have news when tasks were given up."""
        self._children = children
        self._ledger = ledger
        self._catalogue = catalogue
        self._tell = tell
        self._steps: deque[_Step] = deque()

    @property
    def has_work(self) -> bool:
        return bool(self._steps)

    def look(self, publisher: Publisher, child_id: str, *, publishing: bool) -> None:
        """See whether a child is there; if it has to be started, :meth:`step` does so.

        Before its tasks are published, if any are about to be: they are not among those that it may have lost.
        """
        queue = publisher.look_at(queues.tasks_queue(child_id))
        start = self._children.start(
            child_id, Circumstances(int(queue.consumer_count), publishing, publisher.is_settled)
        )
        if start is not None:
            self._steps.append(_Step(child_id, start, start.tasks, int(queue.message_count)))
            self._tell(start.news)

    def step(self, publisher: Publisher) -> None:
        """Do a bounded part of what there is to do."""
        if not self._steps:
            return
        step = self._steps[0]
        step.tries += 1
        try:
            rest = self._lost(publisher, step) if step.start is not None else step.tasks
            if rest is not None:
                self._send(publisher, step, rest[:TASKS_PER_TURN])
        except Exception:
            if step.tries >= MOST_TRIES:
                log.error("user endpoint %s could not be started in %d tries", step.child_id, step.tries)
                self._steps.popleft()
            raise
        self._steps.popleft()
        if rest is not None and len(rest) > TASKS_PER_TURN:
            self._steps.append(_Step(step.child_id, None, rest[TASKS_PER_TURN:]))

    def _lost(self, publisher: Publisher, step: _Step) -> Sequence[BatchedTask] | None:
        """Those tasks of a start that are not on the queue; None if the child has come back by itself."""
        queue = queues.tasks_queue(step.child_id)
        now = publisher.look_at(queue)
        if now.consumer_count:
            log.info("user endpoint %s is there again; it is not started", step.child_id)
            return None
        if not now.message_count:
            return step.tasks
        if step.messages == len(step.tasks) > MANY:
            return ()
        waiting = publisher.look_through(queue, lambda ids: self._ended({*ids} - {task.task_id for task in step.tasks}))
        return [task for task in step.tasks if task.task_id not in waiting]

    def _ended(self, task_ids: Collection[str]) -> set[str]:
        unfinished = {row.id for row in self._ledger.tasks(list(task_ids)) if row.completed_at is None}
        return {*task_ids} - unfinished

    def _send(self, publisher: Publisher, step: _Step, tasks: Sequence[BatchedTask]) -> None:
        queue = queues.tasks_queue(step.child_id)
        if tasks:
            for message in self._catalogue.messages(self._catalogue.runner(step.child_id), tasks):
                publisher.publish(queue, message.body, message.headers)
        if step.start is not None:
            commands = queues.commands_queue(step.start.parent_id)
            publisher.publish_command(commands, step.start.command, foreign.COMMAND_EXPIRES_S)
        publisher.confirm()
