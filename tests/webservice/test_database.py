"""What the service does when the database goes away, comes back, or belongs to another version."""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from alembic import command
from running import BIN, environment_for
from servers import PrivatePostgres
from sqlalchemy import insert, text

from farcall.errors import ConfigurationError
from farcall_webservice import registration
from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database, _alembic_configuration
from farcall_webservice.ledger import Ledger, Load
from farcall_webservice.models import User

if TYPE_CHECKING:
    from conftest import Person, Service


def driver_url(url: str) -> str:
    return ServiceConfig.from_environment({}, database_url=url).database_url


def test_several_may_upgrade_the_database_at_once(tmp_path: Path, postgres: PrivatePostgres) -> None:
    url = postgres.database()
    upgrade = [BIN / "farcall-webservice", "db", "upgrade", "--database-url", url]

    processes = [
        subprocess.Popen(upgrade, env=environment_for(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], said
    database = Database(driver_url(url))
    assert database.is_current()
    database.close()


def test_a_database_of_a_later_version_is_refused_in_words(database_url: str) -> None:
    database = Database(database_url)
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    with pytest.raises(ConfigurationError, match="9999"):
        database.migrate()
    database.close()


def test_a_ledger_that_was_made_before_it_knew_sizes_is_told_those_of_unfinished_tasks(database_url: str) -> None:
    database = Database(database_url)
    ledger = Ledger(database)
    owner_id, endpoint_id = str(uuid.uuid4()), str(uuid.uuid4())
    with database.writing() as connection:
        connection.execute(insert(User), {"id": owner_id, "name": "ada", "created_at": time.time()})
    receipt = ledger.submit(owner_id=owner_id, endpoint_id=endpoint_id, payloads={str(uuid.uuid4()): ["four", "seven"]})
    ledger.mark_dispatched([receipt.request_id])
    with database.writing() as connection:
        configuration = _alembic_configuration(database_url)
        configuration.attributes["connection"] = connection
        command.downgrade(configuration, "0008")

    database.migrate()

    assert ledger.on_queue(endpoint_id, at_most=10) == Load(2, 9)
    database.close()


def test_what_waits_on_a_queue_is_added_up_without_looking_at_the_tasks(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    database.migrate()
    said: list[str] = []
    with database.reading() as connection:
        driver = connection.connection.driver_connection
        assert driver is not None
        driver.set_trace_callback(said.append)

    Ledger(database).on_queue(str(uuid.uuid4()), at_most=10)

    (statement,) = (each for each in said if "payload" in each)
    with database.reading() as connection:
        plan = " ".join(row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}"))
    assert "COVERING INDEX ix_tasks_unfinished" in plan
    database.close()


def test_requests_are_to_be_repeated_while_the_database_is_away_and_succeed_when_it_is_back(
    tmp_path: Path, own_postgres: PrivatePostgres, make_service: type[Service]
) -> None:
    url = driver_url(own_postgres.database())
    database = Database(url)
    database.migrate()
    database.close()
    service = make_service(tmp_path, url)
    ada = service.person("ada")
    endpoint_id, function_id = ada.endpoint(), ada.function()
    body = {"tasks": {function_id: ["9\n11\n[1, 2]5\n11\n{}"]}}

    for end in (own_postgres.stop, own_postgres.kill):
        end()
        refused = ada.post(f"/v3/endpoints/{endpoint_id}/submit", body)
        own_postgres.start()

        refused.refused(503, "DATABASE_UNAVAILABLE")
        assert refused.headers["Retry-After"]
        assert "database fails" in refused_health(ada, own_postgres)
        # Of every connection in the pool, not only of one.
        for _ in range(5):
            ada.submit(endpoint_id, function_id)
    service.database.close()


def refused_health(person: Person, server: PrivatePostgres) -> str:
    server.stop()
    message = person.get("/healthz").refused(503, "UNHEALTHY")
    server.start()
    return message


def test_two_that_register_the_same_new_endpoint_at_once_are_told_apart(
    service: Service, ada: Person, bob: Person, unknown_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The broker of these tests is one in memory, which does not know how to serve several at once.
    monkeypatch.setattr(registration, "_declare_queues", lambda *_: None)
    started = threading.Barrier(4)
    for number in range(10):
        endpoint_id = unknown_id[:-2] + f"{number:02x}"
        answers: list[int] = []

        def register(person: Person, instance: str, path: str = endpoint_id, answers: list[int] = answers) -> None:
            body = {"endpoint_name": "here", "metadata": {"instance": instance}}
            started.wait()
            answers.append(person.put(f"/v3/endpoints/{path}", body).status)

        threads = [
            threading.Thread(target=register, args=pair) for pair in ((ada, "a"), (ada, "a"), (ada, "b"), (bob, "b"))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(answers) == 4
        assert 200 in answers
        assert set(answers) <= {200, 403, 409}, answers
