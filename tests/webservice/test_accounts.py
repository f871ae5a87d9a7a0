"""Each endpoint and each user with an account of their own, at a real RabbitMQ."""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import amqp
import pytest
from kombu import Connection, Exchange, Producer, Queue
from running import running_endpoint, running_service
from servers import PrivateRabbitMQ

from farcall import Client, Executor
from farcall.errors import ConfigurationError
from farcall_webservice import accounts, parts, queues
from farcall_webservice.accounts import Accounts, OwnAccounts, SharedAccount
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.management import Management, ManagementError
from farcall_webservice.waiting import Waiting


@pytest.fixture
def broker(rabbitmq: PrivateRabbitMQ) -> PrivateRabbitMQ:
    """The accounts that these tests make are in nobody's way."""
    return rabbitmq


@pytest.fixture
def url(broker: PrivateRabbitMQ) -> Iterator[str]:
    """A virtual host of the test's own, whose name has to be quoted in URLs."""
    made = broker.vhost(f"a b/{uuid.uuid4().hex}")
    yield made
    broker.drop_vhost(made)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.migrate()
    yield database
    database.close()


@pytest.fixture
def own(broker: PrivateRabbitMQ, url: str, database: Database) -> OwnAccounts:
    return OwnAccounts(url, Management(broker.management_url, accounts.vhost_of(url)), database)


@pytest.fixture
def two(url: str) -> tuple[str, str]:
    """Two endpoints, with their queues."""
    ids = str(uuid.uuid4()), str(uuid.uuid4())
    for each in ids:
        queues.declare(url, queues.tasks_queue(each), queues.commands_queue(each), queues.RESULTS, queues.HEARTBEATS)
    return ids


def connected(url: str) -> Connection:
    return Connection(url, transport_options={"confirm_publish": True}, connect_timeout=10)


def publish(exchange: str, routing_key: str) -> Callable[[Connection], None]:
    return lambda connection: Producer(connection.channel()).publish(
        b"something", exchange=exchange, routing_key=routing_key, mandatory=True, timeout=10
    )


def read(queue: str) -> Callable[[Connection], None]:
    return lambda connection: connection.Consumer([Queue(queue)], auto_declare=False, on_message=print).consume()


def declare(queue: str) -> Callable[[Connection], None]:
    return lambda connection: Queue(queue, durable=True)(connection.channel()).declare()


def test_an_endpoint_may_take_its_tasks_and_say_things_in_its_own_name(
    own: OwnAccounts, url: str, two: tuple[str, str]
) -> None:
    me, _ = two
    with connected(own.for_endpoint(me, None)) as connection:
        channel = connection.channel()
        for name in ("tasks", "commands"):
            # As Globus Compute's endpoints do before they consume.
            Queue(f"{me}.{name}", channel=channel).queue_declare(passive=True)
            read(f"{me}.{name}")(connection)
        Queue(f"{me}.commands", channel=channel).purge()
        for name in ("results", "heartbeats"):
            Exchange(name, type="topic", channel=channel).declare(passive=True)
            Queue(name, channel=channel).queue_declare(passive=True)
            publish(name, f"{me}.{name}")(connection)


def test_an_endpoint_may_do_nothing_with_what_is_anothers(own: OwnAccounts, url: str, two: tuple[str, str]) -> None:
    me, other = two
    mine = own.for_endpoint(me, None)
    for forbidden in (
        read(f"{other}.tasks"),
        read(f"{other}.commands"),
        read("results"),
        publish("results", f"{other}.results"),
        publish("heartbeats", f"{other}.heartbeats"),
        publish("", f"{other}.tasks"),
        declare(f"{me}.more"),
        lambda connection: Queue(f"{other}.tasks", channel=connection.channel()).delete(),
    ):
        with connected(mine) as connection, pytest.raises(amqp.AccessRefused):
            forbidden(connection)


def test_a_user_may_read_the_results_of_their_own_groups(own: OwnAccounts, url: str) -> None:
    me, other = str(uuid.uuid4()), str(uuid.uuid4())
    queues.declare(url, Queue(f"tg.{me}.1", durable=True), Queue(f"tg.{other}.1", durable=True))
    mine = own.for_user(me, None)

    with connected(mine) as connection:
        read(f"tg.{me}.1")(connection)
    for forbidden in (read(f"tg.{other}.1"), publish("", f"tg.{me}.1"), declare(f"tg.{me}.2")):
        with connected(mine) as connection, pytest.raises(amqp.AccessRefused):
            forbidden(connection)


def test_every_process_hands_out_the_same(
    own: OwnAccounts, broker: PrivateRabbitMQ, url: str, tmp_path: Path, database: Database
) -> None:
    another_process = OwnAccounts(
        url,
        Management(broker.management_url, accounts.vhost_of(url)),
        Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}"),
    )

    assert own.for_endpoint("e", None) == another_process.for_endpoint("e", None)
    assert own.for_endpoint("e", None) != own.for_endpoint("f", None)
    assert own.for_endpoint("e", None).rpartition("@")[2] == url.rpartition("@")[2]


def test_a_removed_endpoint_loses_its_connections_and_can_have_its_account_again(
    own: OwnAccounts, url: str, two: tuple[str, str]
) -> None:
    me, _ = two
    mine = own.for_endpoint(me, None)
    with connected(mine) as connection:
        read(f"{me}.tasks")(connection)

        own.remove_endpoint(me)
        own.remove_endpoint(me)

        with pytest.raises((*connection.connection_errors, amqp.ConnectionForced)):
            connection.drain_events(timeout=30)
    with pytest.raises(amqp.AccessRefused):
        connected(mine).connect()
    assert own.for_endpoint(me, None) == mine
    with connected(mine) as connection:
        read(f"{me}.tasks")(connection)


def test_an_administrator_who_is_none_is_said(broker: PrivateRabbitMQ, url: str, database: Database) -> None:
    wrong = broker.management_url.replace("farcall:", "farcall:not-")

    with pytest.raises(ManagementError, match="refuses the account of the setting broker_admin_url") as raised:
        OwnAccounts(url, Management(wrong, accounts.vhost_of(url)), database).for_endpoint(url, "e")

    assert "not-" not in str(raised.value)


def test_accounts_need_rabbitmq(tmp_path: Path, database: Database) -> None:
    config = ServiceConfig(
        tmp_path, database.url, broker_url="redis://127.0.0.1/0", broker_admin_url="http://a:b@127.0.0.1:15672"
    )

    with pytest.raises(ConfigurationError, match="the broker is not RabbitMQ"):
        accounts.make(config, database)


def test_a_process_makes_and_remembers_accounts_in_one_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: Database
) -> None:
    config = ServiceConfig(tmp_path, database.url, broker_url="memory://")
    made: list[Accounts] = []

    def make(*_: object) -> Accounts:
        made.append(SharedAccount("memory://"))
        return made[-1]

    monkeypatch.setattr(accounts, "make", make)
    with parts.everything(config, database, Waiting(max_waiters=1)) as app:
        assert [app.extensions[accounts.KEY]] == made


def test_everything_works_with_accounts_and_a_deleted_endpoint_is_gone(
    broker: PrivateRabbitMQ, url: str, tmp_path: Path
) -> None:
    settings = {"FARCALL_BROKER_URL": url, "FARCALL_BROKER_ADMIN_URL": broker.management_url}
    with running_service(tmp_path, **settings) as service, running_endpoint(service) as endpoint:
        client = Client(service_url=service.url, token=service.token)
        with Executor(endpoint_id=endpoint.id, client=client) as executor:
            assert executor.submit(pow, 2, 5).result(60) == 32
        said = json.dumps(broker.ctl("-q", "list_users"))
        assert f"farcall-endpoint-{endpoint.id}" in said

        client.delete_endpoint(endpoint.id)

        assert f"farcall-endpoint-{endpoint.id}" not in broker.ctl("-q", "list_users")


def test_a_management_api_that_hangs_is_asked_once_where_others_wait(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.management.SHORT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        port = hanging.getsockname()[1]
        own = OwnAccounts("amqp://localhost//", Management(f"http://guest:guest@127.0.0.1:{port}", "/"), database)
        with pytest.raises(ManagementError, match="does not answer"):
            own.for_endpoint("an-id", None)

        hanging.setblocking(False)
        hanging.accept()[0].close()
        with pytest.raises(BlockingIOError):
            hanging.accept()
