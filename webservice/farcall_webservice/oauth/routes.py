"""The issuer's routes for programs. They are those of Globus Auth that its SDK calls; errors are in OAuth's form."""

from __future__ import annotations

from typing import Any

from authlib.oauth2.rfc6749 import OAuth2Error
from flask import Response, request

from farcall_webservice import auth, errors
from farcall_webservice.documents import answer
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.fields import uuid_text
from farcall_webservice.oauth import identities, keys, places, scopes, tokens
from farcall_webservice.oauth.grants import make_server
from farcall_webservice.oauth.sweeping import Sweeper
from farcall_webservice.openapi import Blueprint

blueprint = Blueprint("logins", __name__, description="Logins: the built-in token issuer (OAuth 2, OpenID Connect).")

SERVER = make_server()
SWEEPER = Sweeper()

_BEARER: dict[str, Any] = {"security": [{"bearer": []}]}
_OBJECT = {"type": "object", "additionalProperties": True}
_TOKENS = {
    "type": "object",
    "required": ["access_token", "token_type", "expires_in", "scope", "resource_server", "other_tokens"],
    "properties": {
        "access_token": {"type": "string"},
        "refresh_token": {"type": "string"},
        "id_token": {"type": "string", "description": "A signed statement who logged in."},
        "token_type": {"type": "string", "enum": ["Bearer"]},
        "expires_in": {"type": "integer", "description": "Seconds."},
        "scope": {"type": "string"},
        "resource_server": {"type": "string", "enum": [scopes.COMPUTE_SERVER, scopes.AUTH_SERVER]},
        "other_tokens": {
            "type": "array",
            "items": _OBJECT,
            "description": "Of the other resource servers whose scopes were asked for, in the same form.",
        },
    },
}


def _form(example: dict[str, str], *, required: tuple[str, ...], security: list[Any], **more: str) -> dict[str, Any]:
    """How a form is documented: its fields with what they are, and an example."""
    fields = {name: {"type": "string", **({"description": said} if said else {})} for name, said in more.items()}
    schema = {"type": "object", "required": list(required), "properties": fields}
    content = {"application/x-www-form-urlencoded": {"schema": schema, "example": example}}
    return {"requestBody": {"required": True, "content": content}, "security": security}


@blueprint.operation(
    "POST",
    places.TOKEN,
    id="createToken",
    answer=_TOKENS,
    failures=(400, 401, 413),
    needs_token=False,
    described=_form(
        {"grant_type": "client_credentials", "scope": auth.COMPUTE_SCOPE},
        required=("grant_type",),
        security=[{"client": []}, {}],
        grant_type="`client_credentials`, `authorization_code` or `refresh_token`.",
        scope="Separated by spaces.",
        client_id="Of a public client, or of one that does not send the header Authorization.",
        client_secret="Of a client that does not send the header Authorization.",
        code="What the login page gave.",
        code_verifier="Whose SHA-256 was the code challenge.",
        redirect_uri="The one that the login page was asked with.",
        refresh_token="",
    ),
)
def create_token() -> Response:
    """Get tokens as a client, for a code of the login page, or for a refresh token"""
    response = SERVER.token_response()
    if response.status_code == 200:
        SWEEPER.now_and_then(services().database)
    return response


@blueprint.operation(
    "POST",
    places.REVOKE,
    id="revokeToken",
    answer={"type": "object", "properties": {"active": {"type": "boolean", "enum": [False]}}},
    failures=(400, 401, 413),
    needs_token=False,
    described=_form(
        {"token": "fcr_..."},
        required=("token",),
        security=[{"client": []}, {}],
        token="An access or refresh token; one that is not known is no error.",
        client_id="Left out, or of the client that was given the token.",
    ),
)
def revoke_token() -> Response:
    """End a token"""
    tokens.revoke(SERVER)
    return answer({"active": False})


@blueprint.operation(
    "POST",
    places.INTROSPECT,
    id="introspectToken",
    answer={"type": "object", "required": ["active"], "properties": {"active": {"type": "boolean"}}},
    failures=(400, 401, 413),
    needs_token=False,
    described=_form({"token": "fc_..."}, required=("token",), security=[{"client": []}], token="An access token."),
)
def introspect_token() -> Response:
    """What a token is good for, and whose it is; for clients with a secret"""
    return answer(tokens.introspect(SERVER))


@blueprint.operation(
    "GET",
    places.USERINFO,
    id="getUserinfo",
    answer=_OBJECT,
    failures=(401, 403),
    needs_token=False,
    described=_BEARER,
)
def get_userinfo() -> Response:
    """Who the token stands for"""
    caller = _caller()
    return answer(identities.userinfo(caller.id, caller.name))


@blueprint.operation(
    "GET",
    places.IDENTITIES,
    id="findIdentities",
    answer=_OBJECT,
    failures=(400, 401, 403),
    needs_token=False,
    described={
        **_BEARER,
        "parameters": [
            {"in": "query", "name": name, "schema": {"type": "string"}, "description": f"{what}, separated by commas."}
            for name, what in (("ids", "Ids of users"), ("usernames", "Names of users"))
        ],
    },
)
def find_identities() -> Response:
    """Users by their ids or by their names; who is not known is left out"""
    _caller()
    ids, names = _listed("ids"), _listed("usernames")
    if bool(ids) == bool(names):
        raise ApiError(400, "INVALID_REQUEST", "One of the parameters ids and usernames is needed")
    if len(ids) + len(names) > identities.MOST_AT_ONCE:
        raise ApiError(400, "INVALID_REQUEST", f"At most {identities.MOST_AT_ONCE} identities can be asked for at once")
    known = [checked for each in ids if (checked := uuid_text(each))]
    rows = identities.find(services().database, known, [name for name in names if name.isprintable()])
    return answer({"identities": [identities.identity(row) for row in rows]})


@blueprint.operation("GET", places.CONFIGURATION, id="getOpenidConfiguration", answer=_OBJECT, needs_token=False)
def get_openid_configuration() -> Response:
    """Where what is, for programs that know OpenID Connect"""
    base = places.base_url()
    return answer(
        {
            "issuer": places.issuer(),
            "authorization_endpoint": base + places.AUTHORIZE,
            "token_endpoint": base + places.TOKEN,
            "revocation_endpoint": base + places.REVOKE,
            "introspection_endpoint": base + places.INTROSPECT,
            "userinfo_endpoint": base + places.USERINFO,
            "jwks_uri": base + places.KEYS,
            "scopes_supported": list(scopes.MEANINGS),
            "response_types_supported": ["code"],
            "grant_types_supported": ["authorization_code", "client_credentials", "refresh_token"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "none"],
            "code_challenge_methods_supported": ["S256"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [keys.ALGORITHM],
            "claims_supported": ["sub", "name", "preferred_username", "iss", "aud", "exp", "iat", "auth_time", "nonce"],
        }
    )


@blueprint.operation("GET", places.KEYS, id="getKeys", answer=_OBJECT, needs_token=False)
def get_keys() -> Response:
    """The public key that id tokens are checked with"""
    return answer(keys.public_keys(services().database))


@blueprint.errorhandler(OAuth2Error)  # type: ignore[untyped-decorator]
def _refuse(error: OAuth2Error) -> Response:
    return SERVER.refusal(error)


@blueprint.errorhandler(ApiError)  # type: ignore[untyped-decorator]
def _answer(error: ApiError) -> Response:
    word = _WORDS.get(error.code, error.code.lower())
    return errors.answer(error, error=word, error_description=error.message)


#: OAuth's words (RFC 6750, 3.1) for codes of ours.
_WORDS = {
    "USER_UNAUTHENTICATED": "invalid_token",
    "INVALID_AUTH_TOKEN": "invalid_token",
    "INSUFFICIENT_AUTH_SCOPE": "insufficient_scope",
}


def _caller() -> auth.Caller:
    return auth.check(services().database, request.headers.get("Authorization"), scopes.OPENID)


def _listed(name: str) -> list[str]:
    return [part.strip() for part in request.args.get(name, "").split(",") if part.strip()]
