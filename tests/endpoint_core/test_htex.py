"""What is different in our use of Parsl's executor."""

from __future__ import annotations

import collections
import shlex
import subprocess
import sys
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from parsl.executors import HighThroughputExecutor
from parsl.executors.high_throughput.errors import CommandClientTimeoutError
from parsl.executors.high_throughput.zmq_pipes import CommandClient

from farcall.errors import ConfigurationError
from farcall_endpoint import htex
from farcall_endpoint.provider import Access


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


@pytest.fixture
def behind_a_login_node(tmp_path: Path) -> htex.Executor:
    """What an executor knows when its nodes are given access."""
    executor = object.__new__(htex.Executor)
    executor.run_dir, executor.label, executor.worker_logdir_root = str(tmp_path), "htex", None
    executor.cert_dir = f"{tmp_path}/htex/certificates"
    executor.logconf_path = f"{tmp_path}/htex/log_config/log_config.pkl"
    executor.worker_port, executor.address = 54000, "127.0.0.1"
    executor.blocks = types.SimpleNamespace(needs_network=False)  # type: ignore[assignment]
    return executor


def test_workers_behind_a_login_node_are_told_its_address_and_where_their_files_are(
    behind_a_login_node: htex.Executor,
) -> None:
    access = Access("10.0.0.1,10.1.0.1", {54000: 33333}, "/scratch/it's {mine}")

    command = behind_a_login_node._through(access, htex._LAUNCH_COMMAND)

    words = shlex.split(command.format_map(collections.defaultdict(str)))
    assert words[words.index("-a") + 1] == "10.0.0.1,10.1.0.1"
    assert words[words.index("--cert_dir") + 1] == "/scratch/it's {mine}/htex/certificates"
    for word in ("--port=33333", "--logdir=/scratch/it's {mine}/htex"):
        assert word in words
    assert "--logconf=/scratch/it's {mine}/htex/log_config/log_config.pkl" in words


def test_pods_connect_to_any_address_that_the_agent_is_to_listen_on(behind_a_login_node: htex.Executor) -> None:
    behind_a_login_node.blocks.needs_network = True  # type: ignore[misc]
    behind_a_login_node.address = "192.0.2.1"

    command = behind_a_login_node._through(Access("192.0.2.1", {54000: 54000}, "/d"), htex._LAUNCH_COMMAND)

    assert "-a 192.0.2.1 " in command


def test_nobody_on_a_cluster_may_reach_an_agent_that_asks_for_no_certificate(
    behind_a_login_node: htex.Executor,
) -> None:
    behind_a_login_node.cert_dir = None

    with pytest.raises(ConfigurationError, match="encrypted must be true"):
        behind_a_login_node._through(Access("10.0.0.1", {54000: 1}, "/d"), htex._LAUNCH_COMMAND)


def test_an_address_that_no_node_would_use_is_refused(behind_a_login_node: htex.Executor) -> None:
    behind_a_login_node.address = "192.0.2.1"

    with pytest.raises(ConfigurationError, match=r"leave engine\.address out"):
        behind_a_login_node._through(Access("10.0.0.1", {54000: 1}, "/d"), htex._LAUNCH_COMMAND)
