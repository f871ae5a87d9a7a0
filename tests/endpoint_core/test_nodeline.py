"""The line between agent and nodes, both ends of it in one process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import zmq
from calling import Recorder, wait_until
from parsl import curvezmq

from farcall.wire import Output
from farcall_endpoint import killing
from farcall_endpoint.agentline import AgentLine
from farcall_endpoint.nodeline import NodeLine
from farcall_endpoint.nodetalk import News, Unwanted
from farcall_endpoint.sightings import Node, Started, Watcher

NODE = Node("uid-1", "0", "n1", 2)
PORTS = (54000, 55000)


class Manager:
    """What a manager has to tell, and what it was told."""

    def __init__(self, node: Node, port: int, cert_dir: str | None) -> None:
        self.orders: list[Unwanted] = []
        self.news = News(None)
        self._told = threading.Condition()
        self.line = AgentLine(
            node, f"tcp://127.0.0.1:{port}", cert_dir, period_s=0.2, gather=self._gather, obey=self._obey
        )
        self.line.start()

    def tell(self, news: News) -> None:
        self.news = news
        self.line.ring()

    def wait_for(self, what: Callable[[], Any]) -> None:
        with self._told:
            assert self._told.wait_for(what, timeout=60)

    def _gather(self) -> News:
        news, self.news = self.news, News(None)
        return news

    def _obey(self, unwanted: Unwanted) -> None:
        with self._told:
            self.orders.append(unwanted)
            self._told.notify_all()


class Ends:
    def __init__(self, cert_dir: str | None) -> None:
        self.cert_dir = cert_dir
        self.recorder = Recorder()
        self.awaited = {1, 2, 3}
        self.stack = ExitStack()
        self.agent = self.agent_line(self.recorder)

    def agent_line(self, watcher: Watcher, ports: tuple[int, int] = PORTS, silence_s: float = 60.0) -> NodeLine:
        line = NodeLine(
            watcher,
            address="127.0.0.1",
            ports=ports,
            cert_dir=self.cert_dir,
            silence_s=silence_s,
            is_awaited=self.awaited.__contains__,
        )
        self.stack.callback(line.close)
        return line

    def manager(self, node: Node = NODE, port: int | None = None) -> Manager:
        manager = Manager(node, port or self.agent.port, self.cert_dir)
        self.stack.callback(manager.line.close)
        return manager

    def wait_for_nodes(self, *nodes: Node) -> None:
        self.recorder.wait_for(lambda: self.recorder.nodes and self.recorder.nodes[-1] == list(nodes))


@contextmanager
def both_ends(cert_dir: str | None) -> Iterator[Ends]:
    ends = Ends(cert_dir)
    with ends.stack:
        yield ends


@pytest.fixture(params=["encrypted", "open"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    with both_ends(curvezmq.create_certificates(tmp_path) if request.param == "encrypted" else None) as ends:
        yield ends


def test_the_agent_hears_who_is_there_and_what_happens(ends: Ends) -> None:
    manager = ends.manager()
    ends.wait_for_nodes(NODE)
    sighting, piece = Started(1, "t", 5, "n1", 0), Output("t", "stdout", 0, "hello\n")

    manager.tell(News(None, [sighting], [piece]))
    ends.recorder.wait_for(lambda: ends.recorder.pieces)

    assert (ends.recorder.sightings, ends.recorder.pieces) == ([sighting], [piece])
    manager.line.close()
    ends.wait_for_nodes()


def test_managers_hear_which_calls_are_to_end_also_those_that_come_later(ends: Ends) -> None:
    early = ends.manager()
    ends.wait_for_nodes(NODE)

    ends.agent.cancel([1, 2, 9])
    early.wait_for(lambda: early.orders)
    other = Node("uid-2", "1", "n2", 2)
    late = ends.manager(other)
    ends.wait_for_nodes(NODE, other)
    late.wait_for(lambda: late.orders)

    assert list(early.orders[0].call_ids) == [1, 2, 9]
    # Nobody waits for the last one any more.
    assert list(late.orders[0].call_ids) == [1, 2]
    assert late.orders[0].grace_s == killing.GRACE_S


def test_calls_that_have_come_back_are_not_spoken_of_again() -> None:
    with both_ends(None) as ends:
        manager = ends.manager()
        ends.wait_for_nodes(NODE)
        ends.agent.cancel([1])
        manager.wait_for(lambda: len(manager.orders) > 2)

        ends.awaited.clear()
        wait_until(lambda: not ends.agent._unwanted, "the agent forgets the call")
        said = len(manager.orders)
        ends.awaited.add(1)
        another = ends.manager(Node("uid-2", "1", "n2", 2))
        ends.recorder.wait_for(lambda: len(ends.recorder.nodes[-1]) == 2)

        # At most one that was under way.
        assert len(manager.orders) <= said + 1
        assert another.orders == []


def test_a_manager_that_falls_silent_is_not_there_any_more() -> None:
    with both_ends(None) as ends:
        recorder = Recorder()
        line = ends.agent_line(recorder, silence_s=1.0)
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(f"tcp://127.0.0.1:{line.port}")
        socket.send(b'{"node": {"uid": "u", "block_id": "0", "hostname": "h", "workers": 1}}')
        recorder.wait_for(lambda: recorder.nodes and recorder.nodes[-1])

        recorder.wait_for(lambda: recorder.nodes[-1] == [])

        socket.close(linger=0)
        context.term()


def test_garbage_and_a_watcher_with_a_bug_do_not_end_the_line(caplog: pytest.LogCaptureFixture) -> None:
    class Clumsy(Recorder):
        def started(self, sightings: Any) -> None:
            raise RuntimeError("a bug")

    with both_ends(None) as ends:
        recorder = Clumsy()
        line = ends.agent_line(recorder)
        context = zmq.Context()
        socket = context.socket(zmq.DEALER)
        socket.connect(f"tcp://127.0.0.1:{line.port}")
        for message in ([b"garbage"], [b"{}"], [b"one", b"two"], [b""]):
            socket.send_multipart(message)

        manager = ends.manager(port=line.port)
        manager.tell(News(None, [Started(1, "t", 5, "n1", 0)], [Output("t", "stdout", 0, "x")]))
        recorder.wait_for(lambda: recorder.pieces)

        assert "not understood" in caplog.text
        assert "a bug" in caplog.text
        socket.close(linger=0)
        context.term()


def test_neither_end_waits_for_one_that_is_not_there() -> None:
    with both_ends(None) as ends:
        port = ends.agent.port
        ends.agent.cancel([1])
        ends.agent.close()
        began = time.monotonic()
        manager = ends.manager(port=port)
        for _ in range(1000):
            manager.tell(News(None, [], [Output("t", "stdout", 0, "x")]))
        manager.line.close()

        assert time.monotonic() - began < 10
        # What could not be said has not been asked for.
        assert manager.news.printed


def test_an_agent_that_comes_back_is_found_again() -> None:
    with both_ends(None) as ends:
        port = ends.agent.port
        ends.manager()
        ends.wait_for_nodes(NODE)
        ends.agent.close()
        recorder = Recorder()

        ends.agent_line(recorder, ports=(port, port + 1))

        recorder.wait_for(lambda: recorder.nodes and recorder.nodes[-1] == [NODE])


def test_without_a_free_port_the_range_is_named() -> None:
    with both_ends(None) as ends:
        port = ends.agent.port
        with pytest.raises(OSError, match=f"no port from {port} to {port + 1} is free.*worker_port_range"):
            ends.agent_line(ends.recorder, ports=(port, port + 1))
