"""The connection to a login node, through others if need be: made when it is wanted, and again when it was lost."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Any

import paramiko

from .provider import SystemUnavailable
from .sshlogin import BROKEN, ConnectionRefused, log_in, words
from .sshoptions import Hop, SshOptions, route

log = logging.getLogger(__name__)

#: Pauses between attempts. A site may lock out who knocks too often with the wrong key.
_PAUSES_S = (0.0, 1.0, 2.0, 5.0)
_PAUSE_AFTER_REFUSAL_S = 60.0

#: Signs of life without an answer, after which the connection is given up.
_UNANSWERED = 3


class Connection:
    """Keeps a connection to the last host of the route. Its methods are called from several threads."""

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        self._hops = route(options)
        self._lock = threading.Lock()
        self._transports: list[paramiko.Transport] = []
        #: Where the first host was found: a name may stand for several login nodes, and ours is only one of them.
        self._peer: str | None = None
        self._trouble: SystemUnavailable | None = None
        self._failures = 0
        self._not_before = 0.0
        self._is_closed = False

    @property
    def place(self) -> str:
        return self._hops[-1].place

    def transport(self) -> paramiko.Transport:
        """The connection, made anew if there is none that lives. Raises SystemUnavailable with what is wrong."""
        with self._lock:
            if self._transports:
                if self._transports[-1].is_active():
                    return self._transports[-1]
                log.warning("the connection to %s was lost", self.place)
                self._drop()
            if self._is_closed:
                raise SystemUnavailable(f"the connection to {self.place} is closed")
            if self._trouble is not None and time.monotonic() < self._not_before:
                raise self._trouble
            return self._connect()

    def reset(self) -> None:
        """It is of no use any more: connect anew when it is wanted."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._drop()

    def _connect(self) -> paramiko.Transport:
        try:
            for hop in self._hops:
                jumps = ",".join(f"{each.user}@{each.host}:{each.port}" for each in self._hops[: len(self._transports)])
                self._transports.append(log_in(hop, self._way_to(hop), self._options, jumps=jumps))
        except SystemUnavailable as error:
            self._drop()
            self._trouble = error
            refused = isinstance(error, ConnectionRefused)
            pause_s = _PAUSE_AFTER_REFUSAL_S if refused else _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
            self._not_before = time.monotonic() + pause_s
            self._failures += 1
            raise
        self._trouble = None
        self._failures = 0
        log.info("connected to %s (%s)", self.place, self._transports[-1].remote_version)
        return self._transports[-1]

    def _drop(self) -> None:
        # The last first: the others carry it.
        for transport in reversed(self._transports):
            transport.close()
        self._transports.clear()

    def _way_to(self, hop: Hop) -> Any:
        """A socket, or a channel that is as good."""
        if not self._transports:
            return self._socket_to(hop)
        before = self._hops[len(self._transports) - 1]
        try:
            return self._transports[-1].open_channel(
                "direct-tcpip", (hop.host, hop.port), ("127.0.0.1", 0), timeout=self._options.connect_timeout_s
            )
        except BROKEN as error:
            raise SystemUnavailable(
                f"{before.place} cannot connect us to {hop.host} port {hop.port}, or may not: {words(error)}"
            ) from error

    def _socket_to(self, hop: Hop) -> socket.socket:
        timeout_s = self._options.connect_timeout_s
        try:
            sock = socket.create_connection((self._peer or hop.host, hop.port), timeout=timeout_s)
        except socket.gaierror as error:
            raise SystemUnavailable(f"there is no host called {hop.host!r}: {error.strerror}") from error
        except TimeoutError as error:
            raise SystemUnavailable(
                f"{hop.host} port {hop.port} did not answer within {timeout_s:g} s; "
                "a firewall may be between us, and a proxy_jump be needed"
            ) from error
        except OSError as error:
            raise SystemUnavailable(f"{hop.host} port {hop.port} cannot be reached: {error.strerror}") from error
        sock.settimeout(None)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A cable that was pulled says nothing; signs of life without an answer do.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * _UNANSWERED * self._options.keep_alive_s)
        self._peer = sock.getpeername()[0]
        return sock
