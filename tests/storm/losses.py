"""Which tasks that must not start twice may have been lost: those for which a fault can be named that can have done it.

Such a task fails where its worker, manager, interchange or agent ended while it may have been running. That somebody
else was hit, the network, the broker or the service, is no reason: the agent's journal knows what it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.storm.client import Seen
from tests.storm.marks import Marks
from tests.storm.report import Struck

from farcall_webservice.ledger.dispatching import NEVER_ARRIVED, NOT_TWICE

#: Faults that can end a task on a worker, and for how many seconds afterwards they still can. A manager that was
#: killed or stopped is given up when it has said nothing for 8 s (heartbeat_threshold), and its workers with it;
#: others are noticed at once, and what they have started ends with them.
AGENT_SIDE = {
    "kill agent": 5.0,
    "stop agent": 12.0,
    "power off agent": 5.0,
    "kill interchange": 10.0,
    "stop interchange": 12.0,
    "kill manager": 12.0,
    "stop manager": 12.0,
    "kill worker": 3.0,
    "stop worker": 5.0,
}
#: The agent writes no result down while it lasts.
FULL = "fill disk of agent"
#: From a worker to the agent's journal a result takes some milliseconds, and longer on a busy machine.
DELIVERY_S = 3.0
#: The agent hands over no more of them than it has workers free, of which there are two in each of two blocks. With one
#: fault some may be lost, and then those that were handed over before the first loss was noticed.
MOST_PER_FAULT = 8
#: The service says this of a task that the agent had and has no more. No fault of the storm takes anything out of the
#: agent's journal, so it is never true.
_SAID_BY_THE_SERVICE = (NOT_TWICE, NEVER_ARRIVED)


def of_once(seen: Iterable[Seen]) -> list[Seen]:
    """Those that must not start twice and ended without a value."""
    return [
        each
        for each in seen
        if each.task.kind.options.get("max_retries") == 0 and each.ended_at is not None and not each.has_value
    ]


def unexplained(seen: Iterable[Seen], marks: Marks, struck: Sequence[Struck]) -> list[str]:
    """The losses that no fault explains, in sentences."""
    found = []
    blamed = {fault.planned.number: 0 for fault in struck}
    for each in of_once(seen):
        computed = "had computed its result and " if marks.ends.get(each.task.key) else ""
        name = f"{each.task.kind.name} task {each.task.key} ({each.task_id}) {computed}failed"
        began, ended = _at_the_agent(each, marks, struck)
        to_blame = [fault for fault in struck if _can_have_hit(fault, began, ended)]
        if any(text in each.said for text in _SAID_BY_THE_SERVICE):
            found.append(
                f"{name}, as the service takes it for lost, though the agent's disk loses nothing: {each.said}"
            )
        elif not to_blame:
            found.append(f"{name} without a fault on the agent's side that can have done it: {each.said}")
        else:
            one = min(to_blame, key=lambda fault: blamed[fault.planned.number])
            blamed[one.planned.number] += 1
            if blamed[one.planned.number] > MOST_PER_FAULT:
                found.append(
                    f"{name}, and each fault that can have done it has done so to {MOST_PER_FAULT}: {each.said}"
                )
    return found


def _at_the_agent(seen: Seen, marks: Marks, struck: Iterable[Struck]) -> tuple[float, float]:
    """From when until when the agent's side must have been hit for this task to be lost."""
    starts, ends = marks.starts.get(seen.task.key, ()), marks.ends.get(seen.task.key, ())
    assert seen.ended_at is not None
    if not starts:
        return seen.submitted_at, seen.ended_at
    if not ends:
        # It may have hung in a worker that was stopped.
        return starts[0], seen.ended_at
    until = ends[0] + DELIVERY_S
    for fault in sorted(struck, key=lambda fault: fault.began_at):
        if fault.planned.fault == FULL and fault.began_at <= until:
            until = max(until, fault.over_at + DELIVERY_S)
    return starts[0], min(until, seen.ended_at)


def _can_have_hit(fault: Struck, began: float, ended: float) -> bool:
    afterwards_s = AGENT_SIDE.get(fault.planned.fault)
    return (
        afterwards_s is not None
        and fault.victim is not None
        and fault.began_at <= ended
        and fault.over_at + afterwards_s >= began
    )
