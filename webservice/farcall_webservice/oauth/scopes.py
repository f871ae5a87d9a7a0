"""What a token can be good for.

Every scope belongs to a resource server, and a token is good at one resource server only: a client that asks for scopes
of two is given two tokens. The names are those of Globus, because its programs ask for them by these names.
"""

from __future__ import annotations

from farcall_webservice.auth import COMPUTE_SCOPE

OPENID = "openid"

COMPUTE_SERVER = "funcx_service"
AUTH_SERVER = "auth.globus.org"

#: In words, for the person who is asked. Ours is the only service here: the last three are taken because Globus's
#: programs ask for them, and open nothing that `openid` does not.
MEANINGS = {
    COMPUTE_SCOPE: "Register functions and endpoints, run tasks and read results in your name",
    OPENID: "Know who you are",
    "profile": "See your name",
    "email": "See your e-mail address (this service keeps none)",
    f"urn:globus:auth:scope:{AUTH_SERVER}:view_identities": "Look up the names of users",
    f"urn:globus:auth:scope:{AUTH_SERVER}:view_identity_set": "See your identities",
    f"urn:globus:auth:scope:{AUTH_SERVER}:manage_projects": "Manage projects (this service has none)",
}


class UnknownScope(ValueError):
    """A scope that no token can have here."""


def split(scope: str) -> dict[str, str]:
    """Resource server -> the scopes that were asked for there, each once. The one that says who it is comes first.

    Raises :class:`UnknownScope`.
    """
    wanted = dict.fromkeys(scope.split())
    for each in wanted:
        if each not in MEANINGS:
            raise UnknownScope(each)
    parts = {
        AUTH_SERVER: " ".join(each for each in wanted if each != COMPUTE_SCOPE),
        COMPUTE_SERVER: COMPUTE_SCOPE if COMPUTE_SCOPE in wanted else "",
    }
    return {server: scopes for server, scopes in parts.items() if scopes}
