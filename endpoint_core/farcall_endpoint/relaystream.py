"""One TCP connection, as one end of a relay has it; like ``relay``, this runs on login nodes too."""

import socket

#: What may be on its way of one stream, in either direction.
WINDOW = 1024 * 1024

#: What is carried of one stream at a time.
CHUNK = 64 * 1024


class Stream:
    """One TCP connection, as one side of the pipes has it."""

    def __init__(self, number: int, sock: socket.socket) -> None:
        self.number = number
        self.sock = sock
        #: Bytes that the other side has room for.
        self.credit = WINDOW
        #: What has come for the connection and is not written yet.
        self.unwritten = bytearray()
        #: What was written since the other side was last told.
        self.written = 0
        #: The other side has nothing more for it.
        self.is_ending = False
        #: What the selector looks for.
        self.mask = 0
