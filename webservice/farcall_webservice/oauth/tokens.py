"""Ending a token, and asking what one is good for."""

from __future__ import annotations

from typing import Any

from authlib.oauth2.rfc6749 import InvalidGrantError, InvalidRequestError
from flask import request
from sqlalchemy import Row

from farcall_webservice import auth
from farcall_webservice.extensions import services
from farcall_webservice.oauth import issuing, places, scopes
from farcall_webservice.oauth.clients import Client
from farcall_webservice.oauth.server import ANY_CLIENT, CONFIDENTIAL, Server


def revoke(server: Server) -> None:
    """End the token of the request's form, if there is one.

    Whoever has a token may end it; a client that says who it is must be the one that was given it. With a refresh
    token end the access tokens that came of it, with a token of `token create` the logins by it. Raises
    :class:`OAuth2Error`.
    """
    client = server.client_of(ANY_CLIENT) if _names_a_client() else None
    database, secret = services().database, _token()
    refresh = issuing.find_refresh_token(database, secret)
    if refresh is not None:
        _check_owner(refresh, client)
        issuing.revoke_refresh_token(database, refresh)
    access = issuing.find_access_token(database, secret)
    if access is not None:
        _check_owner(access, client)
        auth.revoke_token(database, access.id)


def introspect(server: Server) -> dict[str, Any]:
    """What a registered client may know of a token that somebody sent to it. Raises :class:`OAuth2Error`."""
    server.client_of(CONFIDENTIAL)
    row = issuing.find_access_token(services().database, _token())
    if row is None or auth.has_ended(row):
        return {"active": False}
    document = {
        "active": True,
        "token_type": "Bearer",
        "sub": row.user_id,
        "username": row.user_name,
        "name": row.user_name,
        "email": None,
        "identity_set": [row.user_id],
        "iss": places.issuer(),
        "iat": int(row.created_at),
        "nbf": int(row.created_at),
        "client_id": row.client_id,
        # A token of `token create` is good for everything, has no client, and may have no end.
        "scope": row.scope or " ".join(scopes.MEANINGS),
        "aud": [row.resource_server] if row.resource_server else [scopes.COMPUTE_SERVER, scopes.AUTH_SERVER],
        "exp": None if row.expires_at is None else int(row.expires_at),
    }
    return {name: value for name, value in document.items() if value is not None}


def _names_a_client() -> bool:
    return "Authorization" in request.headers or bool(request.form.get("client_id"))


def _token() -> str:
    secret = request.form.get("token")
    if not secret:
        raise InvalidRequestError("Missing 'token' in request")
    return secret


def _check_owner(row: Row[Any], client: Client | None) -> None:
    if client is not None and row.client_id not in (None, client.id):
        raise InvalidGrantError("The token was given to another client")
