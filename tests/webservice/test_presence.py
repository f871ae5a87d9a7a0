"""What a process claims is another's as soon as it can be seen that the process has gone, over a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from carrying import FUNCTION, OWNER, TIMEOUT_S, Loop
from servers import PrivatePostgres

from farcall_webservice import presence
from farcall_webservice.ledger import Ledger
from farcall_webservice.notices import Listener
from farcall_webservice.waiting import Waiting


@pytest.fixture
def loop(postgres: PrivatePostgres, postgres_with_tables: str) -> Iterator[Loop]:
    """Its dispatcher and collector do not run."""
    url = postgres.database(like=postgres_with_tables)
    loop = Loop(url, "memory://")
    yield loop
    loop.database.close()
    postgres.drop(url)


def left_by(ledger: Ledger, endpoint_id: str) -> str:
    """What this process has written, and has not come to publish."""
    return ledger.submit(owner_id=OWNER, endpoint_id=endpoint_id, payloads={FUNCTION: ["p"]}).request_id


def found_by(ledger: Ledger) -> list[str]:
    return [batch.submission_id for batch in ledger.undispatched(alone=False)]


def shown(loop: Loop, ledger: Ledger) -> Listener:
    waiting = Waiting(max_waiters=1)
    listener = Listener(loop.database, waiting, ledger.claimant)
    with waiting.listen("it listens when it has shown itself") as woken:
        listener.start()
        assert woken.wait(TIMEOUT_S)
    return listener


def test_what_a_process_has_left_is_taken_over_when_it_has_gone_and_not_before(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Ledger(loop.database), Ledger(loop.database)
    left = left_by(one, loop.add_endpoint())
    life = shown(loop, one)
    now = time.time()
    monkeypatch.setattr("time.time", lambda: now + presence.MAY_BE_UNSEEN_S + 1)

    while_it_lives = found_by(other)
    life.stop()
    # The server notices a little later.
    loop.wait_until(lambda: one.claimant in absent(loop, one.claimant))
    afterwards = found_by(other)

    assert while_it_lives == []
    assert afterwards == [left]
    assert found_by(one) == []


def test_a_process_that_has_not_shown_itself_yet_keeps_what_it_has_just_written(loop: Loop) -> None:
    one, other = Ledger(loop.database), Ledger(loop.database)
    left_by(one, loop.add_endpoint())

    assert found_by(other) == []


def test_a_process_that_hears_nothing_shows_itself_too(loop: Loop) -> None:
    ledger = Ledger(loop.database)
    collector = Listener(loop.database, None, ledger.claimant)

    collector.start()
    loop.wait_until(lambda: not absent(loop, ledger.claimant))
    collector.stop()

    assert not any(thread.name == "notices" for thread in threading.enumerate())


def absent(loop: Loop, claimant: str) -> list[str]:
    with loop.database.reading() as connection:
        return presence.absent(connection, [claimant])
