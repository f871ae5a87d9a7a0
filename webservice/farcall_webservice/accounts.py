"""Who may do what at the broker: an account for each endpoint and each user, with the least rights that will do.

Only with the setting ``broker_admin_url``; without it everybody is handed the same URL. Nothing is kept of an account
but the broker's own record: its password follows from its name and a secret that the processes of a service share.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
import threading
import time
from typing import Protocol
from urllib.parse import unquote, urlsplit

from flask import current_app
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from farcall.errors import ConfigurationError
from farcall_webservice import queues
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.errors import ApiError, broker_unavailable
from farcall_webservice.management import Management, ManagementError
from farcall_webservice.models import Secret

log = logging.getLogger(__name__)

#: An account that was made is believed to be there for so long. Less than the time for which an endpoint is locked.
BELIEVED_FOR_S = 30.0

_SECRET = "broker accounts"
#: Where an application keeps its own.
KEY = "farcall accounts"


class Accounts(Protocol):
    """Knows the broker's URL for each endpoint and each user.

    ``reached_as`` is the host by which they reached the service: a broker that listens everywhere has none of its own.
    """

    def for_endpoint(self, endpoint_id: str, reached_as: str | None, *, renewed: bool = False) -> str:
        """An endpoint's URL, or that of a child of one under the child's id. May raise ManagementError.

        ``renewed``: its account is made again even if it has just been made; somebody may have been refused.
        """

    def for_user(self, user_id: str, reached_as: str | None) -> str:
        """The URL of a user who waits for results. May raise ManagementError."""

    def remove_endpoint(self, endpoint_id: str) -> None:
        """Refuse an endpoint, and end its connections. May raise ManagementError."""


class SharedAccount:
    """Everybody uses the account in the broker's URL."""

    def __init__(self, broker_url: str) -> None:
        self._broker_url = broker_url

    def for_endpoint(self, endpoint_id: str, reached_as: str | None, *, renewed: bool = False) -> str:
        return queues.reachable_url(self._broker_url, reached_as)

    def for_user(self, user_id: str, reached_as: str | None) -> str:
        return queues.reachable_url(self._broker_url, reached_as)

    def remove_endpoint(self, endpoint_id: str) -> None:
        """There is none of its own."""


class OwnAccounts:
    """An account each, made through RabbitMQ's management API. May be used by several threads at a time."""

    def __init__(self, broker_url: str, management: Management, database: Database) -> None:
        self._broker_url = broker_url
        self._management = management
        self._database = database
        self._lock = threading.Lock()
        self._secret: bytes | None = None
        self._made: dict[str, float] = {}

    def for_endpoint(self, endpoint_id: str, reached_as: str | None, *, renewed: bool = False) -> str:
        """It may take its tasks and commands, and say things in its own name."""
        name = _endpoint_account(endpoint_id)
        if renewed or not self._is_made(name):
            self._management.put_account(
                name,
                self._password(name),
                read=rf"^{endpoint_id}\.(tasks|commands)$",
                write=f"^({queues.RESULTS.exchange.name}|{queues.HEARTBEATS.exchange.name})$",
                topics={
                    queue.exchange.name: rf"^{endpoint_id}\.{queue.name}$"
                    for queue in (queues.RESULTS, queues.HEARTBEATS)
                },
                # An endpoint that registers waits itself; behind the other one the whole dispatcher does.
                patient=renewed,
            )
            self._note(name)
        return self._url(name, reached_as)

    def for_user(self, user_id: str, reached_as: str | None) -> str:
        """They may read the results of their task groups."""
        name = f"farcall-user-{user_id}"
        if not self._is_made(name):
            self._management.put_account(name, self._password(name), read=rf"^tg\.{user_id}\..*$", write="^$")
            self._note(name)
        return self._url(name, reached_as)

    def remove_endpoint(self, endpoint_id: str) -> None:
        name = _endpoint_account(endpoint_id)
        with self._lock:
            self._made.pop(name, None)
        self._management.delete_account(name)

    def _is_made(self, name: str) -> bool:
        with self._lock:
            return time.monotonic() - self._made.get(name, float("-inf")) < BELIEVED_FOR_S

    def _note(self, name: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._made = {key: made for key, made in self._made.items() if now - made < BELIEVED_FOR_S}
            self._made[name] = now

    def _url(self, name: str, reached_as: str | None) -> str:
        parts = urlsplit(queues.reachable_url(self._broker_url, reached_as))
        host = parts.netloc.rpartition("@")[2]
        return parts._replace(netloc=f"{name}:{self._password(name)}@{host}").geturl()

    def _password(self, name: str) -> str:
        if self._secret is None:
            self._secret = _shared_secret(self._database)
        return hmac.new(self._secret, name.encode(), hashlib.sha256).hexdigest()


def make(config: ServiceConfig, database: Database) -> Accounts:
    """What the settings ask for. Raises :class:`ConfigurationError` if they do not go together."""
    assert config.broker_url is not None
    handed_out = config.broker_public_url or config.broker_url
    if config.broker_admin_url is None:
        return SharedAccount(handed_out)
    if not queues.speaks_amqp(config.broker_url):
        raise ConfigurationError(
            "broker_admin_url is set, but the broker is not RabbitMQ, which alone can give each endpoint and user an "
            "account of their own: set broker_url to an amqp:// URL, or leave broker_admin_url out"
        )
    return OwnAccounts(handed_out, Management(config.broker_admin_url, vhost_of(config.broker_url)), database)


def url_for_endpoint(endpoint_id: str, reached_as: str | None) -> str:
    """The broker's URL for an endpoint that registers. In a request."""
    try:
        return _own().for_endpoint(endpoint_id, reached_as, renewed=True)
    except ManagementError as error:
        raise _unavailable(error) from error


def url_for_user(user_id: str, reached_as: str | None) -> str:
    """The broker's URL for a user's results. In a request."""
    try:
        return _own().for_user(user_id, reached_as)
    except ManagementError as error:
        raise _unavailable(error) from error


def remove_endpoint(endpoint_id: str) -> None:
    """Refuse an endpoint that was deleted or locked. In a request."""
    try:
        _own().remove_endpoint(endpoint_id)
    except ManagementError as error:
        # It has been told to stop, and cannot register.
        log.warning("endpoint %s may still use its account at the broker: %s", endpoint_id, error)


def vhost_of(broker_url: str) -> str:
    """The virtual host in a URL, as Kombu reads it.

    >>> [vhost_of(f"amqp://host{path}") for path in ("", "/", "//", "/%2F", "/mine")]
    ['/', '/', '/', '/', 'mine']
    """
    return unquote(urlsplit(broker_url).path[1:]) or "/"


def _own() -> Accounts:
    accounts: Accounts = current_app.extensions[KEY]
    return accounts


def _endpoint_account(endpoint_id: str) -> str:
    return f"farcall-endpoint-{endpoint_id}"


def _shared_secret(database: Database) -> bytes:
    """The one in the database; whoever needs it first makes it."""
    query = select(Secret.value).where(Secret.name == _SECRET)
    with database.reading() as connection:
        found = connection.execute(query).scalar()
    if found is None:
        try:
            with database.writing() as connection:
                connection.execute(insert(Secret), {"name": _SECRET, "value": secrets.token_hex(32)})
        except IntegrityError:
            log.debug("another process has just made the secret")
        with database.reading() as connection:
            found = connection.execute(query).scalar_one()
    return bytes.fromhex(found)


def _unavailable(error: ManagementError) -> ApiError:
    log.error("%s", error)
    return broker_unavailable(
        "The service cannot make an account at its broker now: try again; if it stays so, its administrator finds the "
        "reason in its log"
    )
