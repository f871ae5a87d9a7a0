"""The login of this account: a token, or a client's id and secret that are turned into tokens as they run out."""

from __future__ import annotations

import os
import threading
import time

from farcall import config
from farcall.auth import Credentials, FixedToken
from farcall.errors import ServiceError, Unauthenticated
from farcall.transport import Transport

#: A token is replaced so long before it expires, so that none expires on its way. One that lives shortly: earlier.
MARGIN_S = 60.0
_TOKEN, _REVOKE = "/auth/v2/oauth2/token", "/auth/v2/oauth2/token/revoke"


class ClientLogin:
    """OAuth's client credentials. The token is kept in memory only; another is a request away."""

    def __init__(self, service_url: str, client_id: str, client_secret: str) -> None:
        # Whoever sends the request that needs a token tries again, so this does not.
        self._transport = Transport(service_url, retry_for_s=0)
        self._client = {"client_id": client_id, "client_secret": client_secret}
        self._token: str | None = None
        self._good_until = 0.0
        self._lock = threading.Lock()
        self._pid = os.getpid()
        #: What each thread sent last.
        self._sent = threading.local()

    def header(self) -> str:
        with self._locked():
            if self._token is None or time.monotonic() >= self._good_until:
                self._get_token()
            self._sent.token = self._token
            return f"Bearer {self._token}"

    def renew(self) -> bool:
        with self._locked():
            # Unless another thread has renewed it since this one sent it.
            if self._token == getattr(self._sent, "token", None):
                self._token = None
        return True

    def forget(self) -> None:
        """End the token. The next request asks for another one."""
        with self._locked():
            token, self._token = self._token, None
        if token is not None:
            self._transport.post(_REVOKE, form={"token": token, **self._client})

    def _get_token(self) -> None:
        asked_at = time.monotonic()
        try:
            answer = self._transport.post(_TOKEN, form={"grant_type": "client_credentials", **self._client})
        except ServiceError as error:
            if error.code != "INVALID_CLIENT":
                raise
            url, client_id = self._transport.service_url, self._client["client_id"]
            raise Unauthenticated(
                f"{url} does not let the client {client_id} in: {error.message}",
                http_status=401,
                code=error.code,
                request_id=error.request_id,
            ) from None
        try:
            token, lifetime_s = str(answer["access_token"]), float(answer["expires_in"])
        except (KeyError, TypeError, ValueError) as error:
            raise ServiceError(
                f"{self._transport.service_url} answered the login with something unexpected: is it a Farcall service?"
            ) from error
        self._token, self._good_until = token, asked_at + lifetime_s - min(MARGIN_S, lifetime_s / 10)

    def _locked(self) -> threading.Lock:
        # Another thread of the parent may have held the lock when this process was forked off.
        if self._pid != os.getpid():
            self._lock, self._pid = threading.Lock(), os.getpid()
        return self._lock


class StoredLogin:
    """What the environment or the credentials file says, looked up again when the service refuses it.

    A service that was set up anew has written another token there, and a long-running program should not have to be
    restarted for that.
    """

    def __init__(self, settings: config.Settings) -> None:
        self._settings = settings
        self._login = _login(settings)
        #: What each thread sent last.
        self._sent = threading.local()

    def header(self) -> str | None:
        login = self._sent.login = self._login
        return login.header()

    def renew(self) -> bool:
        settings = config.load(self._settings.service_url)
        if settings != self._settings:
            self._settings, self._login = settings, _login(settings)
        # Another thread may have looked it up since this one sent it.
        return self._login is not getattr(self._sent, "login", None) or self._login.renew()

    def forget(self) -> None:
        """Remove the credentials file if it is for this service, and end the token that a client's id and secret gave.

        What is left after that, in variables of the environment, is used from then on.
        """
        url, login = self._settings.service_url, self._login
        stored = config.read_credentials()
        if stored is not None and config.same_service(stored.service_url, url):
            config.remove_credentials()
        self._settings = config.load(url)
        self._login = _login(self._settings)
        if isinstance(login, ClientLogin):
            login.forget()


def _login(settings: config.Settings) -> Credentials:
    if settings.client_id and settings.client_secret:
        return ClientLogin(settings.service_url, settings.client_id, settings.client_secret)
    return FixedToken(settings.token)
