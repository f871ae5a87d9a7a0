"""The parts `executors` and `endpoints`: hundreds of the ones and a thousand of the others at once."""

from __future__ import annotations

import argparse
import statistics
import time

from crowds import SimulatedEndpoints, executors_at_once
from measuring import MEASURE, Prober, Processes, print_cpu, print_latencies, print_memory
from place import place, twice

from farcall import Client, Executor


def executors(setting: str, options: argparse.Namespace) -> bool:
    """Hundreds of executors at once, in three processes."""
    with place(setting) as here:
        here.endpoint("start", "real")
        processes = Processes({**here.roots, "agent": [here.agent_pid()]})
        each = options.executors // 3
        for tasks in (1, options.tasks_each):
            cpu = processes.cpu_s()
            seconds = executors_at_once(
                here.service.environment, here.endpoint_id, processes=3, executors=each, tasks=tasks
            )
            print(
                f"{3 * each} executors of 3 processes with {tasks} tasks each: all results right; the processes took "
                + ", ".join(f"{one:.1f} s" for one in seconds)
            )
            print_cpu("that", cpu, processes.cpu_s(), 3 * each * tasks)
        print_memory(processes)
        processes.stop()
    return True


def endpoints(setting: str, options: argparse.Namespace) -> bool:
    """A thousand simulated endpoints beside a real one."""
    with place(setting) as here:
        here.endpoint("start", "real")
        processes = Processes({**here.roots, "agent": [here.agent_pid()]})
        client = here.client
        with Executor(here.endpoint_id, client=client) as executor:
            executor.submit(twice, 1).result(timeout=120)
            alone = _trips(executor, options.trips)
            routes = {
                MEASURE: "/v2/limits",
                "GET /v2/tasks": "/v2/tasks?limit=100",
                "GET /v2/endpoints/{id}/status": f"/v2/endpoints/{here.endpoint_id}/status",
                "GET /v2/endpoints": "/v2/endpoints",
            }
            prober = Prober(here.service, routes)
            began = time.perf_counter()
            crowd = SimulatedEndpoints(client.transport, options.endpoints, heartbeat_period_s=options.heartbeat_period)
            print(
                f"{options.endpoints} registrations: {options.endpoints / (time.perf_counter() - began):,.0f} a second"
            )
            with crowd.running():
                while not _all_online(client, crowd.ids[-50:]):
                    time.sleep(0.5)
                prober.phase("heartbeats")
                cpu, began = processes.cpu_s(), time.perf_counter()
                time.sleep(options.wait)
                used, seconds = processes.cpu_s(), time.perf_counter() - began
                shares = {role: (used[role] - cpu[role]) / seconds * 100 for role in cpu}
                print(
                    f"{options.endpoints} endpoints with a heartbeat each {options.heartbeat_period:g} s: CPU of "
                    + ", ".join(f"{role} {share:.0f} %" for role, share in shares.items())
                )
                prober.phase("tasks too")
                began = time.perf_counter()
                function_id = client.register_function(twice)
                total = _give_tasks(client, crowd.ids, function_id, options.tasks_each)
                print(
                    f"{total:,} tasks on {len(crowd.ids)} endpoints: "
                    f"{total / (time.perf_counter() - began):,.0f} tasks/s, all results right"
                )
                beside = _trips(executor, options.trips)
            print(
                f"a task of the real endpoint, p50: {statistics.median(alone):.1f} ms alone, "
                f"{statistics.median(beside):.1f} ms beside the others' heartbeats"
            )
            quick = print_latencies(prober.stop(), ["heartbeats", "tasks too"])
        print_memory(processes)
        processes.stop()
    return quick


def _trips(executor: Executor, count: int) -> list[float]:
    times = []
    for value in range(count):
        began = time.perf_counter()
        assert executor.submit(twice, value).result(timeout=120) == 2 * value
        times.append((time.perf_counter() - began) * 1e3)
    return times


def _all_online(client: Client, endpoint_ids: list[str]) -> bool:
    return all(client.get_endpoint_status(each)["status"] == "online" for each in endpoint_ids)


def _give_tasks(client: Client, endpoint_ids: list[str], function_id: str, each: int) -> int:
    """Submit to all of them, and wait for what comes back: simulated endpoints return their arguments."""
    group_id, expected = None, {}
    for number, endpoint_id in enumerate(endpoint_ids):
        payloads = [f"{number}.{place}" for place in range(each)]
        body = {"tasks": {function_id: payloads}} | ({"task_group_id": group_id} if group_id else {})
        answer = client.transport.post(f"/v3/endpoints/{endpoint_id}/submit", body)
        group_id = answer["task_group_id"]
        expected.update(zip(answer["tasks"][function_id], payloads, strict=True))
    total, cursor = len(expected), 0
    while expected:
        answer = client.transport.get(
            f"/v2/taskgroup/{group_id}/results", params={"after": cursor, "limit": 1000, "wait": 20}
        )
        cursor = answer["cursor"]
        for document in answer["results"]:
            assert expected.pop(document["task_id"]) == document["result"], f"a result is wrong: {document}"
    return total
