"""Where the service is and as whom to log in: our variables, then the credentials file, then Globus's variables.

A secret in a variable of Globus's programs may be for Globus alone, so it is used only where nothing of Farcall's is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from farcall.errors import ConfigurationError

DEFAULT_SERVICE_URL = "http://localhost:5000"
#: A client's id and secret: ours, and what Globus Compute's and funcX's programs read.
OWN_VARIABLES = ("FARCALL_CLIENT_ID", "FARCALL_CLIENT_SECRET")
GLOBUS_VARIABLES = (
    ("GLOBUS_COMPUTE_CLIENT_ID", "GLOBUS_COMPUTE_CLIENT_SECRET"),
    ("FUNCX_SDK_CLIENT_ID", "FUNCX_SDK_CLIENT_SECRET"),
)
CLIENT_VARIABLES = (OWN_VARIABLES, *GLOBUS_VARIABLES)
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True)
class Settings:
    """What a client needs to find the service and be let in: a token, or a client's id and secret, or neither."""

    service_url: str
    token: str | None = field(default=None, repr=False)
    client_id: str | None = None
    client_secret: str | None = field(default=None, repr=False)

    @property
    def names_somebody(self) -> bool:
        return bool(self.token or self.client_id)


def home(environment: Mapping[str, str] | None = None) -> Path:
    """The directory of everything that Farcall keeps for this user."""
    environment = os.environ if environment is None else environment
    named = environment.get("FARCALL_HOME")
    # Absolute, so that it stays the same directory for a program that changes its own.
    return Path(named).expanduser().absolute() if named else Path.home() / ".farcall"


def credentials_path() -> Path:
    return home() / "credentials.json"


def load(service_url: str | None = None, token: str | None = None) -> Settings:
    """Put together what was passed, the environment, and the credentials file.

    A token goes before a client's id and secret, our variables before the file, and the file before the variables of
    Globus. What the file holds goes only to the file's own service: another URL gets no secret that was not meant for
    it.
    """
    stored = read_credentials()
    url = service_url or os.environ.get("FARCALL_SERVICE_URL") or (stored.service_url if stored else None)
    url = check_url(url or DEFAULT_SERVICE_URL)
    token = _checked_token(token, "the token that was passed") or _checked_token(
        os.environ.get("FARCALL_TOKEN"), "FARCALL_TOKEN"
    )
    if token:
        return Settings(url, token)
    client = _client_in(OWN_VARIABLES)
    if client is None and stored is not None and stored.names_somebody and same_service(stored.service_url, url):
        return replace(stored, service_url=url)
    # Only as far as they are needed: half a client of Globus is nothing to somebody who has another login.
    client = client or next(filter(None, map(_client_in, GLOBUS_VARIABLES)), None)
    return Settings(url, None, *(client or ()))


def _checked_token(token: str | None, source: str) -> str | None:
    """Without the line's end that a file or a program has left at it. What is wrong with one is told without it."""
    token = (token or "").strip()
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError(
            f"{source} holds a character that no token has, such as a blank or a line's end: set it to the token alone"
        )
    return token or None


def login_variable() -> str | None:
    """The variable of the environment that goes before what is kept, if one is set."""
    if os.environ.get("FARCALL_TOKEN"):
        return "FARCALL_TOKEN"
    return OWN_VARIABLES[0] if _client_in(OWN_VARIABLES) else None


def _client_in(variables: tuple[str, str]) -> tuple[str, str] | None:
    id_name, secret_name = variables
    client_id, secret = os.environ.get(id_name), os.environ.get(secret_name)
    if client_id and secret:
        return client_id, secret
    # An id alone means something to Globus's programs, so only ours is missed a secret.
    if secret or (client_id and variables == OWN_VARIABLES):
        there, missing = (secret_name, id_name) if secret else (id_name, secret_name)
        raise ConfigurationError(f"{there} is set, but {missing} is not: set both, or neither")
    return None


def read_credentials() -> Settings | None:
    """What the credentials file says; None where there is no file."""
    path = credentials_path()
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: document.get(name) for name in ("token", "client_id", "client_secret")}
        return Settings(check_url(document["service_url"]), **kept)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{path} is damaged ({error!r}): remove it and run `farcall-endpoint login`, or start the service again"
        ) from error


def write_credentials(
    service_url: str, token: str | None = None, *, client_id: str | None = None, client_secret: str | None = None
) -> Path:
    """Keep these for the next program of this user; nobody else may read them. Replaces the file in one step."""
    path = credentials_path()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        secrets = {"token": token, "client_id": client_id, "client_secret": client_secret}
        given = {name: value for name, value in secrets.items() if value is not None}
        json.dump({"service_url": check_url(service_url), **given}, file, indent=2)
        file.write("\n")
    draft.replace(path)
    return path


def remove_credentials() -> bool:
    """Forget them. False where there were none."""
    try:
        credentials_path().unlink()
    except FileNotFoundError:
        return False
    return True


def check_url(url: str) -> str:
    """The URL without a slash at its end. Raises :class:`ConfigurationError` for what is no http(s) URL."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError) as error:
        raise ConfigurationError(f"{url!r} is not the URL of a service: {error}") from error
    if not usable:
        raise ConfigurationError(f"{url!r} is not the URL of a service: write it like {DEFAULT_SERVICE_URL}")
    return url.rstrip("/")


def same_service(one: str, other: str) -> bool:
    """Whether two URLs lead to the same service; this machine has several names."""
    return _place(one) == _place(other)


def _place(url: str) -> tuple[str, str, int | None, str]:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, "loopback" if host in _LOOPBACK_NAMES else host, port, parts.path.rstrip("/")
