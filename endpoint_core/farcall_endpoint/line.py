"""A thread that keeps one connection to the broker and uses it, whatever becomes of the broker."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import amqp
import redis
from kombu import Connection

from . import strays
from .addresses import Addresses

log = logging.getLogger(__name__)

#: Failed connections in a row after which the agent asks the service whether the broker has moved.
FAILURES_BEFORE_ASKING = 5

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0

#: A connection that lived for so long was a good one: what ended it is not what ended the one before.
_GOOD_AFTER_S = 1.0

#: Over AMQP. A broker that is there but does not answer is one that is not there.
HEARTBEAT_S = 30

#: We acknowledge within milliseconds. A message unacknowledged for a minute was taken by somebody who died.
_REDIS_OPTIONS = {
    "visibility_timeout": 60,
    "socket_keepalive": True,
    "socket_connect_timeout": 10,
    "socket_timeout": 15,
    "health_check_interval": 10,
}

#: Trying again would not help; the service may have another account for us, or make the queues anew.
_REFUSALS = (amqp.AccessRefused, amqp.NotAllowed, redis.AuthenticationError)
_ABSENCES = (amqp.NotFound, amqp.ConsumerCancelled)
_NO_ROUTE = 312


class Line(threading.Thread, ABC):
    """A thread that keeps one connection to the broker and uses it."""

    def __init__(self, name: str, addresses: Addresses, on_unreachable: Callable[[], None]) -> None:
        super().__init__(name=name, daemon=True)
        self.addresses = addresses
        #: Set while the line is up.
        self.connected = threading.Event()
        #: What was wrong when the line was last down.
        self.trouble: str | None = None
        self._on_unreachable = on_unreachable
        self._stopping = threading.Event()

    @abstractmethod
    def url(self) -> str: ...

    @abstractmethod
    def work(self, connection: Connection) -> None:
        """Use the connection until the line is told to stop."""

    def run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            connection = connection_to(self.url())
            began = time.monotonic()
            try:
                connection.connect()
                self.work(connection)
                return
            # A broken broker, or a Kombu transport with a bug in its reconnection, must not end the agent.
            except Exception as error:
                was_up = self.connected.is_set()
                failures = 1 if was_up and time.monotonic() - began > _GOOD_AFTER_S else failures + 1
                self.connected.clear()
                self._tell(error, failures, connection, was_up=was_up)
            finally:
                _close(connection)
            self._stopping.wait(min(_FIRST_PAUSE_S * 2 ** (failures - 1), _LONGEST_PAUSE_S))

    def _tell(self, error: Exception, failures: int, connection: Connection, *, was_up: bool) -> None:
        if self._stopping.is_set():
            return
        known = isinstance(error, (*connection.connection_errors, *connection.channel_errors, OSError))
        self.trouble = f"the broker at {connection.as_uri()} {_what_it_does(error, was_up)}"
        self.trouble += f": {type(error).__name__}: {error}"
        log.warning("%s: %s; trying again", self.name, self.trouble, exc_info=None if known else error)
        if isinstance(error, _REFUSALS) or _is_absence(error) or failures % FAILURES_BEFORE_ASKING == 0:
            self._on_unreachable()


def drain(connection: Connection, *, timeout: float) -> None:
    """Let the transport deliver what it has, and have it notice a broker that is gone."""
    try:
        connection.drain_events(timeout=timeout)
    except TimeoutError:
        if connection.supports_heartbeats:
            connection.heartbeat_check()


def _what_it_does(error: Exception, was_up: bool) -> str:
    if isinstance(error, _REFUSALS):
        return "refuses us (are its account and password those that the service hands out?)"
    if _is_absence(error):
        return "does not have a queue that should be there"
    return "was lost" if was_up else "does not answer"


def _is_absence(error: Exception) -> bool:
    # A message that is on no queue comes back, as an error of no class of its own.
    return isinstance(error, _ABSENCES) or (isinstance(error, amqp.ChannelError) and error.reply_code == _NO_ROUTE)


def connection_to(url: str) -> Connection:
    """A connection that is opened at its first use."""
    # With AMQP a publish returns when the broker has confirmed it.
    is_valkey = url.startswith("redis")
    transport = strays.Transport if is_valkey else None
    options = _REDIS_OPTIONS if is_valkey else {"confirm_publish": True}
    return Connection(url, transport=transport, transport_options=options, connect_timeout=10, heartbeat=HEARTBEAT_S)


def _close(connection: Connection) -> None:
    try:
        connection.release()
    except Exception as error:
        log.debug("closing a connection: %s", error)
