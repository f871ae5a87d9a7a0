"""Carries TCP connections over a pair of pipes, which may break and be replaced without a byte being lost.

There is a :class:`Session` at each end: the agent's, and one on the login node, where Python 3.6 has to do (see
``relayhost``). A connection of a compute node becomes a stream, and the agent's end connects it to a port of its own.

A frame is a head, and for DATA the bytes after it. Those that matter are counted, and kept until the other side says
that it has them; those that it has not when the pipes have been replaced are sent again. No side sends more of a stream
than the other has room for (CREDIT), so that a slow connection holds up no other.
"""

import os
import select
import selectors
import socket
import struct
import time
from collections import deque
from typing import Callable, Deque, Dict, List, Optional, Sequence

from farcall_endpoint.relaystream import CHUNK, WINDOW, Stream

#: Of what waits for the pipe: more would only make small messages wait behind large ones.
MOST_QUEUED = 4 * CHUNK

#: How often each side says that it is there; after so much silence the pipes are taken for broken.
BEAT_S, SILENCE_S = 5.0, 15.0

#: How long the relay waits for new pipes. Managers do not wait longer for the agent either.
GRACE_S = 60.0

#: How often what has come is acknowledged, in frames.
ACKNOWLEDGE_EVERY = 32

#: How long an end may take to say that it is one.
_FAREWELL_S = 2.0

_HEAD = struct.Struct("!BIQ")
_HELLO, _ACK, _BYE, _OPEN, _DATA, _CREDIT, _CLOSE = range(7)


class Session:
    """All streams, and the pipes that carry them now."""

    def __init__(self, ports: Sequence[int] = ()) -> None:
        #: Where a stream that the other side opens is connected to, on this machine.
        self.ports = ports
        self.has_ended = False
        #: The last pipes were given up because nothing came from them.
        self.fell_silent = False
        self.selector = selectors.DefaultSelector()
        self._streams: Dict[int, Stream] = {}
        self._opened = 0
        self._reader: Optional[int] = None
        self._writer = -1
        self._on_detach: Callable[[], None] = lambda: None
        self._is_greeted = False
        self._heard = self._detached = time.monotonic()
        self._next_beat = 0.0
        self._incoming = bytearray()
        self._queue: Deque[bytes] = deque()
        self._queued = 0
        self._sending = memoryview(b"")
        self._watches_writer = False
        # Frames that matter: those that the other side may not have, how many it has, how many we have and have said.
        self._unacknowledged: Deque[bytes] = deque()
        self._theirs = 0
        self._ours = 0
        self._said = 0
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._woken, False)
        self.selector.register(self._woken, selectors.EVENT_READ, self._end)

    # -- the pipes ----------------------------------------------------------------------------------------------------

    @property
    def is_attached(self) -> bool:
        return self._reader is not None

    def attach(self, reader: int, writer: int, on_detach: Callable[[], None] = lambda: None) -> None:
        """Use these pipes, which are the session's from now on, instead of those that there were."""
        self.detach()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._reader, self._writer, self._on_detach = reader, writer, on_detach
        self._heard = time.monotonic()
        self._next_beat = self._heard + BEAT_S
        self.fell_silent = False
        self.selector.register(reader, selectors.EVENT_READ, self._read)
        self._put(_HEAD.pack(_HELLO, 0, self._ours))

    def detach(self) -> None:
        """Let go of the pipes; the streams wait for others."""
        if self._reader is None:
            return
        if self._watches_writer:
            self.selector.unregister(self._writer)
            self._watches_writer = False
        self.selector.unregister(self._reader)
        os.close(self._reader)
        os.close(self._writer)
        self._reader = None
        self._is_greeted = False
        self._incoming.clear()
        self._queue.clear()
        self._queued = 0
        self._sending = memoryview(b"")
        self._detached = time.monotonic()
        self._on_detach()

    def end(self) -> None:
        """Have :meth:`run` return for good, and the other side too. Any thread may call it."""
        if not self.has_ended:
            os.write(self._wake, b".")

    def close(self) -> None:
        """Close every connection. The session is of no use afterwards."""
        self.has_ended = True
        self.detach()
        for stream in list(self._streams.values()):
            self._forget(stream)
        self.selector.close()
        os.close(self._woken)
        os.close(self._wake)

    def run(self, waits_for_pipes: bool = False) -> None:
        """Carry what there is until the session or its pipes have ended; or also until others come, for a while."""
        while not self.has_ended and (self.is_attached or waits_for_pipes):
            for stream in list(self._streams.values()):
                self._watch(stream)
            self._watch_writer()
            for key, mask in self.selector.select(1.0):
                # One that an earlier one has ended is not asked any more.
                if self.selector.get_map().get(key.fd) is key:
                    key.data(mask)
            self._look_at_clock()

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if not self.is_attached:
            self.has_ended = self.has_ended or now - self._detached > GRACE_S
        elif now - self._heard > SILENCE_S:
            self.fell_silent = True
            self.detach()
        elif now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._acknowledge()

    def _end(self, mask: int) -> None:
        self.has_ended = True
        # Nothing else matters now, but half a frame would not be understood.
        self._queue.clear()
        self._put(_HEAD.pack(_BYE, 0, 0))
        deadline = time.monotonic() + _FAREWELL_S
        while self.is_attached and (self._queue or self._sending) and time.monotonic() < deadline:
            select.select([], [self._writer], [], 0.1)
            self._write(0)

    def _watch_writer(self) -> None:
        wanted = self.is_attached and bool(self._queue or self._sending)
        if wanted and not self._watches_writer:
            self.selector.register(self._writer, selectors.EVENT_WRITE, self._write)
        elif self._watches_writer and not wanted:
            self.selector.unregister(self._writer)
        self._watches_writer = wanted

    def _put(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued += len(frame)

    def _send(self, frame: bytes) -> None:
        """A frame that matters."""
        self._unacknowledged.append(frame)
        if self._is_greeted:
            self._put(frame)

    def _acknowledge(self) -> None:
        self._said = self._ours
        self._put(_HEAD.pack(_ACK, 0, self._ours))

    def _write(self, mask: int) -> None:
        if not self._sending:
            parts: List[bytes] = []
            while self._queue and sum(map(len, parts)) < CHUNK:
                parts.append(self._queue.popleft())
            self._sending = memoryview(b"".join(parts))
        try:
            written = os.write(self._writer, self._sending)
        except BlockingIOError:
            return
        except OSError:
            self.detach()
            return
        self._sending = self._sending[written:]
        self._queued -= written

    def _read(self, mask: int) -> None:
        assert self._reader is not None
        try:
            data = os.read(self._reader, 4 * CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.detach()
            return
        self._heard = time.monotonic()
        self._incoming += data
        begin = 0
        while self.is_attached and len(self._incoming) - begin >= _HEAD.size:
            kind, number, value = _HEAD.unpack_from(self._incoming, begin)
            end = begin + _HEAD.size + (value if kind == _DATA else 0)
            if len(self._incoming) < end:
                break
            self._take(kind, number, value, bytes(self._incoming[begin + _HEAD.size : end]))
            begin = end
        if self.is_attached:
            del self._incoming[:begin]

    # -- frames -------------------------------------------------------------------------------------------------------

    def _take(self, kind: int, number: int, value: int, data: bytes) -> None:
        if kind == _HELLO:
            self._confirm(value)
            self._is_greeted = True
            for frame in self._unacknowledged:
                self._put(frame)
        elif kind == _ACK:
            self._confirm(value)
        elif kind == _BYE:
            self.has_ended = True
        else:
            self._ours += 1
            self._take_part(kind, number, value, data)
            if self._ours - self._said >= ACKNOWLEDGE_EVERY:
                self._acknowledge()

    def _confirm(self, count: int) -> None:
        while self._theirs < count and self._unacknowledged:
            self._unacknowledged.popleft()
            self._theirs += 1

    def _take_part(self, kind: int, number: int, value: int, data: bytes) -> None:
        if kind == _OPEN:
            self._connect(number, value)
            return
        stream = self._streams.get(number)
        if stream is None:
            return  # We have closed it, which they did not know yet.
        if kind == _CREDIT:
            stream.credit += value
        elif kind == _DATA:
            stream.unwritten += data
        elif kind == _CLOSE:
            stream.is_ending = True
            if not stream.unwritten:
                self._forget(stream)

    # -- streams ------------------------------------------------------------------------------------------------------

    def accept(self, listener: socket.socket, index: int) -> None:
        """A connection has come for the port with this index; the other side connects to what it is there."""
        try:
            sock = listener.accept()[0]
        except OSError:
            return
        self._opened += 1
        self._add(self._opened, sock)
        self._send(_HEAD.pack(_OPEN, self._opened, index))

    def _connect(self, number: int, index: int) -> None:
        try:
            sock = socket.create_connection(("127.0.0.1", self.ports[index]), timeout=5)
        except (OSError, IndexError):
            self._send(_HEAD.pack(_CLOSE, number, 0))
            return
        self._add(number, sock)

    def _add(self, number: int, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams[number] = Stream(number, sock)

    def _forget(self, stream: Stream) -> None:
        if self._streams.pop(stream.number, None) is not None:
            if stream.mask:
                self.selector.unregister(stream.sock)
            stream.sock.close()

    def _watch(self, stream: Stream) -> None:
        mask = selectors.EVENT_WRITE if stream.unwritten else 0
        if self._is_greeted and stream.credit and self._queued < MOST_QUEUED and not stream.is_ending:
            mask |= selectors.EVENT_READ
        if mask == stream.mask:
            return
        if stream.mask:
            self.selector.unregister(stream.sock)
        if mask:
            self.selector.register(stream.sock, mask, lambda ready: self._serve(stream, ready))
        stream.mask = mask

    def _serve(self, stream: Stream, ready: int) -> None:
        try:
            if ready & selectors.EVENT_WRITE:
                self._pass_on(stream)
            # Again, as the others may have filled the queue since it was last looked at.
            if ready & selectors.EVENT_READ and self._queued < MOST_QUEUED:
                self._fetch(stream)
        except BlockingIOError:
            return
        except OSError:
            self._finish(stream)

    def _pass_on(self, stream: Stream) -> None:
        written = stream.sock.send(memoryview(stream.unwritten)[:CHUNK].tobytes())
        del stream.unwritten[:written]
        stream.written += written
        if stream.is_ending and not stream.unwritten:
            self._forget(stream)
        elif stream.written >= WINDOW // 4:
            self._send(_HEAD.pack(_CREDIT, stream.number, stream.written))
            stream.written = 0

    def _fetch(self, stream: Stream) -> None:
        data = stream.sock.recv(min(CHUNK, stream.credit))
        if data:
            stream.credit -= len(data)
            self._send(_HEAD.pack(_DATA, stream.number, len(data)) + data)
        else:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        """The connection has ended here."""
        self._forget(stream)
        self._send(_HEAD.pack(_CLOSE, stream.number, 0))
