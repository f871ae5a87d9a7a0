"""Tell the service who we are; be told where the broker is."""

from __future__ import annotations

import getpass
import platform
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from farcall import __version__, config
from farcall.errors import ServiceError
from farcall.login import StoredLogin
from farcall.transport import Transport
from farcall.wire import ACCEPTS_TASK_BATCH

from .addresses import Addresses
from .config import EndpointConfig


@dataclass(frozen=True)
class Registration:
    """What the service answered."""

    endpoint_id: str
    addresses: Addresses


class Registrar:
    """Registers one endpoint, and again when it asks where the broker is now."""

    def __init__(self, endpoint: EndpointConfig, *, sleep: Callable[[float], object]) -> None:
        settings = config.load()
        self._endpoint = endpoint
        #: For whatever else is asked of the service.
        self.transport = Transport(settings.service_url, StoredLogin(settings), sleep=sleep)

    def register(self, endpoint_id: str | None, *, retry_for_s: float | None = None) -> Registration:
        """Register under that id, or be given one. Raises ServiceError if the service says no or nothing."""
        method, path = ("POST", "/v3/endpoints") if endpoint_id is None else ("PUT", f"/v3/endpoints/{endpoint_id}")
        answer = self.transport.request(method, path, body=document(self._endpoint), retry_for_s=retry_for_s)
        try:
            return Registration(str(answer["endpoint_id"]), Addresses.of(answer))
        except (KeyError, TypeError, AttributeError) as error:
            raise ServiceError(
                f"{self.transport.service_url} answered the registration with something unexpected "
                f"({type(error).__name__}: {error}): is it a Farcall service, and not much older than this endpoint?"
            ) from error


def instance(endpoint: EndpointConfig) -> str:
    """Where an endpoint runs; two places cannot be the same endpoint at the same time."""
    return f"{socket.gethostname()}:{endpoint.directory}"


def document(endpoint: EndpointConfig) -> dict[str, Any]:
    """The body of a registration."""
    body: dict[str, Any] = {
        "endpoint_name": endpoint.name,
        "metadata": {
            "endpoint_version": __version__,
            "farcall_version": __version__,
            "python_version": platform.python_version(),
            "hostname": socket.gethostname(),
            "local_user": _user(),
            "endpoint_config": endpoint.text,
            "accepts": [ACCEPTS_TASK_BATCH],
            "instance": instance(endpoint),
        },
        "public": endpoint.public,
        "high_assurance": False,
    }
    if endpoint.display_name is not None:
        body["display_name"] = endpoint.display_name
    if endpoint.allowed_functions is not None:
        body["allowed_functions"] = list(endpoint.allowed_functions)
    return body


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # In a container our number may have no name.
        return "unknown"
