"""What a pod's status says of a block: its state, and the reason in the cluster's own words. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from farcall_endpoint.provider import BlockState

from .pods import CONTAINER

#: Waiting for one of these has no end.
_HOPELESS = frozenset({"ErrImageNeverPull", "InvalidImageName"})

#: With these a container waits because something was tried and failed; it is tried again.
_FAILING = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "RegistryUnavailable",
        "ImageInspectError",
        "SignatureValidationFailed",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "PreCreateHookError",
        "PreStartHookError",
        "PostStartHookError",
        "CrashLoopBackOff",
    }
)

#: A pod that is to end and has not, so long after the last moment that it had, is on a node that does not answer.
_LOST_AFTER_S = 30.0


@dataclass(frozen=True)
class Said:
    """A pod, in words."""

    state: BlockState
    words: str = ""
    #: What it waits for was tried and failed, and is tried again for a while.
    is_failing: bool = False
    #: A container has begun, so that there may be a log: its name.
    log_of: str | None = None


def read(pod: Mapping[str, Any], *, now: float) -> Said:
    """``now`` is the time of day, to know of a pod that is overdue."""
    status = pod.get("status", {})
    phase = status.get("phase")
    if phase == "Succeeded":
        return Said(BlockState.DONE, "exit code 0", log_of=CONTAINER)
    log_of = next((each["name"] for each in _containers(status) if _has_begun(each)), None)
    if phase == "Failed" or status.get("reason") == "NodeLost":
        return Said(BlockState.FAILED, _failure(pod), log_of=_ended_badly(status) or log_of)
    if _overdue_s(pod, now) > _LOST_AFTER_S:
        node = pod["spec"].get("nodeName", "?")
        return Said(BlockState.FAILED, f"the node {node} is lost: it does not answer, and was told to end the pod")
    if phase == "Running":
        return Said(BlockState.RUNNING, _where(pod), log_of=log_of)
    return _waiting(pod, log_of)


def _waiting(pod: Mapping[str, Any], log_of: str | None) -> Said:
    status = pod.get("status", {})
    for container in _containers(status):
        waiting = container.get("state", {}).get("waiting", {})
        reason = waiting.get("reason", "")
        words = _reason_and(reason, waiting.get("message"))
        if reason in _HOPELESS:
            return Said(BlockState.FAILED, _with_advice(words), log_of=log_of)
        if reason in _FAILING:
            return Said(BlockState.PENDING, _with_advice(words), is_failing=True, log_of=log_of)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Said(BlockState.PENDING, _reason_and(condition.get("reason", ""), condition.get("message")))
    node = pod.get("spec", {}).get("nodeName")
    return Said(BlockState.PENDING, f"being started on {node}" if node else "no node was chosen yet", log_of=log_of)


def _failure(pod: Mapping[str, Any]) -> str:
    status = pod.get("status", {})
    found = []
    reason = status.get("reason", "")
    if reason == "DeadlineExceeded":
        found.append("its walltime is over")
    elif reason or status.get("message"):
        found.append(_reason_and(reason, status.get("message")))
    found += [
        _reason_and(condition.get("reason", ""), condition.get("message"))
        for condition in status.get("conditions") or ()
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True"
    ]
    found += [words for container in _containers(status) if (words := _ending(container))]
    node = pod.get("spec", {}).get("nodeName")
    return f"{'; '.join(found) or 'it failed, and the cluster does not say why'}{f' (node {node})' if node else ''}"


def _ending(container: Mapping[str, Any]) -> str:
    ended = container.get("state", {}).get("terminated")
    if not ended or ended.get("exitCode") == 0:
        return ""
    where = "" if container.get("name") == CONTAINER else f"container {container.get('name')}: "
    reason, code = ended.get("reason", ""), ended.get("exitCode")
    if reason == "OOMKilled":
        return f"{where}killed, as it used more memory than it may (OOMKilled, exit code {code}); see max_mem"
    words = _with_advice(_reason_and("" if reason == "Error" else reason, ended.get("message")))
    return f"{where}exit code {code}{f': {words}' if words else ''}"


def _with_advice(words: str) -> str:
    if "runAsNonRoot" in words or "run_as_non_root" in words:
        return f"{words} (set user_id, or run_as_non_root to false)"
    return words


def _containers(status: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield from status.get("initContainerStatuses") or ()
    # Ours first, which matters most.
    yield from sorted(status.get("containerStatuses") or (), key=lambda each: each.get("name") != CONTAINER)


def _has_begun(container: Mapping[str, Any]) -> bool:
    state = container.get("state", {})
    return "running" in state or bool(state.get("terminated", {}).get("startedAt"))


def _ended_badly(status: Mapping[str, Any]) -> str | None:
    return next((each["name"] for each in _containers(status) if _ending(each) and _has_begun(each)), None)


def _where(pod: Mapping[str, Any]) -> str:
    node = pod.get("spec", {}).get("nodeName")
    return f"on {node}" if node else ""


def _reason_and(reason: str, message: str | None) -> str:
    return ": ".join(part for part in (reason, " ".join((message or "").split())) if part)


def _overdue_s(pod: Mapping[str, Any], now: float) -> float:
    due = pod.get("metadata", {}).get("deletionTimestamp")
    if not due:
        return 0.0
    return now - datetime.datetime.fromisoformat(due.replace("Z", "+00:00")).timestamp()
