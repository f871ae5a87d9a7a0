"""What the commands ask of the service. One try each: somebody waits at a terminal and can say it again."""

from __future__ import annotations

from typing import Any

from farcall import config
from farcall.auth import Credentials, FixedToken
from farcall.login import ClientLogin, StoredLogin
from farcall.transport import Transport


class Service:
    """The service of this account, as its owner or a guest."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @classmethod
    def from_settings(cls) -> Service:
        """The one that the environment or the stored credentials name."""
        settings = config.load()
        return cls(Transport(settings.service_url, StoredLogin(settings), retry_for_s=0))

    @property
    def url(self) -> str:
        return self._transport.service_url

    def whoami(self) -> dict[str, Any]:
        """``id``, ``name`` and ``groups`` of the caller."""
        return _document(self._transport.get("/v2/whoami"))

    def health(self) -> dict[str, Any]:
        """How the service finds itself. Raises ServiceUnavailable where its database or broker is not well."""
        return _document(self._transport.get("/healthz"))

    def endpoint_status(self, endpoint_id: str) -> dict[str, Any]:
        """``status`` (online or offline), ``details`` of the last report and ``logs``, the newest first."""
        return _document(self._transport.get(f"/v2/endpoints/{endpoint_id}/status"))

    def lock(self, endpoint_id: str) -> None:
        """Have the endpoint's agent stop, wherever it is, and keep it out for a while."""
        self._transport.post(f"/v2/endpoints/{endpoint_id}/lock")

    def delete_endpoint(self, endpoint_id: str) -> None:
        self._transport.delete(f"/v2/endpoints/{endpoint_id}")


def log_in(service_url: str | None, token: str) -> tuple[str, dict[str, Any]]:
    """Store address and token if the service accepts the token. Returns the address and who the caller is."""
    url = config.load(service_url).service_url
    caller = _whoami(url, FixedToken(token))
    config.write_credentials(url, token)
    return url, caller


def log_in_client(service_url: str | None, client_id: str, secret: str) -> tuple[str, dict[str, Any]]:
    """Store address, id and secret if the service accepts them; tokens are then asked for as they are needed."""
    url = config.load(service_url).service_url
    login = ClientLogin(url, client_id, secret)
    caller = _whoami(url, login)
    login.forget()
    config.write_credentials(url, client_id=client_id, client_secret=secret)
    return url, caller


def _whoami(url: str, credentials: Credentials) -> dict[str, Any]:
    return Service(Transport(url, credentials, retry_for_s=0)).whoami()


def log_out() -> bool:
    """Forget the stored token. False if there was none."""
    return config.remove_credentials()


def _document(answer: Any) -> dict[str, Any]:
    return answer if isinstance(answer, dict) else {}
