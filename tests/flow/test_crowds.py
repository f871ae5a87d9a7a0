"""Many executors at once, and many endpoints: the small form of what `benchmarks/load` measures."""

from __future__ import annotations

import os
import time

from crowds import SimulatedEndpoints, executors_at_once
from running import RunningService, running_endpoint

from farcall import Client

ENDPOINTS, TASKS_EACH = 40, 5


def test_executors_of_several_processes_get_their_own_results_all_at_once(service: RunningService) -> None:
    with running_endpoint(service, f"executors-{os.getpid()}") as endpoint:
        executors_at_once(service.environment, endpoint.id, processes=2, executors=15, tasks=4)


def test_many_endpoints_take_their_tasks_and_are_online(service: RunningService) -> None:
    client = Client(service_url=service.url, token=service.token)
    crowd = SimulatedEndpoints(client.transport, ENDPOINTS, heartbeat_period_s=15.0, share=20)
    function_id = client.register_function(len)
    group_id, expected = None, {}

    with crowd.running():
        for endpoint_id in crowd.ids:
            payloads = [f"{endpoint_id} {number}" for number in range(TASKS_EACH)]
            body = {"tasks": {function_id: payloads}} | ({"task_group_id": group_id} if group_id else {})
            answer = client.transport.post(f"/v3/endpoints/{endpoint_id}/submit", body)
            group_id = answer["task_group_id"]
            expected.update(zip(answer["tasks"][function_id], payloads, strict=True))
        results, cursor = {}, 0
        while len(results) < len(expected):
            answer = client.transport.get(
                f"/v2/taskgroup/{group_id}/results", params={"after": cursor, "limit": 1000, "wait": 20}
            )
            assert answer["results"], f"{len(expected) - len(results)} results did not come"
            cursor = answer["cursor"]
            results |= {document["task_id"]: document["result"] for document in answer["results"]}
        # A simulated endpoint answers each task with its arguments.
        assert results == expected
        deadline = time.monotonic() + 60
        # Each has told its workers in a heartbeat of its own.
        while not all(client.get_endpoint_status(each)["details"].get("total_workers") for each in crowd.ids):
            assert time.monotonic() < deadline, "a heartbeat did not come"
            time.sleep(0.1)
    assert {client.get_endpoint_status(each)["status"] for each in crowd.ids} == {"online"}
