"""RabbitMQ's management API, as far as making and removing accounts needs it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import orjson
import urllib3

from farcall.errors import FarcallError

#: Of one request: it is made while an endpoint or a client waits for its own.
TIMEOUT_S = 5.0
#: Of one that others wait behind, and that is made once.
SHORT_TIMEOUT_S = 2.0


class ManagementError(FarcallError):
    """The broker's management API did not do what it was asked for."""


class Management:
    """The accounts of one broker, in one of its virtual hosts. May be used by several threads at a time."""

    def __init__(self, url: str, vhost: str) -> None:
        parts = urlsplit(url)
        account = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        #: Without the account, for messages.
        self.url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")
        self._vhost = quote(vhost, safe="")
        self._headers = {
            "Authorization": f"Basic {base64.b64encode(account.encode()).decode()}",
            "Content-Type": "application/json",
        }
        self._pool = urllib3.PoolManager(
            timeout=TIMEOUT_S, retries=urllib3.Retry(2, redirect=0, status=0, backoff_factor=0.1), maxsize=10
        )
        self._impatient = urllib3.PoolManager(timeout=SHORT_TIMEOUT_S, retries=False)

    def put_account(
        self,
        name: str,
        password: str,
        *,
        read: str,
        write: str,
        topics: Mapping[str, str] | None = None,
        patient: bool = True,
    ) -> None:
        """Make or renew an account that may do nothing else. ``topics``: what it may publish, by exchange."""
        pool = self._pool if patient else self._impatient
        user = quote(name, safe="")
        self._ask("PUT", f"users/{user}", {"password": password, "tags": ""}, pool=pool)
        # Before the permission to write comes what narrows it.
        for exchange, pattern in (topics or {}).items():
            self._ask(
                "PUT",
                f"topic-permissions/{self._vhost}/{user}",
                {"exchange": exchange, "write": pattern, "read": "^$"},
                pool=pool,
            )
        rights = {"configure": "^$", "write": write, "read": read}
        self._ask("PUT", f"permissions/{self._vhost}/{user}", rights, pool=pool)

    def delete_account(self, name: str) -> None:
        """Remove an account and end its connections. One that is not there is no error."""
        user = quote(name, safe="")
        self._ask("DELETE", f"users/{user}", absent=True)
        # Some versions end them with the account, others leave them open.
        self._ask("DELETE", f"connections/username/{user}", absent=True)

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        absent: bool = False,
        pool: urllib3.PoolManager | None = None,
    ) -> None:
        url = f"{self.url}/api/{path}"
        try:
            answer = (pool or self._pool).request(
                method, url, headers=self._headers, body=None if body is None else orjson.dumps(body)
            )
        except urllib3.exceptions.HTTPError as error:
            raise ManagementError(f"the broker's management API at {self.url} does not answer: {error}") from error
        if answer.status in (401, 403):
            raise ManagementError(
                f"the broker's management API at {self.url} refuses the account of the setting broker_admin_url "
                f"({answer.status} for {method} /api/{path}): it needs a user with the tag administrator"
            )
        if answer.status >= 400 and not (absent and answer.status in (404, 405)):
            raise ManagementError(
                f"{method} {url} answered {answer.status}: {answer.data[:500].decode(errors='replace')}"
            )
