"""Forked children, the end of the program, and what importing costs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from farcall.errors import FarcallError


def squared(x: int) -> int:
    return x**2


def in_child(work: Any) -> None:
    """Run this in a forked child; a failure there is one here."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(f"in the child: {error!r}", file=sys.stderr, flush=True)
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


def program(service: Any, text: str) -> subprocess.CompletedProcess[str]:
    start = f"""
        from farcall import Client, Executor
        client = Client(service_url={service.url!r}, token="fc_token")
        executor = Executor("4b116d3c-1703-4f8f-9f6f-39921e5864df", client)
    """
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(start) + textwrap.dedent(text)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_child_uses_its_inherited_executor_in_a_group_of_its_own(service: Any) -> None:
    with service.executor() as executor:
        assert executor.submit(squared, 2).result() == 4
        group_id = executor.task_group_id

        def work() -> None:
            assert executor.submit(squared, 3).result(timeout=30) == 9
            assert executor.task_group_id not in (None, group_id)

        in_child(work)
        assert executor.submit(squared, 4).result() == 16
        assert executor.task_group_id == group_id

    assert len({task["task_group_id"] for task in service.tasks.values()}) == 2


def test_the_parents_futures_fail_in_the_child_and_live_on_in_the_parent(service: Any) -> None:
    service.paused = True
    with service.executor() as executor:
        future = executor.submit(squared, 2)
        called: list[int] = []
        future.add_done_callback(lambda _: called.append(os.getpid()))

        def work() -> None:
            with pytest.raises(FarcallError, match="its result goes to the parent process"):
                future.result(timeout=30)
            assert called == []

        in_child(work)
        service.wait_for_tasks(1)
        service.run_all()
        assert future.result(timeout=30) == 4

    assert called == [os.getpid()]


def test_what_was_submitted_is_sent_before_the_program_ends(service: Any) -> None:
    service.paused = True

    ended = program(service, "futures = [executor.submit(pow, x, 2) for x in range(3000)]")

    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(service.tasks) == 3000


def test_a_program_whose_service_went_away_ends_and_says_what_was_not_sent(service: Any) -> None:
    ended = program(
        service,
        """
        import farcall.submitter
        farcall.submitter._EXIT_WAIT_S = 0.1
        executor.client.transport.service_url = "http://127.0.0.1:9"
        executor.submit(pow, 1, 2)
        """,
    )

    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert "1 submitted tasks were not sent" in ended.stderr


def test_a_child_that_ends_sends_nothing_of_its_parents(service: Any) -> None:
    ended = program(
        service,
        """
        import os, sys
        executor.submit(pow, 1, 2)
        pid = os.fork()
        if pid == 0:
            sys.exit(0)
        sys.exit(os.waitpid(pid, 0)[1])
        """,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert len(service.tasks) == 1


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys; from farcall import Client, Executor; print(*sorted(sys.modules))"

    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()

    assert not {"dill", "urllib3", "http.client", "ssl", "asyncio"} & set(loaded)


def test_every_public_name_is_there() -> None:
    import farcall

    assert [name for name in farcall.__all__ if not hasattr(farcall, name)] == []
    assert set(farcall.__all__) <= set(dir(farcall))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        getattr(farcall, "no" + "pe")
