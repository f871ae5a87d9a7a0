"""Where endpoints live on disk, what they may be called, and which identity the service gave them."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

from farcall.config import home
from farcall.errors import ConfigurationError

DEFAULT_NAME = "default"
LOG_NAME = "endpoint.log"

_ID_NAME = "endpoint.json"
#: The embedded service keeps its own files beside those of the endpoints.
_RESERVED = ("service",)


def endpoint_directory(name: str) -> Path:
    """Where the endpoint of that name is, or would be. Raises ConfigurationError for a name that cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ConfigurationError(
            f"an endpoint cannot be called {name!r}: a name has letters, digits, '.', '_' and '-' (at most 100) "
            "and begins with a letter or digit"
        )
    if name in _RESERVED:
        raise ConfigurationError(f"an endpoint cannot be called {name!r}: that directory belongs to the service")
    return home() / name


def endpoint_directories() -> list[Path]:
    """Every directory that holds an endpoint's configuration, by name."""
    found = {path.parent for pattern in ("*/config.yaml", "*/config.py") for path in home().glob(pattern)}
    return sorted(path for path in found if path.name not in _RESERVED and not path.name.startswith("."))


def read_endpoint_id(directory: Path) -> str | None:
    """The id under which the service knows the endpoint; None before its first start."""
    path = directory / _ID_NAME
    try:
        return str(uuid.UUID(json.loads(path.read_text())["endpoint_id"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f'{path} is damaged ({error}); it should read {{"endpoint_id": "..."}}. '
            "Put the id back, or remove the file to be registered as a new endpoint"
        ) from error


def write_endpoint_id(directory: Path, endpoint_id: str) -> None:
    """Remember the id; half a file is never seen."""
    new = directory / f"{_ID_NAME}.new"
    new.write_text(json.dumps({"endpoint_id": endpoint_id}) + "\n")
    new.replace(directory / _ID_NAME)


def forget_endpoint_id(directory: Path) -> None:
    (directory / _ID_NAME).unlink(missing_ok=True)
