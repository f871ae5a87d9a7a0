"""News of results reach the long-polls of every process, over a real PostgreSQL."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from servers import PrivatePostgres

from farcall_webservice.config import ServiceConfig
from farcall_webservice.database import Database
from farcall_webservice.notices import IDS_PER_NOTICE, Listener, announce
from farcall_webservice.waiting import Waiting

TIMEOUT_S = 30


@pytest.fixture
def database(own_postgres: PrivatePostgres) -> Iterator[Database]:
    database = Database(ServiceConfig.from_environment({}, database_url=own_postgres.url).database_url)
    yield database
    database.close()


@pytest.fixture
def waiting(database: Database) -> Iterator[Waiting]:
    """Who waits in another process than the one that announces. It listens already."""
    waiting = Waiting(max_waiters=1000)
    listener = Listener(database, waiting, str(uuid.uuid4()))
    with waiting.listen("everybody is woken once when listening begins") as woken:
        listener.start()
        assert woken.wait(TIMEOUT_S)
    yield waiting
    listener.stop()


def tell(database: Database, *groups: str) -> None:
    with database.writing() as connection:
        announce(connection, groups)


def test_those_who_wait_for_a_group_are_woken_and_others_are_not(database: Database, waiting: Waiting) -> None:
    with waiting.listen("group") as woken, waiting.listen("another") as other:
        tell(database, "group")

        assert woken.wait(TIMEOUT_S)
        assert not other.is_set()


def test_more_groups_than_fit_into_a_notice_are_all_told(database: Database, waiting: Waiting) -> None:
    groups = [str(uuid.uuid4()) for _ in range(2 * IDS_PER_NOTICE + 1)]

    with waiting.listen(groups[0]) as first, waiting.listen(groups[-1]) as last:
        tell(database, *groups)

        assert first.wait(TIMEOUT_S)
        assert last.wait(TIMEOUT_S)


def test_what_is_rolled_back_is_no_news(database: Database, waiting: Waiting) -> None:
    with waiting.listen("never") as never, waiting.listen("later") as later:
        with pytest.raises(ZeroDivisionError), database.writing() as connection:
            announce(connection, ["never"])
            raise ZeroDivisionError
        tell(database, "later")

        assert later.wait(TIMEOUT_S)
        assert not never.is_set()


def test_after_a_restart_of_the_database_everybody_looks_and_listening_goes_on(
    database: Database, waiting: Waiting, own_postgres: PrivatePostgres
) -> None:
    with waiting.listen("group") as woken:
        own_postgres.kill()
        own_postgres.start()
        assert woken.wait(TIMEOUT_S)

    with waiting.listen("group") as woken:
        tell(database, "group")
        assert woken.wait(TIMEOUT_S)
