"""The protocol, by Authlib, on our clients and with our errors."""

from __future__ import annotations

import re
from typing import Any

import orjson
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.integrations.flask_oauth2.requests import FlaskOAuth2Payload, FlaskOAuth2Request
from authlib.oauth2 import OAuth2Request
from authlib.oauth2.rfc6749 import InvalidClientError, InvalidRequestError, InvalidScopeError, OAuth2Error
from flask import Request, Response, request

from farcall_webservice import auth, errors
from farcall_webservice.extensions import services
from farcall_webservice.oauth import clients, scopes

CONFIDENTIAL = ["client_secret_basic", "client_secret_post"]
ANY_CLIENT = [*CONFIDENTIAL, "none"]

#: What an error's description may hold (RFC 6749, 5.2). Authlib repeats some parameters in descriptions.
_SPEAKABLE = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]*")
_PLAIN_PARAMETERS = frozenset(
    {
        "client_id",
        "redirect_uri",
        "response_type",
        "grant_type",
        "scope",
        "nonce",
        "code_challenge",
        "code_challenge_method",
        "access_type",
    }
)


class _Request(FlaskOAuth2Request):  # type: ignore[misc]
    """A request that Authlib takes on whatever line it came.

    It would refuse plain http from elsewhere than this machine, and cannot see the proxy that ends TLS. Its switch for
    that is a variable of the environment, which would hold for every user of Authlib in the process.
    """

    def __init__(self, incoming: Request) -> None:
        OAuth2Request.__init__(self, incoming.method, f"https://{incoming.host}{incoming.path}", None, incoming.headers)
        self._request = incoming
        self.payload = FlaskOAuth2Payload(incoming)


class Server(AuthorizationServer):  # type: ignore[misc]
    """Authlib's server, which keeps nothing itself."""

    def query_client(self, client_id: str) -> clients.Client | None:
        return clients.find(services().database, client_id)

    def create_oauth2_request(self, _request: object) -> _Request:
        _check_parameters()
        return _Request(request)

    def token_response(self) -> Response:
        """The answer to a request for tokens."""
        try:
            if request.args:
                raise InvalidRequestError("The parameters belong into the body of the request, as a form")
            response: Response = self.create_token_response()
        except OAuth2Error as error:
            response = self.refusal(error)
        return response

    def client_of(self, methods: list[str]) -> clients.Client:
        """The client that sent the request. Raises :class:`OAuth2Error`."""
        found: clients.Client = self.authenticate_client(self.create_oauth2_request(None), methods)
        return found

    def authenticate_client(self, request: Any, methods: list[str], endpoint: str = "token") -> Any:
        try:
            return super().authenticate_client(request, methods, endpoint)
        except (InvalidClientError, ValueError) as error:
            # ValueError: what follows the word Basic is not base64.
            raise InvalidClientError(
                status_code=401 if "Authorization" in request.headers else 400,
                description="There is no such client, it was revoked, or its secret is missing or wrong",
            ) from error

    def validate_requested_scope(self, scope: str | None) -> None:
        try:
            scopes.split(scope or auth.COMPUTE_SCOPE)
        except scopes.UnknownScope as error:
            known = ", ".join(scopes.MEANINGS)
            raise InvalidScopeError(f"The scope {error} is unknown here; there are: {known}") from error

    def handle_response(self, status: int, payload: Any, headers: Any) -> Response:
        if isinstance(payload, dict):
            body = orjson.dumps(payload if status < 400 else problem(status, payload))
            return Response(body, status, headers)
        # 303 makes the browser forget the form, and with it the password; 302 usually does.
        return Response(payload, 303 if status == 302 else status, headers)

    def refusal(self, error: OAuth2Error) -> Response:
        """The answer to an error; it is sent to the client's page where that is known to be the client's."""
        response: Response = self.handle_error_response(None, error)
        return response


def problem(status: int, payload: dict[str, Any]) -> dict[str, Any]:
    """The service's error document, with what OAuth wants in it."""
    description = payload.get("error_description") or payload["error"]
    document = errors.document(errors.ApiError(status, str(payload["error"]).upper(), description))
    return {**document, **payload, "error_description": description}


def _check_parameters() -> None:
    for name, values in request.values.lists():
        if len(values) > 1:
            raise InvalidRequestError(f"A parameter is there {len(values)} times; each may be there once")
        if name in _PLAIN_PARAMETERS and not _SPEAKABLE.fullmatch(values[0]):
            raise InvalidRequestError(f"The parameter {name} holds characters that it cannot have")
