"""What the agent reports of itself: who is there to work, what is to do, which tasks it has."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from farcall.wire import StatusReport, TaskState, Transition

from .config import EndpointConfig
from .engine import Load
from .supervisor import Fleet

#: Task id -> the state it is in now.
Changes: TypeAlias = Mapping[str, TaskState]

#: A task is spoken of when it has been here for so long; a burst of short ones costs nothing.
SPOKEN_OF_AFTER_S = 1.0

#: Transitions in one report; the others come with the next, a second later.
MOST_TRANSITIONS = 5000


def report(
    endpoint_id: str,
    config: EndpointConfig,
    *,
    instance: str,
    fleet: Fleet,
    load: Load,
    finished: int,
    holds: Sequence[str],
    changes: Changes,
) -> StatusReport:
    """The report of a running agent. The names are Globus Compute's where the notion is."""
    engine = config.engine
    state: dict[str, Any] = {
        "heartbeat_period": config.heartbeat_period_s,
        "active": True,
        "instance": instance,
        "managers": len(fleet.managers),
        "active_managers": len(fleet.active),
        "total_workers": load.workers,
        "idle_workers": max(0, load.workers - load.calls),
        "pending_tasks": load.waiting,
        "outstanding_tasks": load.waiting + load.handed_over,
        "total_tasks": finished + load.waiting + load.handed_over,
        "scaling_enabled": True,
        "min_blocks": engine.min_blocks,
        "max_blocks": engine.max_blocks,
        "max_workers_per_node": engine.max_workers_per_node,
        "nodes_per_block": engine.nodes_per_block,
        "engine_type": "HighThroughputExecutor",
        "provider_type": config.provider.type,
        "blocks": [{"id": block_id, "state": text} for block_id, text in (fleet.blocks or {}).items()],
    }
    now = time.time_ns()
    transitions = {task_id: [Transition(now, state.value, "endpoint")] for task_id, state in changes.items()}
    return StatusReport(endpoint_id, state, transitions, holds)


def farewell(endpoint_id: str, *, instance: str, holds: Sequence[str]) -> StatusReport:
    """The last report of an agent that ends: offline from now on."""
    state = {"heartbeat_period": 0, "active": False, "instance": instance, "total_workers": 0}
    return StatusReport(endpoint_id, state, holds=holds)
