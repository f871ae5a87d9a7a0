"""Wakes a thread that waits for descriptors."""

from __future__ import annotations

import socket
from contextlib import suppress


class Bell:
    """Readable from the moment it is rung until it is silenced. Ringing never waits; any thread may."""

    def __init__(self) -> None:
        self._heard, self._rung = socket.socketpair()
        self._heard.setblocking(False)
        self._rung.setblocking(False)

    def fileno(self) -> int:
        return self._heard.fileno()

    def ring(self) -> None:
        # Full means that it rings; closed, that nobody listens any more.
        with suppress(OSError):
            self._rung.send(b"!")

    def silence(self) -> None:
        with suppress(OSError):
            while self._heard.recv(4096):
                pass

    def close(self) -> None:
        self._heard.close()
        self._rung.close()
