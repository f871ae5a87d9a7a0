"""What the tests of the commands stand on: a stand-in for the service, and one for the agent."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENDPOINT_ID = "3e0a4d5c-0b4b-4b4c-8e5a-000000000001"

#: Put in the way of the real agent by Python's own start; FAKE_AGENT says what it is to do.
FAKE_AGENT = f"""
import logging, os, signal, sys, types
from pathlib import Path

class Agent:
    def __init__(self, config):
        self.directory = config.directory

    def run(self, on_ready):
        how = os.environ.get("FAKE_AGENT", "ready")
        if how == "refused":
            from farcall.errors import Conflict
            raise Conflict("this endpoint runs on login1 already", http_status=409, code="RESOURCE_CONFLICT")
        if how == "crash":
            raise RuntimeError("something nobody thought of")
        if how == "full":
            raise OSError(28, "No space left on device", str(self.directory / "endpoint.json"))
        if how == "patient":
            logging.getLogger("farcall.transport").warning("no answer from the service; trying again for 30 s")
        from farcall_endpoint.directories import read_endpoint_id, write_endpoint_id
        if read_endpoint_id(self.directory) is None:
            write_endpoint_id(self.directory, "{ENDPOINT_ID}")
        signals = {{signal.SIGTERM, signal.SIGINT}}
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        print("printed past the log", flush=True)
        on_ready()
        signal.sigwait(signals if how != "stubborn" else {{signal.SIGUSR1}})
        return 0

module = types.ModuleType("farcall_endpoint.agent")
module.Agent = Agent
sys.modules["farcall_endpoint.agent"] = module
"""


class FakeService:
    """Answers the few routes that the commands use, and keeps what was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answers: dict[str, tuple[int, Any]] = {
            "GET /v2/whoami": (200, {"id": "u1", "name": "ada", "groups": []}),
            "GET /healthz": (200, {"status": "ok"}),
            f"GET /v2/endpoints/{ENDPOINT_ID}/status": (
                200,
                {"status": "online", "details": {}, "logs": [{"total_workers": 2, "outstanding_tasks": 5}]},
            ),
            f"DELETE /v2/endpoints/{ENDPOINT_ID}": (200, {"result": 302}),
            f"POST /v2/endpoints/{ENDPOINT_ID}/lock": (200, {"endpoint_id": ENDPOINT_ID}),
            "POST /auth/v2/oauth2/token": (200, {"access_token": "good", "expires_in": 60}),
            "POST /auth/v2/oauth2/token/revoke": (200, {"active": False}),
        }
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        service = self

        class Handler(BaseHTTPRequestHandler):
            def _answer(self) -> None:
                request = f"{self.command} {self.path}"
                service.asked.append(request)
                if self.headers.get("Authorization") == "Bearer good" or self.path.startswith("/auth/"):
                    status, document = service.answers.get(request, (404, {"code": "X", "message": "no such route"}))
                else:
                    status, document = 401, {"code": "INVALID_AUTH_TOKEN", "message": "this token is not known"}
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = _answer

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
