"""What the tests of logins share: an unregistered caller, a login through the page, and Globus Compute's names."""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from flask import Flask
from werkzeug.test import TestResponse

NATIVE = "4cf29807-cf21-49ec-9443-ff9a3fb9f81c"
COMPUTE = "https://auth.globus.org/scopes/facd7ccc-c5f4-42aa-916b-a0e270e2c2a9/all"
SCOPES = f"openid {COMPUTE} urn:globus:auth:scope:auth.globus.org:manage_projects"
CODE_PAGE = "http://localhost/auth/v2/web/auth-code"
VERIFIER = "v" * 64
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()


class Browser:
    """Somebody without a token: a browser, or a program that has yet to log in."""

    def __init__(self, app: Flask, address: str = "127.0.0.1") -> None:
        self._app = app
        self._from = {"REMOTE_ADDR": address}

    def get(self, path: str, **more: Any) -> TestResponse:
        return self._app.test_client().get(path, environ_overrides=self._from, **more)

    def post(self, path: str, form: dict[str, Any], **more: Any) -> TestResponse:
        return self._app.test_client().post(path, data=form, environ_overrides=self._from, **more)

    def ask_to_log_in(self, **changes: Any) -> TestResponse:
        return self.get("/auth/v2/oauth2/authorize", query_string=login_request(**changes))

    def log_in(self, name: str, secret: str, **changes: Any) -> TestResponse:
        """Send what the login page would."""
        form = {**login_request(**changes), "name": name, "secret": secret, "decision": "allow"}
        return self.post("/auth/v2/oauth2/authorize", {**form, **changes})

    def code(self, name: str, secret: str, **changes: Any) -> str:
        return code_in(self.log_in(name, secret, **changes))

    def token(self, form: dict[str, Any], basic: tuple[str, str] | None = None) -> TestResponse:
        return self.post("/auth/v2/oauth2/token", form, auth=basic)

    def exchange(self, code: str, **changes: Any) -> TestResponse:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": NATIVE,
            "code_verifier": VERIFIER,
            "redirect_uri": CODE_PAGE,
        }
        return self.token({name: value for name, value in {**form, **changes}.items() if value is not None})

    def refresh(self, refresh_token: str, **changes: Any) -> TestResponse:
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token, "client_id": NATIVE}
        return self.token({**form, **changes})

    def whoami(self, token: str) -> TestResponse:
        return self.get("/v2/whoami", headers=bearer(token))

    def userinfo(self, token: str) -> TestResponse:
        return self.get("/auth/v2/oauth2/userinfo", headers=bearer(token))


def login_request(**changes: Any) -> dict[str, str]:
    """As globus_sdk 4.9 asks."""
    wanted = {
        "client_id": NATIVE,
        "redirect_uri": CODE_PAGE,
        "scope": SCOPES,
        "state": "_default",
        "response_type": "code",
        "access_type": "offline",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        "prefill_named_grant": "laptop on laptop",
        **changes,
    }
    return {name: value for name, value in wanted.items() if value is not None}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def code_in(response: TestResponse) -> str:
    """The code in the address that a login leads to."""
    assert response.status_code == 303, response.text
    return parse_qs(urlsplit(response.location).query)["code"][0]


def problem_in(response: TestResponse) -> str:
    """What a page says is wrong."""
    found = re.search(r'class="problem"[^>]*>([^<]*)<', response.text)
    return found.group(1) if found else ""


def refused(response: TestResponse, status: int, error: str) -> str:
    """The description of an answer that has to be this error, in OAuth's form and in the service's own."""
    body = response.json or {}
    assert (response.status_code, body.get("error")) == (status, error), response.text
    assert body["error_description"] == body["message"]
    assert body["code"] and body["http_status_code"] == status
    return str(body["message"])


def done(response: TestResponse) -> Any:
    assert response.status_code == 200, response.text
    return response.json
