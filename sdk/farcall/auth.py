"""Who is calling: where the Authorization header comes from."""

from __future__ import annotations

from typing import Any, Protocol


class Credentials(Protocol):
    """What :class:`farcall.transport.Transport` asks for each request."""

    def header(self) -> str | None:
        """The value of the Authorization header; None sends the request without one."""

    def renew(self) -> bool:
        """Called when the service refused the header. True if there is another one to try."""


class FixedToken:
    """A token that was passed in, or none."""

    def __init__(self, token: str | None) -> None:
        self._header = f"Bearer {token}" if token else None

    def header(self) -> str | None:
        return self._header

    def renew(self) -> bool:
        return False


class AuthorizerCredentials:
    """An authorizer of ``globus_sdk``, or anything that has its two methods."""

    def __init__(self, authorizer: Any) -> None:
        self._authorizer = authorizer

    def header(self) -> str | None:
        value: str | None = self._authorizer.get_authorization_header()
        return value

    def renew(self) -> bool:
        return bool(self._authorizer.handle_missing_authorization())
