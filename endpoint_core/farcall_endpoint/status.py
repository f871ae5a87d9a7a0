"""What the agent reports of itself: who is there to work, what is to do, which tasks it has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from farcall.wire import StatusReport, Transition

from .config import EndpointConfig
from .fleet import Fleet
from .held import Load

#: Task id -> what has become of it since the last report.
Changes: TypeAlias = Mapping[str, Sequence[Transition]]

#: Where a task waits is told when it has waited there for so long; a burst of short ones costs nothing.
SPOKEN_OF_AFTER_S = 0.9

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
    troubles: Sequence[str] = (),
) -> StatusReport:
    """The report of a running agent. The names are Globus Compute's where the notion is.

    ``blocks`` lists those asked for that have not ended, and the last that failed, with the system's words about each;
    ``troubles`` says in sentences what keeps tasks from running, the most important first.
    """
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
        "blocks": [dict(block) for block in fleet.blocks],
        "troubles": [*troubles, *fleet.troubles],
    }
    return StatusReport(endpoint_id, state, dict(changes), holds)


def now(config: EndpointConfig, fleet: Fleet, load: Load, *, finished: int, troubles: Sequence[str]) -> dict[str, Any]:
    """What the agent's own file says, for commands on the same machine: see ``nowfile``."""
    return {
        "blocks": [dict(block) for block in fleet.blocks],
        "min_blocks": config.engine.min_blocks,
        "max_blocks": config.engine.max_blocks,
        "workers": load.workers,
        "busy_workers": min(load.workers, load.calls),
        "waiting_tasks": load.waiting,
        "handed_over_tasks": load.handed_over,
        "finished_tasks": finished,
        "troubles": list(troubles),
    }


def farewell(endpoint_id: str, *, instance: str, holds: Sequence[str]) -> StatusReport:
    """The last report of an agent that ends: offline from now on."""
    state = {"heartbeat_period": 0, "active": False, "instance": instance, "total_workers": 0}
    return StatusReport(endpoint_id, state, holds=holds)
