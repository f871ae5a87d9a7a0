"""The agent's end of the line to the nodes: beside Parsl, which carries calls and results and nothing else.

Managers connect to it as they do to Parsl's interchange, with the same certificates. It belongs to one life of Parsl's
executor and ends with it. Nothing waits for a node here: who does not listen misses what is said, and hears it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import zmq
from parsl import curvezmq
from parsl.addresses import tcp_url

from .bell import Bell
from .killing import GRACE_S
from .nodetalk import News, Unwanted, read_news, write_unwanted
from .sightings import Node, Watcher

log = logging.getLogger(__name__)

#: Messages of one manager that wait here to be read; more wait with the manager.
_MOST_UNREAD = 50


@dataclass(slots=True)
class _Peer:
    node: Node
    heard: float


class NodeLine:
    """Tells a watcher what managers say, and managers which calls are to end.

    ``is_awaited`` says of a call whether anybody still waits for it: while somebody does for one that is to end, a
    manager that says hello is told of it, also one that has connected later or has missed it.
    """

    def __init__(
        self,
        watcher: Watcher | None,
        *,
        address: str | None,
        ports: tuple[int, int],
        cert_dir: str | None,
        silence_s: float,
        is_awaited: Callable[[int], bool],
    ) -> None:
        self._watcher = watcher
        self._silence_s = silence_s
        self._is_awaited = is_awaited
        self._peers: dict[bytes, _Peer] = {}
        self._unwanted: dict[int, None] = {}
        self._orders: deque[Collection[int]] = deque()
        self._closing = threading.Event()
        self._bell = Bell()
        self._context = curvezmq.ServerContext(cert_dir)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVHWM, _MOST_UNREAD)
        #: A manager that connects anew under its name takes the place of its earlier connection.
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        try:
            self.port = int(
                self._socket.bind_to_random_port(tcp_url(address or "*"), min_port=ports[0], max_port=ports[1])
            )
        except (zmq.ZMQError, zmq.ZMQBindError) as error:
            self._context.destroy(linger=0)
            self._bell.close()
            raise OSError(
                f"no port from {ports[0]} to {ports[1]} is free for the line to the nodes ({error}); "
                "worker_port_range needs two free ports"
            ) from error
        self._thread = threading.Thread(target=self._run, name="line to the nodes", daemon=True)
        self._thread.start()

    def cancel(self, call_ids: Collection[int]) -> None:
        """Have these calls ended wherever they are, now or later. Returns at once; any thread may call it."""
        self._orders.append(call_ids)
        self._bell.ring()

    def close(self) -> None:
        self._closing.set()
        self._bell.ring()
        self._thread.join()

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        try:
            while not self._closing.is_set():
                poller.poll(int(self._silence_s * 250) if self._peers else None)
                self._bell.silence()
                self._obey()
                self._listen()
                self._miss()
        finally:
            self._context.destroy(linger=0)
            self._bell.close()

    def _obey(self) -> None:
        fresh: list[int] = []
        while self._orders:
            fresh += self._orders.popleft()
        self._unwanted.update(dict.fromkeys(fresh))
        if fresh:
            for identity in self._peers:
                self._say(identity, fresh)

    def _listen(self) -> None:
        # A bounded number: other things are to be seen to as well, and poll() returns at once if there is more.
        for _ in range(_MOST_UNREAD):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                (message,) = parts
                news = read_news(message)
            except ValueError as error:
                log.warning("a node says what is not understood: %s", error)
                continue
            self._hear(identity, news)

    def _hear(self, identity: bytes, news: News) -> None:
        if news.node is None:
            if self._peers.pop(identity, None) is not None:
                self._tell_of_nodes()
        else:
            known = self._peers.get(identity)
            self._peers[identity] = _Peer(news.node, time.monotonic())
            if known is None or known.node != news.node:
                self._tell_of_nodes()
            if not (news.started or news.printed):
                # That is a hello, the first or a repeated one.
                self._remind(identity)
        self._tell("started", news.started)
        self._tell("printed", news.printed)

    def _remind(self, identity: bytes) -> None:
        for call_id in [call_id for call_id in self._unwanted if not self._is_awaited(call_id)]:
            del self._unwanted[call_id]
        if self._unwanted:
            self._say(identity, list(self._unwanted))

    def _miss(self) -> None:
        """Forget who has been silent for too long."""
        oldest = time.monotonic() - self._silence_s
        silent = [identity for identity, peer in self._peers.items() if peer.heard < oldest]
        for identity in silent:
            del self._peers[identity]
        if silent:
            self._tell_of_nodes()

    def _say(self, identity: bytes, call_ids: Collection[int]) -> None:
        try:
            self._socket.send_multipart([identity, write_unwanted(Unwanted(list(call_ids), GRACE_S))], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            # It does not listen. With its next hello it is told again.
            log.debug("a node was not told what to end: %s", error)

    def _tell_of_nodes(self) -> None:
        nodes = [peer.node for peer in self._peers.values()]
        self._call("nodes_changed", nodes)

    def _tell(self, what: str, items: Collection[Any]) -> None:
        if items:
            self._call(what, items)

    def _call(self, what: str, argument: Any) -> None:
        if self._watcher is None:
            return
        try:
            getattr(self._watcher, what)(argument)
        # A watcher with a bug must not cost us the line, on which cancelling depends.
        except Exception:
            log.exception("telling what happens on the nodes failed")
