"""The agent's end of a relay on a login node: keeps it connected, and knows when it is lost for good."""

from __future__ import annotations

import inspect
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from paramiko.ssh_exception import SSHException

from . import relay, relayhost, relaystream
from .provider import ProviderError, SystemUnavailable
from .relay import GRACE_S, SILENCE_S, Session
from .relaystream import CHUNK

log = logging.getLogger(__name__)

#: What starts the program that comes over stdin; nothing else may come before it has said that it is there.
LOADER = "import sys;exec(sys.stdin.buffer.read(int(sys.argv[1])))"

#: How long the program may take to say that it is there: a shared file system may have to bring Python first.
START_TIMEOUT_S = 60.0

#: Between two attempts to have the relay back.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0

#: What login scripts may print before the relay does.
_MOST_GREETING_BYTES = 64 * 1024


class Channel(Protocol):
    """What we use of one of paramiko's channels."""

    def recv(self, nbytes: int) -> bytes: ...
    def recv_stderr(self, nbytes: int) -> bytes: ...
    def sendall(self, s: bytes) -> None: ...
    def settimeout(self, timeout: float | None) -> None: ...
    def close(self) -> None: ...


class RelayGone(ProviderError):
    """The relay has ended, and what was on its way with it."""


class Relay:
    """Lets nodes that reach a login node reach ``ports`` of this machine.

    ``open_channel`` runs the loader with this argument on the login node, and returns the channel; it raises
    SystemUnavailable. ``give_up`` is called when nothing comes from there any more, to have the next channel in another
    connection. ``address`` is the one that the relay listens on, if not on all.
    """

    def __init__(
        self,
        open_channel: Callable[[str], Channel],
        ports: Sequence[int],
        *,
        place: str,
        address: str | None = None,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._open_channel = open_channel
        self._give_up = give_up
        self._place = place
        self._request = {"token": secrets.token_hex(16), "ports": len(ports), "address": address}
        self._ports = ports
        self._session = Session(ports)
        self._closing = threading.Event()
        self._lost = threading.Event()
        channel, self._facts = self._plug_in(resume=False)
        self._thread = threading.Thread(target=self._run, args=(channel,), name="relay", daemon=True)
        self._thread.start()
        log.info("nodes reach this endpoint through %s, %s ports %s", place, self.addresses, self.port_map)

    @property
    def addresses(self) -> list[str]:
        """By which nodes may reach the login node."""
        return [str(address) for address in self._facts["addresses"]]

    @property
    def port_map(self) -> dict[int, int]:
        """The relay's port for each of ours."""
        return dict(zip(self._ports, self._facts["ports"], strict=True))

    @property
    def is_lost(self) -> bool:
        """It will not come back. Nodes that used it are cut off, and something may have been lost on its way."""
        return self._lost.is_set()

    @property
    def pid(self) -> int:
        """Of the relay, on the login node."""
        return int(self._facts["pid"])

    def wait_until_lost(self, timeout_s: float) -> bool:
        """Whether it was lost within that time."""
        return self._lost.wait(timeout_s)

    def close(self) -> None:
        """End the relay on the login node too."""
        self._closing.set()
        if self._thread.is_alive():
            self._session.end()
            self._thread.join(START_TIMEOUT_S)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self, channel: Channel | None) -> None:
        try:
            while channel is not None:
                with _pumped(channel, self._closing) as (reader, writer):
                    self._session.attach(reader, writer)
                    self._session.run()
                if self._closing.is_set() or self._session.has_ended:
                    break
                log.warning("the connection to the relay on %s was lost, connecting again", self._place)
                if self._session.fell_silent:
                    self._give_up()
                channel = self._plug_in_again()
        # Whatever it is, the nodes are cut off, and that must become known.
        except Exception:
            log.exception("the relay on %s failed", self._place)
        finally:
            self._session.close()
            self._lost.set()

    def _plug_in_again(self) -> Channel | None:
        deadline = time.monotonic() + GRACE_S
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            try:
                channel, _ = self._plug_in(resume=True)
                log.info("the relay on %s is connected again", self._place)
                return channel
            except RelayGone as error:
                log.error("%s", error)
                return None
            except ProviderError as error:
                log.warning("%s", error)
            if time.monotonic() > deadline:
                log.error("the relay on %s could not be reached for %g s", self._place, GRACE_S)
                return None
            self._closing.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return None

    def _plug_in(self, *, resume: bool) -> tuple[Channel, dict[str, Any]]:
        program = _program({**self._request, "resume": resume})
        channel = self._open_channel(str(len(program)))
        try:
            channel.settimeout(SILENCE_S if resume else START_TIMEOUT_S)
            with suppress(OSError):
                # If it has ended already, it has said why.
                channel.sendall(program)
            facts = self._greeting(channel)
            channel.settimeout(None)
        except (OSError, EOFError, SSHException) as error:
            _close(channel)
            said = str(error) or "it takes too long"
            raise SystemUnavailable(f"the relay on {self._place} does not answer: {said}") from error
        except ProviderError:
            _close(channel)
            raise
        if "error" in facts:
            _close(channel)
            kind = RelayGone if resume else ProviderError
            raise kind(f"the relay on {self._place}: {facts['error']}")
        return channel, facts

    def _greeting(self, channel: Channel) -> dict[str, Any]:
        mark = relayhost.GREETING.encode()
        printed = b""
        # Byte by byte: what follows the line is for the session.
        while len(printed) < _MOST_GREETING_BYTES and (byte := channel.recv(1)):
            printed += byte
            if byte == b"\n" and mark in printed:
                facts: dict[str, Any] = json.loads(printed.partition(mark)[2])
                return facts
        said = b""
        while data := channel.recv_stderr(CHUNK):
            said += data
        words = (said or printed).decode(errors="replace").strip()[-1000:]
        raise SystemUnavailable(f"the relay does not start on {self._place}: {words or 'it says nothing'}")


def _program(request: dict[str, Any]) -> bytes:
    """The modules and the call of the last one's ``main``, as one text."""
    sources = [(module.__name__, inspect.getsource(module)) for module in (relaystream, relay, relayhost)]
    return (
        "import sys, types\n"
        f"sys.modules[{__package__!r}] = types.ModuleType({__package__!r})\n"
        f"for name, source in {sources!r}:\n"
        "    module = sys.modules[name] = types.ModuleType(name)\n"
        "    exec(compile(source, name, 'exec'), module.__dict__)\n"
        f"module.main({request!r})\n"
    ).encode()


@contextmanager
def _pumped(channel: Channel, closing: threading.Event) -> Iterator[tuple[int, int]]:
    """Two file descriptors that lead to a channel, for the caller to close; the channel is closed at the end."""
    near, far = socket.socketpair()
    reader, writer = os.dup(near.fileno()), os.dup(near.fileno())
    near.close()
    threads = [
        threading.Thread(target=_pump, args=(channel.recv, far.sendall, lambda: far.shutdown(socket.SHUT_RDWR))),
        threading.Thread(target=_pump, args=(far.recv, channel.sendall, lambda: None)),
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()
    try:
        yield reader, writer
    finally:
        if closing.is_set():
            # The farewell is still on its way; the relay ends the channel when it has heard it.
            for thread in reversed(threads):
                thread.join(_LONGEST_PAUSE_S)
        _close(channel)
        for thread in threads:
            thread.join(_LONGEST_PAUSE_S)
        far.close()


def _close(channel: Channel) -> None:
    with suppress(OSError, EOFError, SSHException):
        channel.close()


def _pump(receive: Callable[[int], bytes], send: Callable[[bytes], object], end: Callable[[], object]) -> None:
    try:
        while data := receive(CHUNK):
            send(data)
    except (OSError, EOFError, SSHException):
        # Closed, by either side.
        pass
    finally:
        with suppress(OSError, EOFError, SSHException):
            end()
