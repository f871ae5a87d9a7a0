"""Programs that may ask for tokens: those that were registered, and Globus Compute's own, which everybody has."""

from __future__ import annotations

import hmac
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Row, insert, select, update

from farcall.errors import ConfigurationError
from farcall_webservice import auth
from farcall_webservice.database import Database
from farcall_webservice.fields import uuid_text
from farcall_webservice.models import OAuthClient, User
from farcall_webservice.oauth import places

SECRET_PREFIX = "fcs_"


@dataclass(frozen=True)
class Client:
    """A client as Authlib asks about it."""

    id: str
    name: str
    #: Both are null for a public client, which acts as whoever logs in through it.
    user_id: str | None
    secret_digest: str | None
    redirect_uris: tuple[str, ...]

    @property
    def is_public(self) -> bool:
        """It runs on people's machines and cannot keep a secret: its proof is PKCE."""
        return self.secret_digest is None

    def get_client_id(self) -> str:
        return self.id

    def get_default_redirect_uri(self) -> None:
        """There is none: a login names its redirect URI, and the exchange of the code repeats it."""

    def get_allowed_scope(self, scope: str | None) -> str:
        return scope or auth.COMPUTE_SCOPE

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        if redirect_uri in self.redirect_uris:
            return True
        return self.is_public and (places.is_code_page(redirect_uri) or places.is_loopback(redirect_uri))

    def check_client_secret(self, secret: str) -> bool:
        return self.secret_digest is not None and hmac.compare_digest(self.secret_digest, auth.digest(secret))

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        return (method == "none") == self.is_public

    def check_response_type(self, response_type: str) -> bool:
        return response_type == "code" and self._logs_people_in

    def check_grant_type(self, grant_type: str) -> bool:
        if grant_type == "client_credentials":
            return self.user_id is not None and not self.is_public
        return self._logs_people_in

    @property
    def _logs_people_in(self) -> bool:
        return self.is_public or bool(self.redirect_uris)


#: Globus Compute's SDK and endpoint log people in as this client.
GLOBUS_COMPUTE = Client("4cf29807-cf21-49ec-9443-ff9a3fb9f81c", "Globus Compute", None, None, ())


def find(database: Database, client_id: str) -> Client | None:
    """The client, unless it is unknown or revoked."""
    wanted = uuid_text(client_id)
    if wanted is None:
        return None
    if wanted == GLOBUS_COMPUTE.id:
        return GLOBUS_COMPUTE
    with database.reading() as connection:
        row = connection.execute(
            select(OAuthClient).where(OAuthClient.id == wanted, OAuthClient.revoked_at.is_(None))
        ).one_or_none()
    return row and Client(row.id, row.name, row.user_id, row.secret_digest, tuple(row.redirect_uris))


def hold(connection: Connection, client: Client) -> bool:
    """Whether the client is still good; it cannot be revoked before this transaction has ended."""
    if client == GLOBUS_COMPUTE:
        return True
    query = select(OAuthClient.id).where(OAuthClient.id == client.id, OAuthClient.revoked_at.is_(None))
    return connection.execute(query.with_for_update(read=True)).first() is not None


def create(database: Database, user_name: str, *, name: str = "", redirect_uris: Sequence[str] = ()) -> tuple[str, str]:
    """A new client that acts as that user, who is made if there is none: its id and its secret, shown only now.

    With redirect URIs it may log people in too.
    """
    for uri in redirect_uris:
        _check_redirect_uri(uri)
    if name:
        auth.check_name(name, "client")
    client_id, secret = str(uuid.uuid4()), SECRET_PREFIX + secrets.token_urlsafe(32)
    user_id = auth.user_id_of(database, user_name) or auth.create_user(database, user_name)
    with database.writing() as connection:
        connection.execute(
            insert(OAuthClient),
            {
                "id": client_id,
                "name": name or user_name,
                "user_id": user_id,
                "secret_digest": auth.digest(secret),
                "redirect_uris": list(redirect_uris),
                "created_at": time.time(),
            },
        )
    return client_id, secret


def listed(database: Database) -> list[Row[Any]]:
    """Every registered client with its user's name, oldest first."""
    with database.reading() as connection:
        return list(
            connection.execute(
                select(
                    OAuthClient.id,
                    OAuthClient.name,
                    OAuthClient.created_at,
                    OAuthClient.revoked_at,
                    User.name.label("user_name"),
                )
                .join(User, User.id == OAuthClient.user_id)
                .order_by(OAuthClient.created_at)
            )
        )


def revoke(database: Database, client_id: str) -> None:
    """Refuse the client, and every token that it was given, from now on. Doing it twice is no error."""
    with database.writing() as connection:
        wanted = uuid_text(client_id)
        known = wanted and connection.execute(select(OAuthClient.id).where(OAuthClient.id == wanted)).first()
        if not known:
            raise ConfigurationError(f"there is no client {client_id!r}")
        connection.execute(
            update(OAuthClient)
            .where(OAuthClient.id == wanted, OAuthClient.revoked_at.is_(None))
            .values(revoked_at=time.time())
        )
        auth.revoke(connection, lambda table: table.client_id == wanted)


def _check_redirect_uri(uri: str) -> None:
    try:
        parts = urlsplit(uri)
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not (usable or places.is_loopback(uri)):
        raise ConfigurationError(
            f"{uri!r} cannot be a redirect URI: https://... is needed, or http:// with a loopback address"
        )
    wrong = next((each for each in uri if not "!" <= each <= "~" or each in "\"\\';,#*"), None)
    if wrong is not None:
        raise ConfigurationError(f"{uri!r} cannot be a redirect URI: the character {wrong!r} cannot be in it")
