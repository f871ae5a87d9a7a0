"""Where the issuer's own pages are, as the caller sees it."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from flask import request

from farcall_webservice.extensions import services

AUTHORIZE = "/auth/v2/oauth2/authorize"
#: Where the code is shown that a person copies into a terminal.
CODE_PAGE = "/auth/v2/web/auth-code"
TOKEN = "/auth/v2/oauth2/token"
REVOKE = f"{TOKEN}/revoke"
INTROSPECT = f"{TOKEN}/introspect"
USERINFO = "/auth/v2/oauth2/userinfo"
IDENTITIES = "/auth/v2/api/identities"
CONFIGURATION = "/auth/.well-known/openid-configuration"
KEYS = "/auth/jwk.json"

#: Strictly: what Python takes for an IPv6 address may hold anything after a percent sign.
_LOOPBACK = re.compile(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?", re.ASCII | re.IGNORECASE)


def base_url() -> str:
    """The service's public address where it was configured, else the one that the request named."""
    return services().config.public_url or request.url_root.rstrip("/")


def issuer() -> str:
    return f"{base_url()}/auth"


def is_code_page(uri: str) -> bool:
    """Whether this is our own page that shows a code, by the address of the settings or of this request.

    A proxy that ends TLS need not tell us that it does, so https at the request's host is ours too.
    """
    bases = (base_url(), f"{request.scheme}://{request.host}", f"https://{request.host}")
    return uri in {f"{base}{CODE_PAGE}" for base in bases}


def is_loopback(uri: str) -> bool:
    """Whether this leads to a program on the machine of the browser, on whatever port it found (RFC 8252, 7.3)."""
    try:
        parts = urlsplit(uri)
        usable = parts.port != 0 and _LOOPBACK.fullmatch(parts.netloc) is not None
    except ValueError:
        return False
    return usable and parts.scheme == "http" and not parts.fragment


def origin(uri: str) -> str:
    """Scheme, host and port."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"
