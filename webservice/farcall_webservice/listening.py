"""The socket on which a service is asked."""

from __future__ import annotations

import socket

from farcall.errors import ConfigurationError
from farcall_webservice.config import ServiceConfig


def listen(config: ServiceConfig) -> socket.socket:
    """Raise :class:`ConfigurationError` if it cannot be had."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
        listener.listen(1024)
    except (OSError, OverflowError) as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {config.host} port {config.port}: {error}. "
            "If another program uses it, choose a free one with --port"
        ) from error
    return listener
