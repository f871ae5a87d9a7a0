"""The settings of the service: from the environment, overridden by options of the command line."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from farcall.errors import ConfigurationError

MEGABYTE = 1024 * 1024

QueueType = Literal["classic", "quorum"]

DATABASE_SCHEMES = ("sqlite:///", "postgresql://", "postgresql+psycopg://")
BROKER_SCHEMES = ("redis://", "rediss://", "amqp://", "amqps://")


@dataclass(frozen=True)
class ServiceConfig:
    """Where the service lives, what it talks to, and how much it takes."""

    #: Everything of the embedded service is in ``<home>/service``.
    home: Path
    database_url: str
    #: None = the embedded service starts a broker of its own.
    broker_url: str | None = None
    #: RabbitMQ's management API, with an administrator's account: each endpoint and user then has one of their own.
    broker_admin_url: str | None = None
    #: The broker as others reach it, where that is not as the service does.
    broker_public_url: str | None = None
    host: str = "127.0.0.1"
    #: 5000 is what the Globus SDK's ``local`` environment is hard-wired to. 0 = any free port.
    port: int = 5000
    #: Processes of `web`, and threads of each. A long-poll, one for each waiting executor, keeps a thread.
    workers: int = 2
    threads: int = 200
    #: Of the queues on RabbitMQ that hold tasks and results: "classic", or "quorum", which is on several of its nodes.
    queue_type: QueueType = "classic"
    #: How others reach the service, where that is not the address they name in their requests (a proxy).
    public_url: str | None = None
    #: Proxies in front of the service whose word is taken for the address of a client (``X-Forwarded-For``).
    proxies: int = 0

    max_function_bytes: int = 10 * MEGABYTE
    #: The packed arguments of one task.
    max_payload_bytes: int = 10 * MEGABYTE
    #: The packed arguments of all tasks of one request.
    max_batch_bytes: int = 10 * MEGABYTE
    #: The body of one request: more than the arguments in it, which grow on the way into JSON.
    max_request_bytes: int = 16 * MEGABYTE
    #: Tasks in one request.
    max_batch_tasks: int = 10_000
    #: Of what a task prints, the last characters that are kept of each stream.
    max_log_characters: int = 256 * 1024
    #: How long a task is kept after its end, with its result.
    result_lifetime_s: int = 30 * 86_400
    #: A task that nothing is heard of for so long is given up.
    task_lifetime_s: int = 14 * 86_400
    #: The longest that a request may wait for news.
    max_wait_s: float = 25.0

    #: How long a token lives that a client asked for.
    access_token_s: int = 48 * 3600

    #: An agent that has registered counts as running for so long before its first heartbeat.
    registration_grace_s: float = 10.0
    #: How long a stopped endpoint may not register.
    lock_s: float = 60.0

    @property
    def service_directory(self) -> Path:
        return self.home / "service"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None, **options: Any) -> ServiceConfig:
        """Read the ``FARCALL_...`` variables; an option that is not None goes before its variable.

        Raises :class:`ConfigurationError`, which names the variable or option.
        """
        environment = os.environ if environment is None else environment
        given: dict[str, Any] = {}
        for name, variable in _VARIABLES.items():
            if options.get(name) is not None:
                given[name] = _checked(name, options[name], f"option --{name.replace('_', '-')}")
            elif environment.get(variable):
                given[name] = _checked(name, environment[variable], variable)
        home: Path = given.setdefault("home", Path.home() / ".farcall")
        if "public_url" in given:
            given["public_url"] = given["public_url"].rstrip("/")
        given.setdefault("database_url", f"sqlite:///{home / 'service' / 'ledger.sqlite'}")
        return cls(**given)


def _checked(name: str, value: Any, source: str) -> Any:
    if name == "home":
        return Path(value).expanduser().absolute()
    if name in _WHOLE_NUMBERS:
        return _whole_number(
            str(value), source, lowest=0 if name in ("port", "proxies") else 1, highest=_WHOLE_NUMBERS[name]
        )
    if name == "database_url":
        # SQLAlchemy before 2.1 takes the bare scheme for a driver that we do not use.
        url = str(value).replace("postgres://", "postgresql://", 1).replace("postgresql://", "postgresql+psycopg://", 1)
        return _url(url, source, DATABASE_SCHEMES, "postgresql://user:password@host/name")
    if name == "queue_type" and value not in get_args(QueueType):
        raise ConfigurationError(f"{source} is {str(value)!r}: it must be one of {', '.join(get_args(QueueType))}")
    if name in _URLS:
        return _url(str(value), source, *_URLS[name])
    return str(value)


def _whole_number(text: str, source: str, *, lowest: int, highest: int) -> int:
    # isdecimal() alone would let through digits of other scripts.
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
    if number is None or not lowest <= number <= highest:
        raise ConfigurationError(f"{source} is {text!r}: it must be a whole number from {lowest} to {highest}")
    return number


#: What a URL may begin with, and an example of it.
_URLS = {
    "broker_url": (BROKER_SCHEMES, "amqp://user:password@host:5672/"),
    "broker_public_url": (BROKER_SCHEMES, "amqps://broker.example.org:5671/"),
    "broker_admin_url": (("http://", "https://"), "http://user:password@host:15672"),
    "public_url": (("http://", "https://"), "https://farcall.example.org"),
}


def _url(url: str, source: str, schemes: tuple[str, ...], example: str) -> str:
    if not url.startswith(schemes):
        # The value may hold a password, so only what precedes it is shown.
        scheme = url.partition("//")[0]
        raise ConfigurationError(f"{source} begins with {scheme!r}: a URL such as {example} is needed")
    if not url.startswith("sqlite") and not _is_readable(url):
        raise ConfigurationError(
            f"{source} cannot be read as a URL such as {example}: the port must be a number, and in names and "
            "passwords the characters @ : / ? # % and blanks are written as %40 %3A %2F %3F %23 %25 %20"
        )
    return url


def _is_readable(url: str) -> bool:
    """Whether it means what was meant: a password with a character that has a meaning in URLs would shift its parts.

    >>> [_is_readable(f"amqp://me:{word}@host:5672/there") for word in ("p%2Fw", "p/w", "p@w", "p w", "p%w")]
    [True, False, False, False, False]
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return url.count("@") == parts.netloc.count("@") <= 1 and not re.search(r"\s|%(?![0-9A-Fa-f]{2})", url)


_VARIABLES = {
    field.name: f"FARCALL_{field.name.upper()}"
    for field in dataclasses.fields(ServiceConfig)
    if field.name not in ("max_wait_s", "registration_grace_s", "lock_s")
}
_WHOLE_NUMBERS = {
    "port": 65535,
    "proxies": 10,
    "workers": 1000,
    "threads": 10_000,
    "max_function_bytes": 1024 * MEGABYTE,
    "max_payload_bytes": 1024 * MEGABYTE,
    "max_batch_bytes": 1024 * MEGABYTE,
    "max_request_bytes": 1024 * MEGABYTE,
    "max_batch_tasks": 100_000,
    "max_log_characters": 64 * MEGABYTE,
    "result_lifetime_s": 36_500 * 86_400,
    "task_lifetime_s": 36_500 * 86_400,
    "access_token_s": 365 * 86_400,
}
