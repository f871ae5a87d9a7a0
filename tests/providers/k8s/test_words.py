"""What is said of pods in every state that a cluster tells of, with statuses written after the API's documents."""

from __future__ import annotations

from typing import Any

import pytest

from farcall_endpoint.provider import BlockState
from farcall_provider_k8s.words import Said, read

NOW = 1_700_000_000.0


def pod(
    phase: str = "Pending", *, deleted: str | None = None, node: str | None = "n1", **status: Any
) -> dict[str, Any]:
    metadata = {"name": "p"} | ({"deletionTimestamp": deleted} if deleted else {})
    spec = {"nodeName": node} if node else {}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, **status}}


def waiting(reason: str, message: str | None = None, *, key: str = "containerStatuses") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return pod(**{key: [{"name": "block", "state": state}]})


def ended(code: int, reason: str = "Error", *, name: str = "block", **more: Any) -> dict[str, Any]:
    terminated = {"exitCode": code, "reason": reason, "startedAt": "2023-11-14T22:13:20Z", **more}
    return {"name": name, "state": {"terminated": terminated}}


def test_a_pod_that_no_node_takes_waits_and_says_why() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient cpu.",
    }

    said = read(pod(node=None, conditions=[condition]), now=NOW)

    assert (said.state, said.words) == (
        BlockState.PENDING,
        "Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",
    )


def test_a_pod_that_nobody_has_looked_at_says_so() -> None:
    assert read(pod(node=None), now=NOW) == Said(BlockState.PENDING, "no node was chosen yet")


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("ErrImagePull", BlockState.PENDING),
        ("ImagePullBackOff", BlockState.PENDING),
        ("CreateContainerConfigError", BlockState.PENDING),
        ("RunContainerError", BlockState.PENDING),
        ("ErrImageNeverPull", BlockState.FAILED),
        ("InvalidImageName", BlockState.FAILED),
    ],
)
def test_a_container_that_cannot_start_says_why(reason: str, state: BlockState) -> None:
    said = read(waiting(reason, "the reason"), now=NOW)

    assert said.state is state
    assert said.words == f"{reason}: the reason"
    assert said.is_failing is (state is BlockState.PENDING)


def test_an_image_that_wants_to_be_root_is_told_of_with_what_to_do() -> None:
    said = read(waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root"), now=NOW)

    assert said.words.endswith("image will run as root (set user_id, or run_as_non_root to false)")


def test_a_container_that_is_being_made_is_no_failure() -> None:
    said = read(waiting("ContainerCreating"), now=NOW)

    assert said == Said(BlockState.PENDING, "being started on n1")


def test_a_running_pod_says_where() -> None:
    running = {"name": "block", "state": {"running": {}}}

    assert read(pod("Running", containerStatuses=[running]), now=NOW) == Said(
        BlockState.RUNNING, "on n1", log_of="block"
    )


def test_a_pod_that_ended_well_is_done() -> None:
    assert read(pod("Succeeded"), now=NOW).state is BlockState.DONE


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"containerStatuses": [ended(3)]}, "exit code 3 (node n1)"),
        (
            {"containerStatuses": [ended(137, "OOMKilled")]},
            "killed, as it used more memory than it may (OOMKilled, exit code 137); see max_mem (node n1)",
        ),
        (
            {"containerStatuses": [ended(128, "StartError", message='exec: "bash": not found in $PATH')]},
            'exit code 128: StartError: exec: "bash": not found in $PATH (node n1)',
        ),
        (
            {"reason": "Evicted", "message": "The node was low on resource: memory."},
            "Evicted: The node was low on resource: memory. (node n1)",
        ),
        ({"reason": "DeadlineExceeded", "message": "Pod was active"}, "its walltime is over (node n1)"),
        (
            {"reason": "NodeShutdown", "message": "Node is shutting down"},
            "NodeShutdown: Node is shutting down (node n1)",
        ),
        (
            {
                "conditions": [
                    {
                        "type": "DisruptionTarget",
                        "status": "True",
                        "reason": "PreemptionByScheduler",
                        "message": "a pod",
                    }
                ],
                "containerStatuses": [ended(143)],
            },
            "PreemptionByScheduler: a pod; exit code 143 (node n1)",
        ),
        (
            {"initContainerStatuses": [ended(1, name="fetch")]},
            "container fetch: exit code 1 (node n1)",
        ),
        ({}, "it failed, and the cluster does not say why (node n1)"),
    ],
)
def test_a_pod_that_failed_says_why(status: dict[str, Any], words: str) -> None:
    said = read(pod("Failed", **status), now=NOW)

    assert (said.state, said.words) == (BlockState.FAILED, words)


def test_the_log_is_that_of_the_container_that_failed() -> None:
    status = {"initContainerStatuses": [ended(1, name="fetch")], "containerStatuses": []}

    assert read(pod("Failed", **status), now=NOW).log_of == "fetch"


def test_a_node_that_is_called_lost_has_lost_its_block() -> None:
    said = read(pod("Running", reason="NodeLost", message="Node n1 which was running pod p is unresponsive"), now=NOW)

    assert said.state is BlockState.FAILED
    assert "NodeLost: Node n1 which was running pod p is unresponsive" in said.words


@pytest.mark.parametrize(("after_s", "state"), [(10, BlockState.RUNNING), (31, BlockState.FAILED)])
def test_a_pod_that_does_not_end_when_told_to_is_on_a_lost_node(after_s: int, state: BlockState) -> None:
    said = read(pod("Running", deleted="2023-11-14T22:13:20Z"), now=NOW + after_s)

    assert said.state is state
    if state is BlockState.FAILED:
        assert said.words == "the node n1 is lost: it does not answer, and was told to end the pod"
