"""RabbitMQ and PostgreSQL go away, come back and refuse; no task and no result is lost."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from carrying import FUNCTION, OWNER, Loop
from kombu import Queue
from running import BIN, environment_for
from servers import PrivatePostgres, PrivateRabbitMQ, needs, private_rabbitmq

from farcall import wire
from farcall_webservice import queues
from farcall_webservice.config import ServiceConfig
from farcall_webservice.publisher import NotTaken, Publisher


@pytest.fixture(scope="module")
def own_rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRabbitMQ]:
    """A server that these tests may stop."""
    needs("rabbitmq")
    with private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")) as server:
        yield server


@pytest.fixture
def vhost(own_rabbitmq: PrivateRabbitMQ, unknown_id: str) -> str:
    return own_rabbitmq.vhost(unknown_id)


@pytest.fixture
def loop(database_url: str, vhost: str) -> Iterator[Loop]:
    with Loop(database_url, vhost).running() as running:
        yield running


@pytest.fixture
def quorum() -> Iterator[None]:
    """The process's queues are quorum queues."""
    queues.use_queue_type("quorum")
    yield
    queues.use_queue_type("classic")


#: The faults are the broker's; the database makes no difference to them.
on_postgres = pytest.mark.parametrize("database_url", ["postgres"], indirect=True)


@contextmanager
def max_message_size(server: PrivateRabbitMQ, size: int) -> Iterator[None]:
    """Channels that are opened meanwhile take no larger message."""
    setting = "application:set_env(rabbit, max_message_size, {0}), persistent_term:put(max_message_size, {0})."
    server.ctl("eval", setting.format(size))
    yield
    server.ctl("eval", setting.format(128 * 1024 * 1024))


def answer(loop: Loop, endpoint_id: str, task_ids: set[str]) -> None:
    """Take these tasks as an agent, and say that they have ended. One may come twice around a failure."""
    taken: set[str] = set()
    while not task_ids <= taken:
        ((batch, _),) = loop.take(endpoint_id)
        assert isinstance(batch, wire.TaskBatch)
        taken |= {task.task_id for task in batch.tasks}
    results = [wire.Result(task_id, "value") for task_id in taken]
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.ResultBatch(results)))
    loop.wait_until(lambda: {loop.state_of(task_id) for task_id in task_ids} == {"success"})


@on_postgres
@pytest.mark.parametrize("fault", ["stop_app", "kill -9"])
def test_a_broker_that_goes_away_and_comes_back_costs_nothing(
    loop: Loop, own_rabbitmq: PrivateRabbitMQ, fault: str
) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    before = loop.submit(endpoint_id, 3).tasks[FUNCTION]
    loop.wait_until(lambda: loop.state_of(before[0]) == "waiting-for-ep")

    if fault == "stop_app":
        own_rabbitmq.ctl("stop_app")
    else:
        own_rabbitmq.kill()
    during = loop.submit(endpoint_id, 2).tasks[FUNCTION]
    if fault == "stop_app":
        own_rabbitmq.ctl("start_app")
    else:
        own_rabbitmq.start()
    after = loop.submit(endpoint_id, 2).tasks[FUNCTION]

    answer(loop, endpoint_id, {*before, *during, *after})


@on_postgres
def test_tasks_for_a_queue_that_was_deleted_make_it_anew(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    first = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.wait_until(lambda: loop.state_of(first[0]) == "waiting-for-ep")

    queues.delete(loop.broker_url, queues.tasks_queue(endpoint_id))
    second = loop.submit(endpoint_id).tasks[FUNCTION]

    answer(loop, endpoint_id, set(second))


def test_a_connection_with_nothing_to_publish_is_kept(vhost: str) -> None:
    heartbeat_s = 1
    with queues.connect(vhost, confirm_each=False, heartbeat_s=heartbeat_s) as connection:
        connection.ensure_connection(max_retries=1)
        publisher = Publisher(connection)
        published = Queue("kept", durable=True)

        # After two heartbeats that were not read, the connection would be given up.
        for _ in range(16):
            threading.Event().wait(heartbeat_s / 4)
            publisher.show_life()

        publisher.publish(published, b"still there")
        publisher.confirm()


def test_what_the_broker_refuses_does_not_count_as_published(vhost: str) -> None:
    full = Queue("full", durable=True, max_length=1, queue_arguments={"x-overflow": "reject-publish"})
    with queues.connect(vhost, confirm_each=False) as connection:
        publisher = Publisher(connection)
        publisher.publish(full, b"1")
        publisher.confirm()

        publisher.publish(full, b"2")
        publisher.publish(full, b"3")
        with pytest.raises(NotTaken, match="2 messages"):
            publisher.confirm()


@on_postgres
def test_a_task_that_is_too_large_for_the_broker_fails_and_keeps_no_other_waiting(
    database_url: str, vhost: str, own_rabbitmq: PrivateRabbitMQ
) -> None:
    with max_message_size(own_rabbitmq, 100_000), Loop(database_url, vhost).running() as loop:
        endpoint_id = loop.add_endpoint(accepts=["task_batch"])
        payloads = {FUNCTION: ["x" * 200_000, "small"]}
        receipt = loop.ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads=payloads)
        loop.dispatcher.send(receipt.outgoing)
        large, small = receipt.tasks[FUNCTION]
        other = loop.submit(loop.add_endpoint()).tasks[FUNCTION][0]

        loop.wait_until(lambda: loop.state_of(large) == "failed")
        # Though the two were to travel in one message.
        loop.wait_until(lambda: {loop.state_of(each) for each in (small, other)} == {"waiting-for-ep"})
        (row,) = loop.ledger.tasks([large])

    assert row.error_code == "TASK_TOO_LARGE"
    assert "send its path" in row.outcome


@on_postgres
def test_a_submission_that_the_broker_refuses_waits_alone(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.one_by_one.FIRST_ASIDE_S", 0.2)
    full_id, free_id = loop.add_endpoint(accepts=["task_batch"]), loop.add_endpoint(accepts=["task_batch"])
    full = Queue(f"{full_id}.tasks", durable=True, max_length=1, queue_arguments={"x-overflow": "reject-publish"})
    queues.declare(loop.broker_url, full)
    loop.wait_until(lambda: loop.dispatcher.queued_messages(full_id) == 0)
    first = loop.submit(full_id).tasks[FUNCTION][0]
    loop.wait_until(lambda: loop.state_of(first) == "waiting-for-ep")

    refused = loop.submit(full_id).tasks[FUNCTION][0]
    others = [loop.submit(free_id).tasks[FUNCTION][0] for _ in range(5)]
    loop.wait_until(lambda: {loop.state_of(each) for each in others} == {"waiting-for-ep"})

    assert loop.state_of(refused) == "received"
    with queues.connect(loop.broker_url) as connection, connection.channel() as channel:
        # When there is room again.
        full(channel).purge()
    loop.wait_until(lambda: loop.state_of(refused) == "waiting-for-ep")


@on_postgres
def test_a_command_that_was_given_while_the_broker_was_away_arrives(loop: Loop, own_rabbitmq: PrivateRabbitMQ) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    commands = queues.commands_queue(endpoint_id)
    queues.declare(loop.broker_url, commands)
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.wait_until(lambda: loop.state_of(task_id) == "waiting-for-ep")

    own_rabbitmq.ctl("stop_app")
    loop.dispatcher.command(endpoint_id, wire.Command("stop"))
    own_rabbitmq.ctl("start_app")

    def arrived() -> bool:
        with queues.connect(loop.broker_url) as connection:
            return int(queues.look_at(connection, commands).message_count) >= 1

    loop.wait_until(arrived)


def test_a_broker_that_shows_life_but_confirms_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch, vhost: str) -> None:
    monkeypatch.setattr("farcall_webservice.publisher.CONFIRMED_WITHIN_S", 0.05)
    with queues.connect(vhost, confirm_each=False) as connection:
        publisher = Publisher(connection)
        publisher.publish(Queue("somewhere", durable=True), b"1")
        # What comes is heartbeats.
        monkeypatch.setattr(connection, "drain_events", lambda timeout: None)

        with pytest.raises(TimeoutError, match="1 messages"):
            publisher.confirm()


def test_results_that_come_while_the_database_is_away_are_written_when_it_is_back(
    own_postgres: PrivatePostgres, vhost: str
) -> None:
    url = ServiceConfig.from_environment({}, database_url=own_postgres.url).database_url
    subprocess.run([BIN / "farcall-webservice", "db", "upgrade", "--database-url", url], check=True)
    with Loop(url, vhost).running() as loop:
        endpoint_id = loop.add_endpoint(accepts=["task_batch"])
        (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
        loop.take(endpoint_id)
        loop.wait_until(lambda: loop.state_of(task_id) == "waiting-for-ep")

        own_postgres.stop()
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))
        own_postgres.start()

        loop.wait_until(lambda: loop.state_of(task_id) == "success")


@on_postgres
@pytest.mark.usefixtures("quorum")
def test_tasks_and_results_can_be_kept_on_quorum_queues(loop: Loop, own_rabbitmq: PrivateRabbitMQ, vhost: str) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    # As its registration does. Made by two at once, a quorum queue of RabbitMQ 3 may fail who uses it first.
    queues.declare(loop.broker_url, queues.tasks_queue(endpoint_id))

    answer(loop, endpoint_id, set(loop.submit(endpoint_id, 2).tasks[FUNCTION]))

    listed = own_rabbitmq.ctl("-q", "list_queues", "-p", vhost.rpartition("/")[2], "name", "type", "--no-table-headers")
    types = dict(line.split() for line in listed.splitlines())
    assert types == {f"{endpoint_id}.tasks": "quorum", "results": "quorum", "heartbeats": "classic"}


def test_a_queue_of_the_other_type_is_named_at_the_start(
    tmp_path: Path, postgres: PrivatePostgres, postgres_with_tables: str, vhost: str
) -> None:
    queues.declare(vhost, queues.RESULTS)

    done = subprocess.run(
        [BIN / "farcall-webservice", "collect"],
        env=environment_for(
            tmp_path,
            FARCALL_DATABASE_URL=postgres_with_tables,
            FARCALL_BROKER_URL=vhost,
            FARCALL_QUEUE_TYPE="quorum",
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "queue 'results'" in done.stderr
    assert "FARCALL_QUEUE_TYPE" in done.stderr
    assert "Traceback" not in done.stderr


@on_postgres
def test_an_endpoints_queue_of_the_other_type_serves_on(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    queues.declare(loop.broker_url, queues.tasks_queue(endpoint_id))
    queues.use_queue_type("quorum")
    try:
        queues.declare(loop.broker_url, queues.tasks_queue(endpoint_id))
        receipt = loop.submit(endpoint_id)
        loop.wait_until(lambda: loop.state_of(receipt.tasks[FUNCTION][0]) == "waiting-for-ep")
        assert loop.dispatcher.queued_messages(endpoint_id) == 1
    finally:
        queues.use_queue_type("classic")
