"""A manager's end of the line to the agent. What is said on it may be missed, by either side; nothing waits for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import zmq
from parsl.curvezmq import ClientContext

from .bell import Bell
from .nodetalk import News, Unwanted, read_unwanted, write_news
from .sightings import Node

log = logging.getLogger(f"parsl.{__name__}")

#: Messages that wait here for an agent that is slow to read them.
_MOST_UNSENT = 20


class AgentLine:
    """Says hello to the agent every ``period_s`` seconds, and what there is to tell; hears which calls are to end.

    ``gather`` is asked for what there is to tell whenever there may be some and the line has room; ``obey`` is called
    in the line's thread.
    """

    def __init__(
        self,
        node: Node,
        url: str,
        cert_dir: str | None,
        *,
        period_s: float,
        gather: Callable[[], News],
        obey: Callable[[Unwanted], None],
    ) -> None:
        self._node = node
        self._url = url
        self._period_s = period_s
        self._gather = gather
        self._obey = obey
        self._bell = Bell()
        self._closing = threading.Event()
        self._context = ClientContext(cert_dir)
        self._thread = threading.Thread(target=self._run, name="line to the agent", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def ring(self) -> None:
        """There may be something to tell. Any thread may call it; it returns at once."""
        self._bell.ring()

    def close(self) -> None:
        self._closing.set()
        self._bell.ring()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self._node.uid.encode())
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, _MOST_UNSENT)
        # What is said while nobody is connected would be old when somebody is.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 5000)
        socket.connect(self._url)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._bell.fileno(), zmq.POLLIN)
        next_hello = 0.0
        try:
            while not self._closing.is_set():
                now = time.monotonic()
                if now >= next_hello:
                    said = self._say(socket, News(self._node))
                    next_hello = now + (self._period_s if said else min(self._period_s, 0.2))
                poller.poll(max(0, int(1000 * (next_hello - time.monotonic()))))
                self._bell.silence()
                self._hear(socket)
                self._tell(socket)
            self._say(socket, News(None))
            # For the farewell: without lingering it would not leave the house.
            socket.setsockopt(zmq.LINGER, 200)
        finally:
            socket.close()
            self._context.term()
            self._bell.close()

    def _tell(self, socket: zmq.Socket[bytes]) -> None:
        # Asked only when it can be sent: what cannot is kept, and kept small, by whoever gathers it.
        if socket.poll(0, zmq.POLLOUT):
            news = self._gather()
            if news.started or news.printed:
                self._say(socket, replace(news, node=self._node))

    def _say(self, socket: zmq.Socket[bytes], news: News) -> bool:
        with suppress(zmq.Again):
            socket.send(write_news(news), zmq.NOBLOCK)
            return True
        return False

    def _hear(self, socket: zmq.Socket[bytes]) -> None:
        while True:
            try:
                unwanted = read_unwanted(socket.recv(zmq.NOBLOCK))
            except zmq.Again:
                return
            except ValueError as error:
                log.warning("the agent says what is not understood: %s", error)
                continue
            try:
                self._obey(unwanted)
            except Exception:
                log.exception("ending calls failed")
