"""The key that signs id tokens, and the tokens themselves.

It is made when it is first needed and kept in the database, so that every web process signs with the same one. Only its
public half is ever answered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError

from farcall_webservice.database import Database
from farcall_webservice.models import SigningKey

#: Globus Auth's, and what its SDK expects.
ALGORITHM = "RS512"
_BITS = 2048
_PURPOSE = "id_token"


def public_keys(database: Database) -> dict[str, Any]:
    """As a JSON Web Key Set."""
    key = _signing_key(database)
    return {"keys": [{**key.as_dict(private=False), "kid": key.thumbprint(), "use": "sig", "alg": ALGORITHM}]}


def signed(database: Database, claims: Mapping[str, Any]) -> str:
    """The claims as a JSON Web Token."""
    key = _signing_key(database)
    header = {"alg": ALGORITHM, "typ": "JWT", "kid": key.thumbprint()}
    return jwt.encode(header, dict(claims), key, algorithms=[ALGORITHM])


def _signing_key(database: Database) -> RSAKey:
    pem = _kept(database)
    if pem is None:
        made = RSAKey.generate_key(_BITS).as_pem(private=True).decode()
        try:
            with database.writing() as connection:
                row = {"purpose": _PURPOSE, "private_pem": made, "created_at": time.time()}
                connection.execute(insert(SigningKey), row)
            pem = made
        except IntegrityError:
            # Another process was first, and everybody uses its key.
            pem = _kept(database)
            assert pem is not None
    return RSAKey.import_key(pem)


def _kept(database: Database) -> str | None:
    with database.reading() as connection:
        query = select(SigningKey.private_pem).where(SigningKey.purpose == _PURPOSE)
        return connection.execute(query).scalar_one_or_none()
