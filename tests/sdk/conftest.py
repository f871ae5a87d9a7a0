"""A service in a thread that speaks the routes the SDK uses and runs the tasks itself."""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from farcall import Client, Executor, config
from farcall.serialize import deserialize, deserialize_function, serialize, serialize_exception
from farcall.wire import unpack_buffers

ENDPOINT = "4b116d3c-1703-4f8f-9f6f-39921e5864df"
TOKEN = "fc_token"
#: As the service says them.
VERSIONS = {"api": "0.1.0", "min_sdk_version": "0.1.0", "min_ep_version": "0.1.0", "min_farcall_version": "0.1.0"}
Answer = tuple[int, Any]


@dataclass
class Seen:
    """One request."""

    method: str
    path: str
    query: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class ScriptedService:
    """What the service holds. ``paused`` keeps tasks from being run; ``script`` answers in the service's place."""

    url: str = ""
    seen: list[Seen] = field(default_factory=list)
    functions: dict[str, dict[str, Any]] = field(default_factory=dict)
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    #: What each task has printed to its stdout.
    printed: dict[str, str] = field(default_factory=dict)
    #: Of a group, in one request.
    cancelled_at_once: int = 1000
    answered_keys: dict[str, Any] = field(default_factory=dict)
    paused: bool = False
    #: Called with each request; an answer other than None is sent instead of the service's own.
    script: Callable[[Seen], Answer | None] = lambda seen: None
    changed: threading.Condition = field(default_factory=threading.Condition)

    def client(self, **options: Any) -> Client:
        return Client(service_url=self.url, token=TOKEN, **options)

    def executor(self, **options: Any) -> Executor:
        return Executor(ENDPOINT, self.client(do_version_check=False), **options)

    def requests(self, method: str, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and re.fullmatch(path, seen.path)]

    def submits(self) -> list[Seen]:
        return self.requests("POST", "/v3/endpoints/.*/submit")

    def cancels(self) -> list[Seen]:
        return self.requests("POST", "/v2/tasks/cancel")

    def wait_for_tasks(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.tasks) >= number, 30)

    def run_all(self) -> None:
        """Run what waits, as a worker would, in its order."""
        with self.changed:
            for task_id, task in self.tasks.items():
                if task["status"] == "waiting-for-ep":
                    task.update(self._outcome(task))
                    self.done.append(task_id)
            self.changed.notify_all()

    def print_to(self, task_id: str, text: str) -> None:
        """What a running task would print."""
        with self.changed:
            self.printed[task_id] = self.printed.get(task_id, "") + text
            self.changed.notify_all()

    def _outcome(self, task: dict[str, Any]) -> dict[str, Any]:
        function = self.functions[task["function_id"]]
        ended = {"completion_t": str(time.time()), "details": {"python_version": "3.11.7", "endpoint_id": ENDPOINT}}
        try:
            if function["serialized"]:
                (code,) = unpack_buffers(function["function_code"])
            else:
                code = f"st\n{function['function_name']}:{function['function_code']}"
            args, kwargs = (deserialize(part) for part in unpack_buffers(task["payload"]))
            return {"status": "success", "result": serialize(deserialize_function(code)(*args, **kwargs)), **ended}
        except Exception as error:
            rebuilt = {"exception_object": text} if (text := serialize_exception(error)) else {}
            return {"status": "failed", "exception": traceback.format_exc(), **rebuilt, **ended}

    # -- routes --

    def answer(self, seen: Seen) -> Answer:
        scripted = self.script(seen)
        if scripted is not None:
            return scripted
        if seen.path != "/v2/version" and seen.headers.get("authorization") != f"Bearer {TOKEN}":
            return error(401, "INVALID_AUTH_TOKEN", "wrong token")
        for method, pattern, route in self._routes():
            match = re.fullmatch(pattern, seen.path)
            if method == seen.method and match:
                return route(seen, *match.groups())
        return error(404, "NOT_FOUND", f"no route {seen.path}")

    def _routes(self) -> list[tuple[str, str, Callable[..., Answer]]]:
        return [
            ("GET", "/v2/version", lambda seen: (200, VERSIONS if seen.query.get("service") == "all" else "0.1.0")),
            ("POST", "/v3/functions", self._register),
            ("POST", "/v3/endpoints/([^/]+)/submit", self._submit),
            ("GET", "/v2/tasks/([^/]+)", self._task),
            ("GET", "/v2/tasks/([^/]+)/log", self._log),
            ("POST", "/v2/tasks/cancel", self._cancel),
            ("POST", "/v2/taskgroup/([^/]+)/cancel", self._cancel_group),
            ("POST", "/v2/batch_status", self._batch_status),
            ("GET", "/v2/taskgroup/([^/]+)", self._group),
            ("GET", "/v2/taskgroup/([^/]+)/results", self._results),
        ]

    def _register(self, seen: Seen) -> Answer:
        function_id = str(uuid.uuid4())
        self.functions[function_id] = seen.body
        return 200, {"function_uuid": function_id}

    def _submit(self, seen: Seen, endpoint_id: str) -> Answer:
        key = seen.headers["idempotency-key"]
        if key in self.answered_keys:
            return 200, self.answered_keys[key]
        unknown = [function_id for function_id in seen.body["tasks"] if function_id not in self.functions]
        if unknown:
            return error(404, "FUNCTION_NOT_FOUND", f"Function {unknown[0]} could not be resolved")
        group_id = seen.body.get("task_group_id") or str(uuid.uuid4())
        ids: dict[str, list[str]] = {}
        with self.changed:
            for function_id, payloads in seen.body["tasks"].items():
                for payload in payloads:
                    task_id = str(uuid.uuid4())
                    ids.setdefault(function_id, []).append(task_id)
                    self.tasks[task_id] = {
                        "task_id": task_id,
                        "status": "waiting-for-ep",
                        "task_group_id": group_id,
                        "function_id": function_id,
                        "payload": payload,
                        "history": [["received", time.time()], ["waiting-for-ep", time.time()]],
                        "reason": "the endpoint has been offline since 12:00",
                    }
            self.changed.notify_all()
        answer = {"request_id": key, "task_group_id": group_id, "endpoint_id": endpoint_id, "tasks": ids}
        self.answered_keys[key] = answer
        if not self.paused:
            self.run_all()
        return 200, answer

    def _task(self, seen: Seen, task_id: str) -> Answer:
        if task_id not in self.tasks:
            return error(404, "TASK_NOT_FOUND", f"Task {task_id} not found")
        with self.changed:
            self.changed.wait_for(lambda: task_id in self.done, float(seen.query.get("wait", 0)))
            return 200, self._document(task_id)

    def _cancel(self, seen: Seen) -> Answer:
        return 200, {"results": {task_id: self._cancelled(task_id) for task_id in seen.body["task_ids"]}}

    def _cancel_group(self, seen: Seen, group_id: str) -> Answer:
        ids = [task_id for task_id, task in self.tasks.items() if task["task_group_id"] == group_id]
        left = [task_id for task_id in ids if task_id not in self.done]
        new = left[: self.cancelled_at_once]
        for task_id in new:
            self._cancelled(task_id)
        said = {"taskgroup_id": group_id, "cancelled": len(new), "ended": len(ids) - len(left)}
        return 200, {**said, "more": len(left) > len(new)}

    def _cancelled(self, task_id: str) -> dict[str, Any]:
        with self.changed:
            if task_id not in self.tasks:
                said = {"status": "unknown", "cancelled": False, "reason": f"Task {task_id} not found"}
                return {"task_id": task_id, **said}
            if task_id not in self.done:
                reason = "cancelled by owner"
                self.tasks[task_id].update(status="cancelled", exception=reason, reason=reason, completion_t="1.5")
                self.done.append(task_id)
                self.changed.notify_all()
            status = self.tasks[task_id]["status"]
            reason = self.tasks[task_id]["reason"] if status == "cancelled" else f"it had ended as {status}"
            return {"task_id": task_id, "status": status, "cancelled": status == "cancelled", "reason": reason}

    def _log(self, seen: Seen, task_id: str) -> Answer:
        if task_id not in self.tasks:
            return error(404, "TASK_NOT_FOUND", f"Task {task_id} not found")
        after = int(seen.query["after"])
        with self.changed:
            self.changed.wait_for(
                lambda: len(self.printed.get(task_id, "")) > after or task_id in self.done, float(seen.query["wait"])
            )
            text = self.printed.get(task_id, "")[after:] if seen.query["stream"] == "stdout" else ""
            piece = {"stream": seen.query["stream"], "start": after, "text": text, "next": after + len(text)}
            return 200, {"task_id": task_id, **piece, "ended": task_id in self.done}

    def _batch_status(self, seen: Seen) -> Answer:
        known = [task_id for task_id in seen.body["task_ids"] if task_id in self.tasks]
        return 200, {"response": "batch", "results": {task_id: self._document(task_id) for task_id in known}}

    def _group(self, seen: Seen, group_id: str) -> Answer:
        ids = [task_id for task_id, task in self.tasks.items() if task["task_group_id"] == group_id]
        return 200, {"taskgroup_id": group_id, "tasks": [{"id": task_id, "created_at": ""} for task_id in ids]}

    def _results(self, seen: Seen, group_id: str) -> Answer:
        after, limit = int(seen.query["after"]), int(seen.query["limit"])

        def newer() -> list[tuple[int, str]]:
            places = enumerate(self.done[after:], start=after + 1)
            return [(place, task_id) for place, task_id in places if self.tasks[task_id]["task_group_id"] == group_id]

        with self.changed:
            self.changed.wait_for(newer, float(seen.query["wait"]))
            page = newer()[:limit]
            cursor = page[-1][0] if page else after
            return 200, {"cursor": cursor, "results": [self._document(task_id) for _, task_id in page]}

    def _document(self, task_id: str) -> dict[str, Any]:
        return {key: value for key, value in self.tasks[task_id].items() if key != "payload"}


def error(status: int, code: str, message: str) -> Answer:
    return status, {"code": code, "message": message, "request_id": "r1", "status": "Failed"}


def _handler(service: ScriptedService) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Or each answer would wait for the acknowledgement of its own header.
        wbufsize = -1

        def do(self) -> None:
            parts = urlsplit(self.path)
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            seen = Seen(
                self.command,
                parts.path,
                {name: values[0] for name, values in parse_qs(parts.query).items()},
                _body(raw, self.headers.get("Content-Type")),
                {name.lower(): value for name, value in self.headers.items()},
            )
            service.seen.append(seen)
            status, document = service.answer(seen)
            text = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_DELETE = do

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _body(raw: bytes, kind: str | None) -> Any:
    if kind == "application/x-www-form-urlencoded":
        return {name: values[0] for name, values in parse_qs(raw.decode()).items()}
    return json.loads(raw) if raw else None


@contextmanager
def serving(service: ScriptedService, port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """The service on a port of its own, or on one it had before."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(service))
    server.daemon_threads = True
    service.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the real user's home or environment is read or written."""
    for name in ("FARCALL_SERVICE_URL", "FARCALL_TOKEN", *itertools.chain(*config.CLIENT_VARIABLES)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FARCALL_HOME", str(tmp_path / "farcall-home"))
    return tmp_path / "farcall-home"


@pytest.fixture
def service() -> Iterator[ScriptedService]:
    scripted = ScriptedService()
    with serving(scripted):
        yield scripted


@pytest.fixture
def serve() -> Callable[..., Any]:
    """To start a scripted service by hand: ``with serve(service, port): ...``."""
    return serving


@pytest.fixture
def endpoint_id() -> str:
    return ENDPOINT
