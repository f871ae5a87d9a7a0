"""The three ways to tokens: as oneself, by a code that a person's login gave, and by a refresh token."""

from __future__ import annotations

from typing import Any

from authlib.oauth2.rfc6749 import InvalidClientError, InvalidGrantError, InvalidRequestError, InvalidScopeError, grants
from authlib.oauth2.rfc7636 import CodeChallenge
from sqlalchemy import Row

from farcall_webservice import auth
from farcall_webservice.extensions import services
from farcall_webservice.oauth import identities, issuing, scopes
from farcall_webservice.oauth.clients import Client
from farcall_webservice.oauth.server import ANY_CLIENT, CONFIDENTIAL, Server

Answer = tuple[int, dict[str, Any], list[tuple[str, str]]]


class ClientCredentials(grants.ClientCredentialsGrant):  # type: ignore[misc]
    """A client with a secret acts as its user."""

    TOKEN_ENDPOINT_AUTH_METHODS = CONFIDENTIAL

    def create_token_response(self) -> Answer:
        scope = self.request.payload.scope or auth.COMPUTE_SCOPE
        tokens = issuing.tokens_of_client(services().database, self.client, scope, _lifetime_s())
        if tokens is None:
            raise InvalidClientError(description="The client was revoked")
        return 200, tokens, self.TOKEN_RESPONSE_HEADER


class Code(grants.AuthorizationCodeGrant):  # type: ignore[misc]
    """A person logged in on our page. Making the tokens and marking the code as used are one transaction."""

    TOKEN_ENDPOINT_AUTH_METHODS = ANY_CLIENT
    #: Letters and digits: 190 random bits, and the page shows all of it without scrolling.
    AUTHORIZATION_CODE_LENGTH = 32

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        asked = issuing.CodeRequest(
            client_id=request.client.id,
            user_id=request.user.user_id,
            redirect_uri=self.redirect_uri,
            scope=request.scope,
            nonce=data.get("nonce"),
            code_challenge=data.get("code_challenge"),
            by_token_id=request.user.token_id,
            offline=data.get("access_type") == "offline",
        )
        issuing.keep_code(services().database, code, asked)

    def query_authorization_code(self, code: str, client: Client) -> _KeptCode | None:
        row = issuing.find_code(services().database, code, client)
        return row and _KeptCode(row)

    def create_token_response(self) -> Answer:
        code = self.request.authorization_code.row
        # What may fail comes first: once the code is used up, nobody can ask again.
        signed = {"id_token": identities.id_token(code, _lifetime_s())} if scopes.OPENID in code.scope.split() else {}
        tokens = issuing.exchange_code(services().database, self.client, code, _lifetime_s())
        if tokens is None:
            raise InvalidGrantError("The code was used already, or what it came from has ended: log in again")
        return 200, {**tokens, **signed}, self.TOKEN_RESPONSE_HEADER


class _KeptCode:
    """A code's row as Authlib asks about it."""

    code_challenge_method = "S256"

    def __init__(self, row: Row[Any]) -> None:
        self.row = row
        self.code_challenge = row.code_challenge

    def get_redirect_uri(self) -> str:
        return str(self.row.redirect_uri)


class Proof(CodeChallenge):  # type: ignore[misc]
    """PKCE: by SHA-256 or not at all, and never without for a client that has no secret."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 -- as the base has it

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        super().validate_code_challenge(grant, redirect_uri)
        data = grant.request.payload.data
        if data.get("code_challenge") and not data.get("code_challenge_method"):
            raise InvalidRequestError("Missing 'code_challenge_method': S256 is the one that is taken")
        if grant.request.client.is_public and not data.get("code_challenge"):
            raise InvalidRequestError("Missing 'code_challenge': this client has no secret and must use PKCE")


class Refresh(grants.RefreshTokenGrant):  # type: ignore[misc]
    """A client goes on after its access token has expired."""

    TOKEN_ENDPOINT_AUTH_METHODS = ANY_CLIENT

    def validate_token_request(self) -> None:
        client = self._validate_request_client()
        secret = self.request.form.get("refresh_token")
        if not secret:
            raise InvalidRequestError("Missing 'refresh_token' in request")
        row = issuing.find_refresh_token(services().database, secret)
        if row is None or row.client_id != client.id:
            raise InvalidGrantError("This client was not given this refresh token: log in again")
        if not set(_scopes_of(self.request)) <= set(row.scope.split()):
            raise InvalidScopeError(f"The refresh token is good for no more than: {row.scope}")
        self.request.client, self.request.refresh_token = client, row

    def create_token_response(self) -> Answer:
        tokens = issuing.renew(
            services().database,
            self.client,
            self.request.refresh_token,
            self.request.form["refresh_token"],
            " ".join(_scopes_of(self.request)),
            _lifetime_s(),
        )
        if tokens is None:
            raise InvalidGrantError("The refresh token, or what it came from, was revoked or has expired: log in again")
        return 200, tokens, self.TOKEN_RESPONSE_HEADER


def make_server() -> Server:
    """The server with its grants."""
    server = Server()
    server.register_grant(ClientCredentials)
    server.register_grant(Code, [Proof()])
    server.register_grant(Refresh)
    return server


def _scopes_of(request: Any) -> list[str]:
    """Those that were asked for, each once."""
    return list(dict.fromkeys((request.payload.scope or "").split()))


def _lifetime_s() -> int:
    return services().config.access_token_s
