"""Knows how our pods are: a list of them to begin with, then whatever the API server tells as it happens.

Nobody asks for the state of a pod. When what is told breaks off, or its beginning has been forgotten by the server
(410), the pods are listed anew, and those that are missing are gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3

from farcall_endpoint.provider import ProviderError, SystemUnavailable

from .api import Api, Refused, lines_of
from .pods import MANAGED_BY, OURS, OWNER

log = logging.getLogger(__name__)

#: After so long the server ends the watch and it is continued: a connection that died without a word is noticed then.
WATCH_S = 60

#: Pauses before the pods are listed anew, when that fails.
_PAUSES_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)

#: For the first list to come.
START_TIMEOUT_S = 40.0


@dataclass
class Seen:
    """A pod, as last told of."""

    pod: Mapping[str, Any]
    noted: float = field(default_factory=time.monotonic)
    #: The cluster has it no more.
    is_gone: bool = False


class Pods:
    """Our pods in one namespace, of the owners that were followed. Any thread may ask."""

    def __init__(self, api: Api, on_change: Callable[[str], None] = lambda _: None) -> None:
        self._api = api
        self._on_change = on_change
        self._changed = threading.Condition()
        self._seen: dict[str, Seen] = {}
        self._owners: tuple[str, ...] = ()
        self._trouble: ProviderError | None = None
        #: The owners whose pods are told of as they change; None while nothing is told.
        self._told_of: tuple[str, ...] | None = None
        self._closing = threading.Event()
        self._response: urllib3.BaseHTTPResponse | None = None
        self._thread: threading.Thread | None = None

    def follow(self, owner: str) -> None:
        """Know of this owner's pods from now on. Raises what keeps us from it."""
        with self._changed:
            if owner not in self._owners:
                self._owners = (*self._owners, owner)
                self._break_off()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pods", daemon=True)
                self._thread.start()
            self._changed.wait_for(lambda: self._is_told_of(owner) or self._trouble is not None, START_TIMEOUT_S)
            self._raise_trouble()
            if not self._is_told_of(owner):
                raise SystemUnavailable(f"the API server at {self._api.place} does not say which pods there are")

    @property
    def is_following(self) -> bool:
        return self._thread is not None

    def check(self) -> None:
        """Raise what keeps us from knowing how the pods are, if anything does."""
        with self._changed:
            self._raise_trouble()

    def note(self, pod: Mapping[str, Any]) -> None:
        """One that was just made. What has been told of it meanwhile is newer."""
        with self._changed:
            self._seen.setdefault(pod["metadata"]["name"], Seen(pod))

    def get(self, name: str) -> Seen | None:
        with self._changed:
            return self._seen.get(name)

    def all(self) -> dict[str, Seen]:
        with self._changed:
            return dict(self._seen)

    def forget(self, name: str) -> None:
        with self._changed:
            self._seen.pop(name, None)

    def close(self) -> None:
        self._closing.set()
        with self._changed:
            self._break_off()
        if self._thread is not None:
            self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            owners = self._owners
            try:
                self._listen(owners)
                failures = 0
            except (ProviderError, OSError, urllib3.exceptions.HTTPError, ValueError) as error:
                # Otherwise it was us who broke off.
                if owners == self._owners and not self._closing.is_set():
                    self._fail(error, is_new=failures == 0)
                    self._closing.wait(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                    failures += 1

    def _listen(self, owners: tuple[str, ...]) -> None:
        """List the pods and hear of them until that breaks off."""
        selector = f"{MANAGED_BY}={OURS},{OWNER} in ({','.join(owners)})"
        version = self._list(selector)
        while not self._closing.is_set() and owners == self._owners:
            ended = self._watch(selector, version, owners)
            if ended is None:
                return
            version = ended

    def _list(self, selector: str) -> str:
        began = time.monotonic()
        listed = self._api.request("GET", "pods", doing="list pods", query={"labelSelector": selector})
        found = {pod["metadata"]["name"]: pod for pod in listed["items"]}
        with self._changed:
            missing = [
                name
                for name, seen in self._seen.items()
                # One that was made since may have come too late for the list.
                if name not in found and not seen.is_gone and seen.noted < began
            ]
        for name, pod in found.items():
            self._take(name, pod)
        for name in missing:
            self._take(name, None)
        return str(listed["metadata"]["resourceVersion"])

    def _watch(self, selector: str, version: str, owners: tuple[str, ...]) -> str | None:
        """What was last heard of when the server ended the watch; None if the pods must be listed anew."""
        query = {
            "labelSelector": selector,
            "resourceVersion": version,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": WATCH_S,
        }
        try:
            response = self._api.stream("pods", query, doing="watch pods", silence_s=WATCH_S + 15)
        except Refused as refused:
            if refused.status == 410:
                return None
            raise
        with contextlib.closing(response):
            if not self._begin(response, owners):
                return None
            try:
                for event in _events(response):
                    heard = self._hear(event)
                    if heard is None:
                        return None
                    version = heard
            finally:
                with self._changed:
                    self._response = None
        return version

    def _begin(self, response: urllib3.BaseHTTPResponse, owners: tuple[str, ...]) -> bool:
        with self._changed:
            if self._closing.is_set() or owners != self._owners:
                return False
            self._response = response
            self._told_of, self._trouble = owners, None
            self._changed.notify_all()
            return True

    def _hear(self, event: Mapping[str, Any]) -> str | None:
        """The version that was heard of; None for what ends the watch, such as that its beginning is forgotten."""
        if event.get("type") == "ERROR":
            log.debug("the watch of the pods ends: %s", event.get("object", {}).get("message"))
            return None
        metadata = event["object"]["metadata"]
        if event["type"] == "DELETED":
            self._take(metadata["name"], event["object"], is_gone=True)
        elif event["type"] != "BOOKMARK":
            self._take(metadata["name"], event["object"])
        return str(metadata["resourceVersion"])

    def _take(self, name: str, pod: Mapping[str, Any] | None, *, is_gone: bool = False) -> None:
        with self._changed:
            seen = self._seen.get(name)
            if pod is None:
                if seen is not None:
                    seen.is_gone = True
            elif seen is None:
                self._seen[name] = Seen(pod, is_gone=is_gone)
            else:
                seen.pod, seen.is_gone = pod, is_gone
        self._on_change(name)

    def _fail(self, error: Exception, *, is_new: bool) -> None:
        if not isinstance(error, ProviderError):
            error = SystemUnavailable(f"the API server at {self._api.place} broke off: {error}")
        if isinstance(error, SystemUnavailable):
            log.info("%s; listing the pods again", error)
        else:
            log.warning("%s", error)
        with self._changed:
            # What breaks off is mostly back at once, and nobody needs to be told.
            if not (is_new and isinstance(error, SystemUnavailable)):
                self._trouble = error
            self._told_of = None
            self._changed.notify_all()

    # -- with the lock held -------------------------------------------------------------------------------------------

    def _is_told_of(self, owner: str) -> bool:
        return self._told_of is not None and owner in self._told_of

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            # A new one each time, as several threads may raise it.
            raise type(self._trouble)(*_arguments(self._trouble)) from self._trouble

    def _break_off(self) -> None:
        """Have the thread look up from what it reads."""
        self._told_of = None
        connection = self._response.connection if self._response is not None else None
        sock = getattr(connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                # The plain socket's: that of TLS would change what the other thread is reading from.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _arguments(error: ProviderError) -> tuple[Any, ...]:
    return (str(error), error.status) if isinstance(error, Refused) else (str(error),)


def _events(response: urllib3.BaseHTTPResponse) -> Iterator[dict[str, Any]]:
    for line in lines_of(response):
        if line.strip():
            yield json.loads(line)
