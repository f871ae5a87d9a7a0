"""What tests and test nodes ask the API server, without any of the code that is tested."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

Object = dict[str, Any]


class ApiAnswer(Exception):
    """An answer that is none of success."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"{status}: {said}")
        self.status = status


class ApiClient:
    """One account at the API server."""

    def __init__(self, url: str, token: str, authority: Path) -> None:
        self.url = url
        self.token = token
        self.authority = authority
        self._http = urllib3.PoolManager(
            ca_certs=str(authority), headers={"Authorization": f"Bearer {token}"}, maxsize=8, retries=False
        )

    def get(self, path: str, **query: Any) -> Object:
        return self._ask("GET", path, None, query)

    def post(self, path: str, body: Object, **query: Any) -> Object:
        return self._ask("POST", path, body, query)

    def patch(self, path: str, body: Object) -> Object:
        return self._ask("PATCH", path, body, {}, kind="application/merge-patch+json")

    def delete(self, path: str, body: Object | None = None) -> Object:
        return self._ask("DELETE", path, body, {})

    def delete_if_there(self, path: str, body: Object | None = None) -> None:
        with contextlib.suppress(ApiAnswer):
            self.delete(path, body)

    def events(self, path: str, closing: threading.Event, **query: Any) -> Iterator[Object]:
        """What there is, then LISTED, and what happens to it, until closed; each as the API server tells of it."""
        while not closing.is_set():
            listed = self.get(path, **query)
            for item in listed["items"]:
                yield {"type": "ADDED", "object": item}
            yield {"type": "LISTED"}
            # Short, so that the thread looks up now and then.
            more = {"watch": "true", "timeoutSeconds": 1, "resourceVersion": listed["metadata"]["resourceVersion"]}
            while not closing.is_set():
                ended = False
                for event in self._watch(path, {**query, **more}):
                    if event["type"] == "ERROR":
                        ended = True
                        break
                    more["resourceVersion"] = event["object"]["metadata"]["resourceVersion"]
                    yield event
                if ended:
                    break

    def _watch(self, path: str, query: Object) -> Iterator[Object]:
        response = self._http.request("GET", f"{self.url}{path}?{urlencode(query)}", preload_content=False, timeout=30)
        with contextlib.closing(response):
            rest = b""
            for chunk in response.stream(None):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (json.loads(line) for line in lines if line)

    def _ask(
        self, method: str, path: str, body: Object | None, query: Object, kind: str = "application/json"
    ) -> Object:
        response = self._http.request(
            method,
            f"{self.url}{path}{'?' + urlencode(query) if query else ''}",
            body=None if body is None else json.dumps(body).encode(),
            headers={**self._http.headers, "Content-Type": kind},
            timeout=30,
        )
        answer = json.loads(response.data) if response.data.startswith(b"{") else {}
        if response.status >= 300:
            raise ApiAnswer(response.status, str(answer.get("message") or response.data[:300]))
        return dict(answer)
