"""Many endpoints that only seem to be there, and many executors at once, for tests of what a service bears."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from kombu import Connection, Consumer, Exchange, Message, Producer, Queue

from farcall import wire
from farcall.transport import Transport

#: Every simulated endpoint says so of itself.
PYTHON_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
TIMEOUT_S = 300


class SimulatedEndpoints:
    """Endpoints that registered over HTTP, take their tasks, answer each with its arguments, and send heartbeats.

    One thread and a connection for each ``share`` of them: what a service sees of that many agents, without their
    processes.
    """

    def __init__(self, transport: Transport, count: int, *, heartbeat_period_s: float, share: int = 250) -> None:
        self._period_s = heartbeat_period_s
        registrations = [transport.post("/v3/endpoints", _registration(number)) for number in range(count)]
        self.ids: list[str] = [answer["endpoint_id"] for answer in registrations]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._be, args=(registrations[start : start + share],), daemon=True)
            for start in range(0, count, share)
        ]
        self.failure: BaseException | None = None

    @contextlib.contextmanager
    def running(self) -> Iterator[SimulatedEndpoints]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join(timeout=30)
            assert self.failure is None, f"a simulated endpoint failed: {self.failure!r}"

    def _be(self, registrations: Sequence[dict[str, object]]) -> None:
        try:
            _Share(registrations, self._period_s, self._stopping).run()
        except BaseException as error:
            self.failure = error
            raise


class _Share:
    """Some of the endpoints, in one thread."""

    def __init__(self, registrations: Sequence[dict[str, object]], period_s: float, stopping: threading.Event) -> None:
        self._registrations = {str(answer["endpoint_id"]): answer for answer in registrations}
        self._by_queue = {_queue_of(answer): endpoint_id for endpoint_id, answer in self._registrations.items()}
        self._period_s = period_s
        self._stopping = stopping
        self._received: list[tuple[str, Message]] = []

    def run(self) -> None:
        some = next(iter(self._registrations.values()))
        url = some["task_queue_info"]["connection_url"]  # type: ignore[index]
        with Connection(url) as connection:
            channel = connection.channel()
            channel.basic_qos(0, 100, False)
            self._producer = Producer(connection.channel())
            consumers = [self._consumer(channel, name) for name in self._by_queue]
            for consumer in consumers:
                consumer.consume()
            # Not all in the same moment, as real ones would not be.
            ids = list(self._registrations)
            began = time.monotonic()
            apart_s = min(self._period_s / len(ids), 0.01)
            due = deque((began + apart_s * place, each) for place, each in enumerate(ids))
            while not self._stopping.is_set():
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=min(0.2, max(0.001, due[0][0] - time.monotonic())))
                self._answer()
                while due[0][0] <= time.monotonic():
                    at, endpoint_id = due.popleft()
                    self._report(endpoint_id)
                    due.append((at + self._period_s, endpoint_id))

    def _consumer(self, channel: object, name: str) -> Consumer:
        endpoint_id = self._by_queue[name]
        return Consumer(
            channel,
            [Queue(name, durable=True)],
            on_message=lambda message: self._received.append((endpoint_id, message)),
            # RabbitMQ has the queues already; another broker's live in each client's head.
            auto_declare="amqp" not in type(channel).__module__,
        )

    def _answer(self) -> None:
        for endpoint_id, message in self._received:
            body = message.body
            batch = wire.decode(body.encode() if isinstance(body, str) else bytes(body))
            assert isinstance(batch, wire.TaskBatch), batch
            results = [wire.Result(task.task_id, task.payload) for task in batch.tasks]
            self._publish(endpoint_id, "result_queue_info", wire.encode(wire.ResultBatch(results)))
            message.ack()
        self._received.clear()

    def _report(self, endpoint_id: str) -> None:
        state = {"heartbeat_period": self._period_s, "active": True, "total_workers": 1, "idle_workers": 1}
        report = wire.StatusReport(endpoint_id, state, {}, [])
        self._publish(endpoint_id, "heartbeat_queue_info", wire.encode(report))

    def _publish(self, endpoint_id: str, to: str, body: bytes) -> None:
        info = self._registrations[endpoint_id][to]
        publish = info["queue_publish_kwargs"]  # type: ignore[index]
        exchange = Exchange(publish["exchange"], type="topic", durable=True)
        self._producer.publish(
            body,
            exchange=exchange,
            routing_key=publish["routing_key"],
            declare=[Queue(info["queue"], exchange, routing_key=f"*.{info['queue']}", durable=True)],  # type: ignore[index]
            content_type="application/json",
            content_encoding="utf-8",
            delivery_mode=2,
        )


def _queue_of(answer: dict[str, object]) -> str:
    return str(answer["task_queue_info"]["queue"])  # type: ignore[index]


def _registration(number: int) -> dict[str, object]:
    metadata = {"endpoint_version": "0.1.0", "python_version": PYTHON_VERSION, "hostname": "nowhere"}
    return {
        "endpoint_name": f"simulated-{number}",
        "metadata": {**metadata, "accepts": [wire.ACCEPTS_TASK_BATCH], "instance": f"nowhere:/{number}"},
    }


# -- executors ---------------------------------------------------------------------------------------------------------

#: Run by each of the processes: so many executors at once, each with a group of its own, and all of their results.
_EXECUTORS = """
import json, sys, time
from farcall import Client, Executor

def with_its_executor(number, value):
    return (number, value * value)

process, endpoint_id, executors, tasks = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
client = Client()
function_id = client.register_function(with_its_executor)
began = time.perf_counter()

def new_group():
    batch = client.create_batch()
    batch.add(function_id, (0, 0), {})
    return client.batch_run(endpoint_id, batch)["task_group_id"]

groups = [new_group() for _ in range(executors)]
made = [Executor(endpoint_id, client=client, task_group_id=group) for group in groups]
futures = [[executor.submit_to_registered_function(function_id, (number, value)) for value in range(tasks)]
           for number, executor in enumerate(made)]
wrong = [
    (number, value)
    for number, some in enumerate(futures)
    for value, future in enumerate(some)
    if future.result(timeout=300) != (number, value * value)
]
print(json.dumps({"wrong": wrong, "seconds": time.perf_counter() - began}))
"""


def executors_at_once(
    environment: dict[str, str], endpoint_id: str, *, processes: int, executors: int, tasks: int
) -> list[float]:
    """Let so many processes use so many executors each, all at the same time. How long each of the processes took."""
    program = Path(environment["FARCALL_HOME"], "executors.py")
    program.write_text(_EXECUTORS)
    started = [
        subprocess.Popen(
            [sys.executable, program, str(number), endpoint_id, str(executors), str(tasks)],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    said = [json.loads(process.communicate(timeout=TIMEOUT_S)[0] or "{}") for process in started]
    assert all(process.returncode == 0 for process in started), "a process with executors failed"
    assert all(not each["wrong"] for each in said), f"results are wrong: {said}"
    return [float(each["seconds"]) for each in said]
