"""The part `queue`: a million tasks that wait for an endpoint."""

from __future__ import annotations

import argparse
import time

from measuring import MEASURE, Prober, Processes, print_cpu, print_latencies, print_memory
from place import Place, disk_mb, place, twice

from farcall.wire import pack_buffers

TASKS_PER_REQUEST = 2000
RESULTS_PER_REQUEST = 1000
#: The last hundred thousand submits take no more than so much longer than the first.
SUBMIT_RATIO = 1.25


class Queue:
    """A million tasks for an endpoint that is offline; then it comes."""

    def __init__(self, here: Place, options: argparse.Namespace) -> None:
        self.here, self.count, self.pause_s = here, options.tasks, options.wait
        self.client = here.client
        self.function_id = self.client.register_function(twice)
        self.tenth = max(TASKS_PER_REQUEST, self.count // 10 // TASKS_PER_REQUEST * TASKS_PER_REQUEST)
        self.processes = Processes(here.roots)
        self.prober: Prober

    def run(self) -> bool:
        group_id, ratio = self.submit()
        self.prober.phase("waiting")
        time.sleep(self.pause_s)
        print(f"on disk: {disk_mb(self.here.service.home)}")
        print_memory(self.processes)
        self.prober.phase("draining")
        cpu, began = self.processes.cpu_s(), time.perf_counter()
        self.here.endpoint("start", "real")
        self.processes.roots["agent"] = [self.here.agent_pid()]
        self.drain(group_id)
        elapsed = time.perf_counter() - began
        print(f"drained {self.count:,} in {elapsed:.0f} s: {self.count / elapsed:,.0f} tasks/s")
        print_cpu("draining", cpu, self.processes.cpu_s(), self.count)
        self.prober.phase("drained")
        time.sleep(min(5.0, self.pause_s))
        quick = print_latencies(self.prober.stop(), ["submitting", "waiting", "draining", "drained"])
        print_memory(self.processes)
        self.processes.stop()
        return quick and ratio < SUBMIT_RATIO

    def submit(self) -> tuple[str, float]:
        """Submit all. Their group, and the CPU time of a task among the last by that of one among the first."""
        path, group_id = f"/v3/endpoints/{self.here.endpoint_id}/submit", None
        rates: list[tuple[float, float]] = []
        cpu, began = self.processes.cpu_s(), time.perf_counter()
        for first in range(0, self.count, TASKS_PER_REQUEST):
            values = range(first, min(first + TASKS_PER_REQUEST, self.count))
            body = {"tasks": {self.function_id: self.payloads(values)}}
            answer = self.client.transport.post(path, body | ({"task_group_id": group_id} if group_id else {}))
            if group_id is None:
                group_id = answer["task_group_id"]
                self.prober = self.probe(group_id, answer["tasks"][self.function_id][0])
            if values.stop % self.tenth == 0:
                now, used = time.perf_counter(), self.processes.cpu_s()
                cpu_us = print_cpu(f"submitting up to {values.stop:,}", cpu, used, self.tenth)
                rates.append((self.tenth / (now - began), cpu_us))
                print(f"  {self.tenth / (now - began):,.0f} tasks/s", flush=True)
                cpu, began = used, now
        assert group_id is not None
        ratio = rates[-1][1] / rates[0][1]
        print(
            f"the last {self.tenth:,} submits against the first: rate {rates[-1][0] / rates[0][0]:.2f}, "
            f"CPU a task {ratio:.2f}"
        )
        return group_id, ratio

    def payloads(self, values: range) -> list[str]:
        write = self.client.serializer.serialize_data
        no_keywords = write({})
        return [pack_buffers((write((value,)), no_keywords)) for value in values]

    def probe(self, group_id: str, task_id: str) -> Prober:
        routes = {
            MEASURE: "/v2/limits",
            "GET /v2/tasks": "/v2/tasks?limit=100",
            "GET /v2/tasks?state=running": "/v2/tasks?limit=100&state=running",
            "GET /v2/tasks/{id}": f"/v2/tasks/{task_id}",
            "GET /v2/endpoints/{id}/status": f"/v2/endpoints/{self.here.endpoint_id}/status",
            "GET /v2/taskgroup/{id}/results": f"/v2/taskgroup/{group_id}/results?limit=100",
        }
        prober = Prober(self.here.service, routes)
        prober.phase("submitting")
        return prober

    def drain(self, group_id: str) -> None:
        """Wait for all results, each of which has to be right, and to come once."""
        missing = bytearray(b"\1" * self.count)
        cursor, taken, to_say, said_at = 0, 0, self.tenth, time.perf_counter()
        while taken < self.count:
            answer = self.client.transport.get(
                f"/v2/taskgroup/{group_id}/results", params={"after": cursor, "limit": RESULTS_PER_REQUEST, "wait": 20}
            )
            for document in answer["results"]:
                value = self.client.serializer.deserialize(document["result"])
                assert value % 2 == 0 and missing[value // 2], f"a result is wrong or came twice: {document}"
                missing[value // 2] = 0
            cursor, taken = answer["cursor"], taken + len(answer["results"])
            if taken >= to_say:
                now = time.perf_counter()
                rate = (taken - to_say + self.tenth) / (now - said_at)
                print(f"  drained {taken:,}: {rate:,.0f} tasks/s; {disk_mb(self.here.service.home)}", flush=True)
                to_say, said_at = taken + self.tenth, now
        assert not any(missing), "a result did not come"


def queue(setting: str, options: argparse.Namespace) -> bool:
    with place(setting) as here:
        return Queue(here, options).run()
