"""Kombu's transport to Valkey, with a place for what somebody has pushed into a list past Kombu.

Kombu cannot read it, and has taken it off the list by then: it would be lost, and so would be why. Here it is delivered
as a message with those bytes for its body, and whoever consumes the queue sets it aside like any other garbage.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any

from kombu.transport import redis
from kombu.utils.json import loads

#: What Kombu raises over what is none of its messages.
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Channel(redis.Channel):  # type: ignore[misc]  # Kombu has no types
    """See the module."""

    #: Queue and bytes of what was taken off a list last.
    _taken: tuple[bytes, bytes] | None = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        client = super()._create_client(asynchronous=asynchronous)
        if asynchronous:
            parse = client.parse_response

            def remember(connection: Any, command_name: str, **options: Any) -> Any:
                answer = parse(connection, command_name, **options)
                if command_name == "BRPOP":
                    self._taken = answer
                return answer

            client.parse_response = remember
        return client

    def _brpop_read(self, **options: Any) -> Any:
        self._taken = None
        try:
            return super()._brpop_read(**options)
        except _UNREADABLE:
            # It may have been raised over a sound message, by whoever received that.
            if self._taken is None or self._is_sound(self._taken[1]):
                raise
            name, body = self._taken
            queue = name.decode().rsplit(self.sep, 1)[0]
            self.connection._deliver(_message(queue, body), queue)
            return True
        finally:
            self._taken = None

    def _is_sound(self, body: bytes) -> bool:
        try:
            info = self.Message(loads(body.decode()), channel=self).delivery_info
            return isinstance(info["exchange"], str) and isinstance(info["routing_key"], str)
        except _UNREADABLE:
            return False


class Transport(redis.Transport):  # type: ignore[misc]  # Kombu has no types
    Channel = Channel


def _message(queue: str, body: bytes) -> dict[str, Any]:
    return {
        "body": base64.b64encode(body).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {},
        "properties": {
            "delivery_tag": str(uuid.uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
        },
    }
