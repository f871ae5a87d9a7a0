"""What is different in our use of Parsl's executor."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import CommandClientTimeoutError
from parsl.executors.high_throughput.zmq_pipes import CommandClient

from farcall_endpoint import htex


@pytest.fixture
def client() -> Iterator[CommandClient]:
    made = CommandClient("127.0.0.1", (20000, 60000))
    yield made
    made.close()


def answer_once(client: CommandClient, word: str) -> threading.Thread:
    def run() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.connect(f"tcp://127.0.0.1:{client.port}")
            socket.recv_pyobj()
            socket.send_pyobj(word)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_an_answer_that_came_while_we_were_stopped_is_read_and_the_next_too(
    client: CommandClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_as_if_stopped(message: Any, timeout_s: float) -> Any:
        client.zmq_socket.send_pyobj(message)
        # As Parsl does when it wakes up long after its time was over.
        monkeypatch.setattr(time, "monotonic", lambda now=time.monotonic: now() + 300)
        client.ok = False
        raise CommandClientTimeoutError("Waiting for a reply from command channel")

    answering = answer_once(client, "first")
    first = htex._answer(client, run_as_if_stopped, "question")
    answering.join()
    answering = answer_once(client, "second")
    second = htex._answer(client, client.run, "question")
    answering.join()

    assert (first, second) == ("first", "second")


def test_an_interchange_that_is_silent_is_given_up(client: CommandClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(htex, "COMMAND_TIMEOUT_S", 0.1)

    with pytest.raises(CommandClientTimeoutError):
        htex._answer(client, client.run, "question")


def test_an_interchange_that_dies_as_it_begins_is_not_waited_for(
    client: CommandClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start_and_die(executor: htex.Executor) -> None:
        executor.interchange_proc = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        executor.worker_port = executor.command_client.run("WORKER_BINDS", timeout_s=120)

    monkeypatch.setattr(HighThroughputExecutor, "_start_local_interchange_process", start_and_die)
    executor = object.__new__(htex.Executor)
    executor.command_client = client

    with pytest.raises(htex.InterchangeFailed, match="exit code 7"):
        executor._start_local_interchange_process()


def test_where_no_block_is_too_many_none_is_ended_also_not_one_whose_manager_has_not_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(HighThroughputExecutor, "scale_in", lambda _, blocks, max_idletime: ended.append(blocks) or [])
    executor = object.__new__(htex.Executor)

    executor.scale_in(0, max_idletime=120.0)
    executor.scale_in(1, max_idletime=120.0)

    assert ended == [1]
