"""What must be so when the storm is over. Each check returns what is not, in sentences."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import psutil
from tests.storm.client import Seen, StormClient, of_document, wrong_with
from tests.storm.marks import Marks
from tests.storm.report import Struck
from tests.storm.settings import World, wait_until

from farcall import Client

#: For queues and journals to become empty after the last result.
SETTLE_S = 90.0
#: So many seconds in which nothing is broken an agent may take to hear that a task is cancelled, and start it
#: meanwhile. The service tells it at once; where that is lost, again when 10 s have passed and a heartbeat comes, every
#: 2 s. The rest is for connections that have to be made again on a busy machine.
UNTOLD_S = 20.0


def every_task_has_its_outcome(client: StormClient) -> list[str]:
    """The ledger, asked over REST: each task once, with what should have come of it, and no task besides."""
    found: list[str] = []
    by_id = {seen.task_id: seen for seen in client.seen if seen.task_id is not None}
    found += [
        f"{seen.task.kind.name} task {seen.task.key} was never accepted: {seen.fault}"
        for seen in client.seen
        if seen.task_id is None and not seen.was_cancelled_early
    ]
    if len(by_id) < sum(seen.task_id is not None for seen in client.seen):
        found.append("two tasks of the client have the same id")
    recorded: Counter[str] = Counter()
    for group_id in client.groups():
        listed = client.client.get_task_group(group_id)["tasks"]
        strangers = {str(task["id"]) for task in listed} - by_id.keys() - client.others
        if strangers:
            found.append(f"the ledger has {len(strangers)} tasks that nobody submitted: {sorted(strangers)[:5]}")
        for document in _results(client.client, group_id):
            task_id = document["task_id"]
            recorded[task_id] += 1
            if task_id in by_id:
                found += _compare(client.client, by_id[task_id], document)
    found += [f"task {task_id} has {count} outcomes" for task_id, count in recorded.items() if count > 1]
    for task_id, seen in by_id.items():
        if task_id not in recorded:
            document = client.client.transport.get(f"/v2/tasks/{task_id}")
            found.append(f"{seen.task.kind.name} task {seen.task.key} ({task_id}) has no outcome: {document}"[:1000])
        elif seen.fault is None:
            found.append(f"{seen.task.kind.name} task {seen.task.key} ({task_id}) has ended, and its future has not")
    return found


def _results(client: Client, group_id: str) -> Iterator[dict[str, Any]]:
    cursor = 0
    while True:
        answer = client.transport.get(f"/v2/taskgroup/{group_id}/results", params={"after": cursor})
        if not answer["results"]:
            return
        yield from answer["results"]
        cursor = answer["cursor"]


def _compare(client: Client, seen: Seen, document: dict[str, Any]) -> list[str]:
    in_ledger = wrong_with(seen.task, of_document(document, client.serializer.deserialize))
    if (document["status"] == "cancelled") != seen.was_cancelled and not seen.was_cancelled_early:
        return [f"task {seen.task.key} ({seen.task_id}) is {document['status']}, the client saw something else"]
    if in_ledger:
        return [f"{in_ledger} ({seen.task_id}, history {document['history']})"]
    if seen.fault:
        return [f"the client saw {seen.fault}, the ledger has what is right"]
    return []


def starts(seen: Iterable[Seen], marks: Marks) -> list[str]:
    """Of those that must not start twice none did, and no value is of a task that never started."""
    found = []
    counts = marks.counts()
    for each in seen:
        count = counts[each.task.key]
        if count > 1 and each.task.kind.options.get("max_retries") == 0:
            found.append(f"{each.task.kind.name} task {each.task.key} ({each.task_id}) was started {count} times")
        if count == 0 and each.has_value:
            found.append(f"{each.task.kind.name} task {each.task.key} ({each.task_id}) has a value and never started")
    return found


def what_is_cancelled_stays_so(seen: Iterable[Seen], marks: Marks, struck: Sequence[Struck]) -> list[str]:
    """No task starts, or starts again, when the agent must have heard that it is cancelled."""
    found = []
    for each in seen:
        started = marks.starts.get(each.task.key)
        if each.cancelled_at is None or not started:
            continue
        calm_s = _calm_s(each.cancelled_at, started[-1], struck)
        if calm_s > UNTOLD_S:
            found.append(
                f"{each.task.kind.name} task {each.task.key} ({each.task_id}) was started {calm_s:.0f} s after it was "
                f"cancelled, and {started[-1] - each.cancelled_at:.0f} s with faults"
            )
    return found


def _calm_s(began: float, ended: float, struck: Iterable[Struck]) -> float:
    """Seconds from one moment to another in which no fault lasted."""
    calm_s = 0.0
    reached = began
    for fault in sorted(struck, key=lambda fault: fault.began_at):
        calm_s += max(0.0, min(fault.began_at, ended) - reached)
        reached = max(reached, fault.over_at)
    return calm_s + max(0.0, ended - reached)


def nothing_is_queued(world: World) -> list[str]:
    """Not on the broker, and not in the agent's journal."""
    queued: dict[str, int] = {}

    def empty() -> bool:
        queued.clear()
        # A report of the agent, which it sends all the time, may be on its way.
        queued.update({name: count for name, count in world.queued().items() if count and name != "heartbeats"})
        return not queued

    found = [] if wait_until(empty, SETTLE_S) else [f"messages are left on queues: {queued}"]
    journal = world.agent_directory / "journal.sqlite"
    held = 0

    def unheld() -> bool:
        nonlocal held
        with contextlib.closing(sqlite3.connect(journal)) as db:
            # 2 is the state of those that were sent.
            (held,) = db.execute("SELECT count(*) FROM tasks WHERE state != 2").fetchone()
        return held == 0

    if not wait_until(unheld, SETTLE_S):
        found.append(f"the agent's journal holds {held} tasks")
    return found


def nobody_is_lost(world: World) -> list[str]:
    """No process has lost whoever looks after it, while everything still runs."""
    known = {process.pid for part in world.parts.values() if (process := part.process) is not None}
    strays: list[str] = []

    def none() -> bool:
        strays[:] = [
            _described(process)
            for process in psutil.process_iter()
            if _parent_of(process) == 1 and process.pid not in known and process.pid != os.getpid()
        ]
        return not strays

    return [] if wait_until(none, 30) else [f"processes that nobody looks after: {strays}"]


def stopped_in_order(world: World) -> list[str]:
    """Stop everything, and see that it goes when asked and leaves nothing behind."""
    found = [f"{part.name} did not stop when asked" for part in reversed(list(world.parts.values())) if not part.stop()]
    allowed = {1, os.getpid()}
    left: list[str] = []

    def gone() -> bool:
        ours = {child.pid for child in psutil.Process().children()}
        left[:] = [
            _described(process)
            for process in psutil.process_iter()
            if process.pid not in allowed | ours and process.status() != psutil.STATUS_ZOMBIE
        ]
        return not left

    if not wait_until(gone, 30):
        found.append(f"processes are left: {left}")
    return found


def _parent_of(process: psutil.Process) -> int:
    try:
        return process.ppid() if process.status() != psutil.STATUS_ZOMBIE else 0
    except psutil.NoSuchProcess:
        return 0


def _described(process: psutil.Process) -> str:
    try:
        return f"{process.pid} (child of {process.ppid()}): {' '.join(process.cmdline())[:200]}"
    except psutil.NoSuchProcess:
        return str(process.pid)
