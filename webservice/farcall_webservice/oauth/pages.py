"""The pages that a person sees: the login, and the code to copy.

There is no session and no cookie. The login page's form carries the request's own parameters, which are checked again
when it comes back, so there is no state that somebody could forge, and nobody is logged in by merely looking.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import math
from importlib import resources
from typing import Any

from authlib.oauth2.rfc6749 import AccessDeniedError, OAuth2Error
from flask import Response, render_template, request
from sqlalchemy.exc import SQLAlchemyError
from werkzeug.exceptions import HTTPException

from farcall_webservice import auth, errors
from farcall_webservice.database import UNAVAILABLE
from farcall_webservice.errors import ApiError
from farcall_webservice.extensions import services
from farcall_webservice.oauth import guessing, passwords, places, scopes
from farcall_webservice.oauth.routes import SERVER, SWEEPER
from farcall_webservice.openapi import Blueprint

log = logging.getLogger(__name__)

blueprint = Blueprint("login pages", __name__, description="What a person's browser shows at a login.")

#: What the form carries from the first request to the second.
PARAMETERS = (
    "client_id",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
    "nonce",
    "access_type",
    "code_challenge",
    "code_challenge_method",
    "prefill_named_grant",
)
_REQUIRED = ("client_id", "response_type", "code_challenge", "code_challenge_method")
_DESCRIBED = [
    {"in": "query", "name": name, "required": name in _REQUIRED, "schema": {"type": "string"}} for name in PARAMETERS
]
_PAGE = {"type": "string"}

_STYLE = resources.files("farcall_webservice").joinpath("templates/login.css").read_text(encoding="utf-8")
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()


@blueprint.operation(
    "GET",
    places.AUTHORIZE,
    id="showLogin",
    answer=_PAGE,
    content_type="text/html",
    failures=(400,),
    needs_token=False,
    described={"parameters": _DESCRIBED},
)
def show_login() -> Response:
    """The login page: says which client asks for what"""
    return _login_page(SERVER.get_consent_grant())


@blueprint.operation(
    "POST",
    places.AUTHORIZE,
    id="logIn",
    answer=_PAGE,
    content_type="text/html",
    failures=(303, 400, 403, 413, 429),
    needs_token=False,
    described={
        "requestBody": {
            "required": True,
            "content": {
                "application/x-www-form-urlencoded": {
                    "schema": {
                        "type": "object",
                        "required": [*_REQUIRED, "decision"],
                        "properties": {
                            **{name: {"type": "string"} for name in PARAMETERS},
                            "name": {"type": "string"},
                            "secret": {"type": "string", "description": "The password, or a token of the user."},
                            "decision": {"type": "string", "enum": ["allow", "deny"]},
                        },
                    },
                    "example": {"client_id": "4cf29807-cf21-49ec-9443-ff9a3fb9f81c", "decision": "deny"},
                }
            },
        }
    },
)
def log_in() -> Response:
    """What the login page sends: leads on to the client with a code, or with the refusal"""
    grant = SERVER.get_consent_grant()
    if request.form.get("decision") != "allow":
        state = request.form.get("state")
        raise AccessDeniedError("The login was cancelled", redirect_uri=grant.redirect_uri, state=state)
    name, secret = request.form.get("name", "").strip(), request.form.get("secret", "")
    if not name or not secret:
        return _login_page(grant, name, "Both fields are needed: your name, and your password or a token.", 400)
    database, address = services().database, request.remote_addr or ""
    try:
        person = passwords.log_in(database, name, secret, address)
    except passwords.Busy:
        page = _login_page(grant, name, "Too many people are logging in at this moment. Try again.", 503)
        page.headers["Retry-After"] = "2"
        return page
    except guessing.TooManyFailures as error:
        wait_s = math.ceil(error.wait_s)
        log.warning("login as %s from %s: too many failures, %d s to wait", _loggable(name), address, wait_s)
        page = _login_page(grant, name, f"Too many failed attempts. Try again in {_in_words(wait_s)}.", 429)
        page.headers["Retry-After"] = str(wait_s)
        return page
    if person is None:
        log.warning("login as %s from %s through client %s failed", _loggable(name), address, grant.client.id)
        SWEEPER.now_and_then(database)
        return _login_page(grant, name, "That name and that password or token do not belong together.", 403)
    log.info("%r logged in from %s through client %s (%s)", name, address, grant.client.id, grant.client.name)
    response: Response = SERVER.create_authorization_response(grant=grant, grant_user=person)
    return _uncached(response)


@blueprint.operation(
    "GET",
    places.CODE_PAGE,
    id="showCode",
    answer=_PAGE,
    content_type="text/html",
    needs_token=False,
    described={
        "parameters": [{"in": "query", "name": name, "schema": {"type": "string"}} for name in ("code", "error")]
    },
)
def show_code() -> Response:
    """The code to copy into the program that asked for it, or why there is none"""
    word = request.args.get("error", "")
    # Sentences of ours alone: anybody can make a link to this page.
    problem = _REASONS.get(word, "The service refused what the program asked for.") if word else ""
    return _page("code.html", code=request.args.get("code", "")[:200], problem=problem)


_REASONS = {
    "access_denied": "The login was cancelled.",
    "invalid_scope": "The program asked for something that this service does not have.",
    "unsupported_response_type": "The program asked for a kind of login that this service does not have.",
}


@blueprint.errorhandler(OAuth2Error)  # type: ignore[untyped-decorator]
def _refuse(error: OAuth2Error) -> Response:
    if error.redirect_uri:
        return _uncached(SERVER.refusal(error))
    # Nothing shows that the redirect URI is the client's, so nobody is led there.
    problem = error.get_error_description() or error.error
    advice = "Nothing was sent to anybody. Something is wrong with the link or with the program that made it."
    return _page("refused.html", status=400, problem=problem, advice=advice)


def _fail(error: ApiError) -> Response:
    page = _page(
        "refused.html", status=error.status, problem=f"{error.message}.", advice="Nothing was sent to anybody."
    )
    page.headers.update(error.headers)
    return page


@blueprint.errorhandler(HTTPException)  # type: ignore[untyped-decorator]
def _fail_over_request(error: HTTPException) -> Response:
    return _fail(errors.of_http_exception(error))


def _fail_over_database(error: SQLAlchemyError) -> Response:
    return _fail(errors.database_unavailable(error))


for _unavailable in UNAVAILABLE:
    blueprint.register_error_handler(_unavailable, _fail_over_database)


def _uncached(response: Response) -> Response:
    # Its address may hold a code.
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    return response


def _login_page(grant: Any, name: str = "", problem: str = "", status: int = 200) -> Response:
    return _page(
        "login.html",
        status=status,
        # Browsers hold this against every page that the answer leads to, and those may lead on.
        form_action="'self' http: https:",
        client=grant.client,
        asked_from=request.values.get("prefill_named_grant", "")[:200],
        goes_to=None if places.is_code_page(grant.redirect_uri) else places.origin(grant.redirect_uri),
        meanings=[scopes.MEANINGS[each] for each in dict.fromkeys(grant.request.scope.split())],
        parameters={each: request.values[each] for each in PARAMETERS if each in request.values},
        name=name[:255],
        problem=problem,
    )


def _page(template: str, *, status: int = 200, form_action: str = "'none'", **values: Any) -> Response:
    response = Response(render_template(template, style=_STYLE, **values), status, mimetype="text/html")
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; form-action {form_action}; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Frame-Options"] = "DENY"
    return _uncached(response)


def _loggable(name: str) -> str:
    """What was typed as a name is logged only if it is one: people slip, and type the password there."""
    return repr(name) if auth.user_id_of(services().database, name) is not None else "a name that nobody has"


def _in_words(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 120 else f"{math.ceil(seconds / 60)} minutes"
