"""What only Globus Compute's own endpoint needs: how it is recognised, and the messages that it takes.

Such an endpoint, a *core endpoint*, runs no task. It is commanded to start *user endpoints* on its machine, one for
each user and configuration, and those take tasks and send results. ``children`` keeps account of them. Before version
3 an endpoint had no children, and took its tasks from its own queue; so does one today that registers no template.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from farcall import wire
from farcall_webservice import queues

#: A core endpoint refuses a command whose time is more than 180 s off; so the broker need not keep it for longer.
COMMAND_EXPIRES_S = 170
#: Of a program that does not say how often it sends heartbeats.
USUAL_PERIOD_S = 30.0
#: From this version of Globus Compute on every endpoint is a core endpoint.
ALWAYS_CORE_SINCE = 4


@dataclass(frozen=True)
class Identity:
    """Who submits, as an endpoint wants to know it."""

    id: str
    name: str


def takes_batches(details: Mapping[str, Any]) -> bool:
    """Whether an endpoint's registration metadata announce an agent of ours. All others are foreign."""
    return wire.ACCEPTS_TASK_BATCH in (details.get("accepts") or ())


def is_core(details: Mapping[str, Any]) -> bool:
    """Whether the metadata are those of a core endpoint."""
    if takes_batches(details):
        return False
    major = str(details.get("endpoint_version") or "").partition(".")[0]
    by_version = major.isdecimal() and int(major) >= ALWAYS_CORE_SINCE
    return bool(details.get("user_config_template") or details.get("multi_user")) or by_version


def child_id(endpoint_id: str, user_id: str, user_endpoint_config: Mapping[str, Any]) -> str:
    """The id of a user endpoint: the same for the same endpoint, user and configuration."""
    configuration = json.dumps(user_endpoint_config, sort_keys=True, separators=(",", ":"))
    return str(uuid.uuid5(uuid.UUID(endpoint_id), f"{user_id}\n{configuration}"))


def start_command(
    parent_id: str, child_id: str, user: Identity, user_endpoint_config: Mapping[str, Any], connection_url: str
) -> bytes:
    """The command to start a user endpoint, or to renew the credentials of one that runs."""
    infos = queues.queue_infos(child_id, connection_url)
    del infos["command_queue_info"]
    identity = {
        "sub": user.id,
        "id": user.id,
        "username": user.name,
        "name": user.name,
        "email": user.name,
        "identity_type": "login",
        "status": "used",
        "last_authentication": int(time.time()),
    }
    command = {
        "command": "cmd_start_endpoint",
        "globus_username": user.name,
        "globus_effective_identity": user.id,
        "globus_identity_set": [identity],
        "args": [],
        "kwargs": {
            "name": f"uep.{parent_id}.{child_id}",
            "user_opts": dict(user_endpoint_config),
            # From what the submitter runs, the default template would make an environment with packages from the
            # Internet. It runs in the endpoint's own environment instead.
            "user_runtime": {},
            "amqp_creds": {"endpoint_id": child_id, **infos},
        },
    }
    return json.dumps(command).encode()


def task_message(task: wire.BatchedTask, code: str) -> tuple[bytes, dict[str, Any]]:
    """One task as a message of its own, with the headers that it needs."""
    headers = {
        "function_uuid": task.function_id,
        "task_uuid": task.task_id,
        "resource_specification": json.dumps(task.options.get("resource_specification")),
        "result_serializers": list(task.options.get("result_serializers") or ()),
    }
    return wire.encode(wire.Task(task.task_id, code + task.payload)), headers


def start_error(report: wire.StatusReport) -> str | None:
    """Why a user endpoint did not start, if that is what the report says."""
    error = report.global_state.get("error")
    return None if error is None else str(error)


def must_only_wait(start_error: str) -> bool:
    """Whether a start failed only because a killed predecessor's file of its process id is still fresh."""
    return "Another instance of this endpoint is running" in start_error


def knows_no_cancelled(user_agent: str) -> bool:
    """Whether a client is one of Globus Compute's, which waits for ever for a task whose state it does not know.

    >>> knows_no_cancelled("globus-sdk-py-4.9.1/globus-compute-sdk-4.19.0"), knows_no_cancelled("farcall/0.1.0")
    (True, False)
    """
    return any(name in user_agent.lower() for name in ("globus", "funcx"))


def says_goodbye(report: wire.StatusReport) -> bool:
    """Whether the report is the last one of a process that ends."""
    return report.global_state.get("active") is False or report.global_state.get("heartbeat_period") == 0


def is_idle(global_state: Mapping[str, Any] | None) -> bool:
    """Whether a report says that nothing runs or waits there. One that says nothing of tasks does not."""
    if not global_state:
        return False
    return all(global_state.get(name) == 0 for name in ("outstanding_tasks", "pending_tasks"))
