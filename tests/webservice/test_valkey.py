"""The embedded broker looks after its server, also when that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from farcall_webservice.valkey import Valkey


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Valkey]:
    made = Valkey(tmp_path / "valkey", "127.0.0.1")
    made.start()
    yield made
    made.stop()


def client_of(broker: Valkey) -> redis.Redis:
    """One that tries for half a minute."""
    patience = Retry(ConstantBackoff(0.1), 300)
    return redis.Redis.from_url(broker.url, retry=patience, retry_on_error=[redis.ConnectionError])


def damage(folder: Path) -> None:
    """As a full disk can: something is missing from the middle."""
    (file,) = folder.glob("appendonlydir/*.incr.aof")
    held = file.read_bytes()
    middle = len(held) // 2
    file.write_bytes(held[: middle - 20] + held[middle:])


def fill(client: redis.Redis) -> None:
    for number in range(50):
        client.rpush("queue", f"message {number}")


def test_what_a_killed_server_cannot_read_any_more_is_set_aside_and_it_begins_empty(
    broker: Valkey, tmp_path: Path
) -> None:
    client = client_of(broker)
    fill(client)
    damage(tmp_path / "valkey")

    kill(broker)

    assert client.llen("queue") == 0
    assert len(list((tmp_path / "valkey").glob("appendonlydir.damaged-*"))) == 1


def test_what_cannot_be_read_at_a_start_is_set_aside_too(tmp_path: Path) -> None:
    earlier = Valkey(tmp_path / "valkey", "127.0.0.1")
    earlier.start()
    fill(client_of(earlier))
    earlier.stop()
    damage(tmp_path / "valkey")

    later = Valkey(tmp_path / "valkey", "127.0.0.1")
    later.start()

    assert client_of(later).llen("queue") == 0
    later.stop()


def test_an_end_that_is_missing_costs_what_was_in_it_and_no_more(tmp_path: Path) -> None:
    earlier = Valkey(tmp_path / "valkey", "127.0.0.1")
    earlier.start()
    fill(client_of(earlier))
    earlier.stop()
    (file,) = (tmp_path / "valkey").glob("appendonlydir/*.incr.aof")
    file.write_bytes(file.read_bytes()[:-5])

    later = Valkey(tmp_path / "valkey", "127.0.0.1")
    later.start()

    assert client_of(later).llen("queue") == 49
    later.stop()


def kill(broker: Valkey) -> None:
    assert broker._process is not None
    broker._process.kill()
