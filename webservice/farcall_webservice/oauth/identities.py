"""Who a token stands for, in the words of OpenID Connect and of Globus Auth.

A user is one identity: its id is the user's id, its username the user's name.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

from sqlalchemy import Row, or_, select

from farcall_webservice.database import Database
from farcall_webservice.extensions import services
from farcall_webservice.models import User
from farcall_webservice.oauth import keys, places

#: Identities in one answer.
MOST_AT_ONCE = 100


def userinfo(user_id: str, name: str) -> dict[str, Any]:
    """The claims about a user. Globus Compute's endpoint reads ``identity_set``."""
    shown = {"sub": user_id, "name": name, "email": None}
    identity = {**shown, "username": name, "organization": None}
    return {**shown, "preferred_username": name, "identity_set": [identity]}


def identity(row: Row[Any]) -> dict[str, Any]:
    """A user as the directory of identities shows them."""
    return {
        "id": row.id,
        "username": row.name,
        "name": row.name,
        "email": None,
        "organization": None,
        "status": "used",
        "identity_type": "login",
    }


def find(database: Database, ids: Collection[str], names: Collection[str]) -> list[Row[Any]]:
    """``id`` and ``name`` of the users that are known among these, by name."""
    with database.reading() as connection:
        query = select(User.id, User.name).where(or_(User.id.in_(ids), User.name.in_(names))).order_by(User.name)
        return list(connection.execute(query))


def id_token(code: Row[Any], lifetime_s: int) -> str:
    """The signed statement for the client who it was that logged in."""
    database = services().database
    (user,) = find(database, [code.user_id], [])
    now = int(time.time())
    claims = userinfo(user.id, user.name)
    claims.pop("identity_set")
    claims |= {
        "iss": places.issuer(),
        "aud": code.client_id,
        "iat": now,
        "exp": now + lifetime_s,
        "auth_time": int(code.created_at),
    }
    if code.nonce:
        claims["nonce"] = code.nonce
    return keys.signed(database, claims)
