"""Why a task has not ended yet, in words: for whoever asks about that one task."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, bindparam, select

from farcall.wire import TaskState
from farcall_webservice.extensions import Services
from farcall_webservice.fields import iso
from farcall_webservice.ledger import history
from farcall_webservice.models import Endpoint
from farcall_webservice.registration import is_online

#: A task that was written so recently is about to be sent.
SOON_S = 5.0
#: Of what an agent or a scheduler says, so much is repeated.
MOST_CHARACTERS = 500

_ENDPOINT = select(Endpoint).where(Endpoint.id == bindparam("id"))
_AT_THE_AGENT = (TaskState.WAITING_FOR_NODES, TaskState.WAITING_FOR_LAUNCH)


def reason(own: Services, task: Row[Any]) -> str:
    """A sentence or two about an unfinished task, whose whole row this is."""
    with own.database.reading() as connection:
        runner = connection.execute(_ENDPOINT, {"id": task.runner_id}).one_or_none()
        parent = None
        if runner is not None and runner.parent_id is not None:
            parent = connection.execute(_ENDPOINT, {"id": runner.parent_id}).one_or_none()
    if runner is None:
        return "Its endpoint is not known any more"
    silence = _silence(parent or runner)
    if task.state == TaskState.RECEIVED:
        return _before_the_queue(own, task, silence)
    if task.state == TaskState.WAITING_FOR_EP:
        is_started = parent is None or is_online(runner, time.time())
        return _on_the_queue(own, task, silence, is_started=is_started)
    if silence is not None:
        return f"{silence}. It has the task, and goes on with it as far as it can"
    return _running(task) if task.state == TaskState.RUNNING else _at_the_agent(own, task, runner.last_report or {})


_ON_THE_WAY = (TaskState.WAITING_FOR_EP,)
_NOT_SENT = (TaskState.RECEIVED, TaskState.WAITING_FOR_EP)


def _before_the_queue(own: Services, task: Row[Any], silence: str | None) -> str:
    held_since = own.ledger.held_since(task.id)
    if held_since is not None:
        first = silence or "Its endpoint is online"
        behind = _behind(own, task, _NOT_SENT)
        return f"{first}; enough waits on its queue, so that this task is kept back until there is room{behind}"
    if time.time() - task.created_at < SOON_S:
        return "It is about to be sent to the queue of its endpoint"
    return (
        f"The broker has not taken it since {iso(task.created_at)}: it is kept here, "
        "and sent as soon as the broker takes it"
    )


def _on_the_queue(own: Services, task: Row[Any], silence: str | None, *, is_started: bool) -> str:
    behind = _behind(own, task, _ON_THE_WAY)
    if silence is not None:
        return f"{silence}. The task waits on its queue{behind}"
    if not is_started:
        return "The endpoint is online, and starts a user endpoint for this task"
    return f"It waits on the queue of its endpoint, which is online{behind}"


def _at_the_agent(own: Services, task: Row[Any], report: Mapping[str, Any]) -> str:
    workers, idle = report.get("total_workers"), report.get("idle_workers")
    said = _shortened([text for text in _list(report.get("troubles")) if isinstance(text, str)])
    before = _behind(own, task, _AT_THE_AGENT)
    if workers == 0:
        blocks = [_block(block) for block in _list(report.get("blocks")) if isinstance(block, dict)]
        words = said or _shortened(blocks) or "it has not said yet whether a block was asked for"
        text = f"No worker is there yet: {words}{before}"
    elif isinstance(workers, int) and idle == 0:
        text = f"All {workers} workers of the endpoint are busy{before}"
    else:
        text = f"The endpoint has it, and is about to start it{before}"
    if workers != 0 and said:
        text += f". The endpoint says: {said}"
    note = next((str(change[2]) for change in reversed(history.read(task.history)) if len(change) > 2), "")
    return f"{text}. Before that: {note[:MOST_CHARACTERS]}" if note.startswith("attempt") else text


def _block(block: Mapping[str, Any]) -> str:
    text = f"block {block.get('id')} is {block.get('state')}"
    return f"{text} ({block['message']})" if block.get("message") else text


def _running(task: Row[Any]) -> str:
    # A history that has grown too long has no line of it.
    unnoted = (TaskState.RUNNING, task.changed_at)
    _, since, *note = next(
        (change for change in reversed(history.read(task.history)) if change[0] == TaskState.RUNNING), unnoted
    )
    return f"Running {note[0]} since {iso(float(since))}" if note else f"Running since {iso(float(since))}"


def _silence(endpoint: Row[Any]) -> str | None:
    """If nothing is heard of an endpoint: that, and since when."""
    if is_online(endpoint, time.time()):
        return None
    if endpoint.last_heartbeat_at is None:
        return f"The endpoint has registered at {iso(endpoint.registered_at)} and has not been heard of since"
    return f"The endpoint has been offline since {iso(endpoint.last_heartbeat_at)}"


def _behind(own: Services, task: Row[Any], states: tuple[TaskState, ...]) -> str:
    """How many are before it, counted as far as that is cheap."""
    most = own.ledger.MOST_COUNTED
    count = own.ledger.count_before(task, states)
    if not count:
        return ""
    return f", behind {f'more than {most:,}' if count > most else f'{count:,}'} others"


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _shortened(texts: list[str]) -> str:
    text = "; ".join(" ".join(text.split()) for text in texts)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
