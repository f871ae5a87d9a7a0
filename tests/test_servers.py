"""The servers that tests start leave nothing behind, and are missed aloud where they are required."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import servers
from servers import needs, private_postgres, private_rabbitmq


def family_of(server: servers.PrivatePostgres | servers.PrivateRabbitMQ) -> list[psutil.Process]:
    assert server.process is not None
    process = psutil.Process(server.process.pid)
    return [process, *process.children(recursive=True)]


def test_a_missing_server_skips_a_test_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_find", lambda *_: None)
    monkeypatch.delenv("FARCALL_TEST_REQUIRE", raising=False)

    with pytest.raises(pytest.skip.Exception, match="apt-get install rabbitmq-server"):
        needs("rabbitmq")


def test_a_missing_server_that_is_required_fails_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "_find", lambda *_: None)
    monkeypatch.setenv("FARCALL_TEST_REQUIRE", "rabbitmq, postgres")

    with pytest.raises(pytest.fail.Exception, match="lists postgres, but"):
        needs("postgres")


def test_a_postgresql_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    needs("postgres")
    with private_postgres(tmp_path) as server:
        first, second = server.database(), server.database()
        family = family_of(server)

    assert first != second
    assert not any(process.is_running() for process in family)


def test_a_rabbitmq_ends_with_all_that_it_has_started(tmp_path: Path) -> None:
    needs("rabbitmq")
    with private_rabbitmq(tmp_path) as server:
        family = family_of(server)
        assert server._names is not None
        family.append(psutil.Process(server._names.pid))

    psutil.wait_procs(family, timeout=30)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
