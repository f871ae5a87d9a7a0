"""The HTTP side on a real database; what would go to the broker is written down instead."""

from __future__ import annotations

import contextlib
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from carrying import Loop
from flask import Flask
from foreign_support import World
from servers import PrivatePostgres, PrivateRabbitMQ, needs, private_postgres
from werkzeug.test import TestResponse

from farcall import wire
from farcall_webservice import auth, dead_letters, queues
from farcall_webservice.accounts import SharedAccount
from farcall_webservice.app import create_app
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.extensions import KEY, Services
from farcall_webservice.ledger import Ledger, Outgoing
from farcall_webservice.valkey import Valkey
from farcall_webservice.waiting import Waiting

#: Two arguments and no keyword arguments, packed.
PAYLOAD = "9\n11\n[1, 2]5\n11\n{}"


@dataclass
class RecordingOutbox:
    """Stands where the dispatcher would."""

    sent: list[wire.BatchedTask] = field(default_factory=list)
    commands: list[tuple[str, wire.Command]] = field(default_factory=list)
    forwarded: list[str] = field(default_factory=list)

    def send(self, outgoing: Iterable[Outgoing]) -> None:
        for batch in outgoing:
            self.sent.extend(batch.tasks)

    def heed(self, runner_id: str, *, held: bool) -> None:
        pass

    def forward(self, task_group_ids: Iterable[str]) -> None:
        self.forwarded.extend(task_group_ids)

    def command(self, endpoint_id: str, command: wire.Command) -> None:
        self.commands.append((endpoint_id, command))


class WatchedWaiting(Waiting):
    """Says when a request has begun to wait, so that a test need not guess."""

    def __init__(self, max_waiters: int) -> None:
        super().__init__(max_waiters)
        self.somebody_waits = threading.Event()

    def listen(self, *ids: str) -> Any:
        listening = super().listen(*ids)
        self.somebody_waits.set()
        return listening


class Answer:
    """What came back for a request."""

    def __init__(self, response: TestResponse) -> None:
        self.status = response.status_code
        self.headers = response.headers
        self.text = response.get_data().decode(errors="replace")
        self.body: Any = response.json if response.is_json else None

    def done(self) -> Any:
        """The body of an answer that has to be a success."""
        assert self.status == 200, self.text
        return self.body

    def refused(self, status: int, code: str) -> str:
        """The message of an answer that has to be this error, in the document that every error has."""
        assert (self.status, (self.body or {}).get("code")) == (status, code), self.text
        assert self.body["http_status_code"] == status
        assert self.body["reason"] == self.body["message"]
        assert self.body["request_id"] == self.headers["X-Request-Id"]
        return str(self.body["message"])


class Person:
    """A user with a token, who sends requests."""

    def __init__(self, app: Flask, name: str, user_id: str, token: str) -> None:
        self._app = app
        self.name = name
        self.id = user_id
        self.token = token

    def ask(self, method: str, path: str, **more: Any) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}", **more.pop("headers", {})}
        return Answer(self._app.test_client().open(path, method=method, headers=headers, **more))

    def get(self, path: str, **more: Any) -> Answer:
        return self.ask("GET", path, **more)

    def post(self, path: str, body: Any = None, **more: Any) -> Answer:
        return self.ask("POST", path, json=body, **more)

    def put(self, path: str, body: Any, **more: Any) -> Answer:
        return self.ask("PUT", path, json=body, **more)

    def delete(self, path: str) -> Answer:
        return self.ask("DELETE", path)

    def function(self, **more: Any) -> str:
        body = {"function_name": "add", "function_code": "4\nst\nx", **more}
        return str(self.post("/v3/functions", body).done()["function_uuid"])

    def endpoint(self, **more: Any) -> str:
        return str(self.post("/v3/endpoints", {"endpoint_name": "here", **more}).done()["endpoint_id"])

    def submit(self, endpoint_id: str, function_id: str, count: int = 1, **more: Any) -> Any:
        body = {"tasks": {function_id: [PAYLOAD] * count}, **more}
        return self.post(f"/v3/endpoints/{endpoint_id}/submit", body).done()


class Service:
    """An application with a database of its own."""

    def __init__(self, home: Path, database_url: str, **settings: Any) -> None:
        config = ServiceConfig.from_environment({}, home=home, database_url=database_url)
        self.config = replace(
            config,
            broker_url="memory://",
            max_function_bytes=1000,
            max_payload_bytes=1000,
            max_batch_bytes=5000,
            max_request_bytes=20_000,
            max_batch_tasks=20,
            **settings,
        )
        self.database = Database(config.database_url)
        self.ledger = Ledger(self.database)
        self.outbox = RecordingOutbox()
        self.waiting = WatchedWaiting(max_waiters=2)
        self.app = create_app(
            self.config,
            self.database,
            self.ledger,
            self.outbox,
            self.waiting,
            accounts=SharedAccount("memory://"),
        )

    def person(self, name: str) -> Person:
        user_id = auth.create_user(self.database, name)
        return Person(self.app, name, user_id, auth.create_token(self.database, name)[1])

    @contextlib.contextmanager
    def public_url(self, url: str) -> Iterator[None]:
        """As if this address had been configured."""
        kept: Services = self.app.extensions[KEY]
        self.app.extensions[KEY] = replace(kept, config=replace(self.config, public_url=url))
        yield
        self.app.extensions[KEY] = kept

    def finish(self, *task_ids: str, value: str = "11\n3") -> None:
        """Play the agent and the collector: these tasks have ended with a value."""
        self.waiting.wake(self.ledger.record_results(None, [wire.Result(task_id, value) for task_id in task_ids]))


@pytest.fixture(scope="session")
def sqlite_with_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "ledger.sqlite"
    _make_tables(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_with_tables(postgres: PrivatePostgres) -> str:
    url = postgres.database()
    _make_tables(url)
    return url


def _make_tables(url: str) -> None:
    database = Database(ServiceConfig.from_environment({}, database_url=url).database_url)
    database.migrate()
    database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new database of each kind in turn, with empty tables: copied, because making them takes longer."""
    if request.param == "sqlite":
        path = tmp_path / "ledger.sqlite"
        shutil.copy(request.getfixturevalue("sqlite_with_tables"), path)
        yield f"sqlite:///{path}"
        return
    server: PrivatePostgres = request.getfixturevalue("postgres")
    url = server.database(like=request.getfixturevalue("postgres_with_tables"))
    yield ServiceConfig.from_environment({}, database_url=url).database_url
    server.drop(url)


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[PrivatePostgres]:
    """A server that the test may stop."""
    needs("postgres")
    with private_postgres(tmp_path / "postgres") as server:
        yield server


@pytest.fixture
def service(tmp_path: Path, database_url: str) -> Iterator[Service]:
    made = Service(tmp_path / "home", database_url)
    yield made
    made.database.close()


@pytest.fixture(scope="session")
def broker_of_worlds(rabbitmq: PrivateRabbitMQ) -> str:
    """For worlds one after the other: what one leaves behind is about endpoints that the next does not know."""
    return rabbitmq.vhost("worlds")


@pytest.fixture
def world(tmp_path: Path, database_url: str, broker_of_worlds: str) -> Iterator[World]:
    """A whole service on RabbitMQ, for stand-ins of Globus Compute's programs."""
    made = World(tmp_path / "home", database_url, broker_of_worlds)
    made.start()
    yield made
    made.stop()
    made.database.close()


@pytest.fixture
def make_service() -> type[Service]:
    """For tests that bring a database of their own."""
    return Service


@pytest.fixture
def ada(service: Service) -> Person:
    return service.person("ada")


@pytest.fixture
def bob(service: Service) -> Person:
    return service.person("bob")


@pytest.fixture
def unknown_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A broker that has not been started."""
    broker = Valkey(tmp_path / "valkey", "127.0.0.1")
    yield broker
    broker.stop()


@pytest.fixture
def broker_url(request: pytest.FixtureRequest, database_url: str) -> Iterator[str]:
    """The broker that goes with the database."""
    if database_url.startswith("sqlite"):
        valkey: Valkey = request.getfixturevalue("valkey")
        valkey.start()
        yield valkey.url
    else:
        rabbitmq: PrivateRabbitMQ = request.getfixturevalue("rabbitmq")
        yield rabbitmq.url
        # The others are named after endpoints, which each test makes anew.
        queues.delete(rabbitmq.url, queues.RESULTS, queues.HEARTBEATS, dead_letters.QUEUE)


@pytest.fixture
def loop(database_url: str, broker_url: str) -> Iterator[Loop]:
    with Loop(database_url, broker_url).running() as running:
        yield running
