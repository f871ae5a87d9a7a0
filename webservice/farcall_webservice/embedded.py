"""The whole service in one command: its parts are started and stopped together."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO

import waitress
from sqlalchemy.engine import make_url

from farcall.errors import ConfigurationError
from farcall_webservice import auth, larger, listening, parts, soundness
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import UNAVAILABLE, Database, cause_of
from farcall_webservice.errors import ApiError
from farcall_webservice.valkey import Valkey
from farcall_webservice.waiting import Waiting

log = logging.getLogger(__name__)

#: The user that the first start makes.
OWNER = "owner"
#: The most requests at a time. Each long-poll keeps a thread; some are kept free for requests that do not wait.
THREADS = 400
THREADS_KEPT_FREE = 40
#: An over-long body is refused by the application, in words, unless it is absurdly long.
BODY_LIMIT_FACTOR = 4


def serve(config: ServiceConfig) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Raises :class:`ConfigurationError` if the home is in use, the port is taken or a part cannot be started.
    """
    folder = config.service_directory
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as running:
        lock = running.enter_context(_only_service_of(config))
        listener = running.enter_context(listening.listen(config))
        port = int(listener.getsockname()[1])
        url = f"http://{_url_host(config.host)}:{port}"
        lock.write(f"{os.getpid()} {url}")
        lock.flush()
        _log_to(folder / "service.log")
        waiting = Waiting(THREADS - THREADS_KEPT_FREE)
        _end_on_signals(waiting)

        if config.broker_url is None:
            broker = Valkey(folder / "valkey", config.host)
            running.callback(broker.stop)
            broker.start()
            config = replace(config, broker_url=broker.url)
        else:
            larger.check_broker(config.broker_url, config.queue_type)
        _check_file(config)
        database = running.enter_context(contextlib.closing(Database(config.database_url)))
        _prepare(database)
        _let_this_account_in(config, database, url)
        # So that tables and owner are in the file itself, and not only among its latest changes.
        database.checkpoint()
        app = running.enter_context(parts.everything(config, database, waiting))
        server = waitress.create_server(
            app,
            sockets=[listener],
            connection_limit=4 * THREADS,
            asyncore_use_poll=True,
            max_request_body_size=BODY_LIMIT_FACTOR * config.max_request_bytes,
            ident="farcall",
            # It would keep from the application what a proxy says of the client's address.
            clear_untrusted_proxy_headers=not config.proxies,
            threads=THREADS,
        )
        running.callback(server.close)
        with contextlib.suppress(SystemExit):
            log.info("ready at %s", url)
            sys.stdout.write(f"Farcall is ready at {url} (documentation: {url}/docs)\n")
            sys.stdout.flush()
            server.run()
        log.info("stopping")


def _check_file(config: ServiceConfig) -> None:
    url = make_url(config.database_url)
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        is_own = path.parent == config.service_directory
        soundness.check(path, was_used=is_own and _kept_credentials(config).exists())


def _kept_credentials(config: ServiceConfig) -> Path:
    return config.service_directory / "credentials.json"


def _prepare(database: Database) -> None:
    try:
        database.migrate()
    except UNAVAILABLE as error:
        raise ConfigurationError(f"the database cannot be used: {cause_of(error)}") from error


@contextlib.contextmanager
def _only_service_of(config: ServiceConfig) -> Iterator[IO[str]]:
    """Hold the home's lock, which the kernel takes back from a service that dies."""
    path = config.service_directory / "lock"
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            pid, _, url = lock.read().partition(" ")
            raise ConfigurationError(
                f"a service already runs on {config.home}: process {pid or '?'} at {url or 'an unknown address'}. "
                "Stop that one first, or give this one a home of its own with --home"
            ) from None
        lock.truncate(0)
        yield lock


def _end_on_signals(waiting: Waiting) -> None:
    def end(_number: int, _frame: FrameType | None) -> None:
        # A second signal while the parts are being stopped must not leave one of them running.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        # Waitress lets its threads answer before it ends, and long-polls would keep them. In a thread of its own,
        # because the one that this signal interrupts may hold the lock.
        threading.Thread(target=waiting.close, daemon=True).start()
        raise SystemExit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)


def _log_to(path: Path) -> None:
    handler = _LogFile(path, maxBytes=10_000_000, backupCount=3)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    on_terminal = logging.StreamHandler()
    on_terminal.setLevel(logging.WARNING)
    on_terminal.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler, on_terminal])
    # It warns of every request that waits for a thread, which a burst does for milliseconds.
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log whose disk may be full. What it cannot hold is left out, and goes to the terminal if it is a warning."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- the base's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _let_this_account_in(config: ServiceConfig, database: Database, url: str) -> None:
    """Keep the owner's token where the SDK and the endpoints of this account look for it."""
    kept = _kept_credentials(config)
    token = _token_in(kept)
    if token is None or _user_of(database, token) is None:
        if OWNER not in (user.name for user in auth.users(database)):
            auth.create_user(database, OWNER)
        _, token = auth.create_token(database, OWNER, label="the account that started the service")
    _write_credentials(kept, url, token)
    shared = config.home / "credentials.json"
    login = _token_in(shared)
    if login is None or _user_of(database, login) == OWNER:
        _write_credentials(shared, url, token)
    else:
        log.warning("%s holds another login and was left alone; the owner's is in %s", shared, kept)


def _user_of(database: Database, token: str) -> str | None:
    """Whose it is; None if it is not good."""
    try:
        return auth.check(database, f"Bearer {token}").name
    except ApiError:
        return None


def _token_in(path: Path) -> str | None:
    try:
        kept = json.loads(path.read_text())
        # A client's secret is no token: it is not accepted, and its login is therefore left alone.
        token = kept.get("token") or kept.get("client_secret")
    except (OSError, ValueError, AttributeError):
        return None
    return token if isinstance(token, str) else None


def _write_credentials(path: Path, url: str, token: str) -> None:
    draft = path.with_suffix(".new")
    draft.touch(mode=0o600)
    draft.write_text(json.dumps({"service_url": url, "token": token}) + "\n")
    draft.replace(path)
