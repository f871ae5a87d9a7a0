"""The relay on a login node, here started without SSH: what it carries, and what it survives."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sshd import has_ended

from farcall_endpoint import relay as relay_module
from farcall_endpoint import relayhost, relaystream
from farcall_endpoint.provider import ProviderError, SystemUnavailable
from farcall_endpoint.relaying import LOADER, Relay

PATIENCE_S = 60.0
LARGE = 20_000_000


class PairChannel:
    """What a channel of an SSH connection is to a relay, made of a pair of sockets."""

    def __init__(self, argument: str, *, before: str = "") -> None:
        self._near, far = socket.socketpair()
        with far:
            self.process = subprocess.Popen(
                ["sh", "-c", f'{before} exec "$@"', "sh", sys.executable, "-c", LOADER, argument],
                stdin=far,
                stdout=far,
                stderr=subprocess.PIPE,
            )
        self.recv = self._near.recv
        self.sendall = self._near.sendall
        self.settimeout = self._near.settimeout

    def recv_stderr(self, nbytes: int) -> bytes:
        assert self.process.stderr is not None
        return self.process.stderr.read(nbytes)

    def cut(self) -> None:
        """The connection breaks: both sides find out by themselves."""
        self._near.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.cut()
        self._near.close()
        self.process.wait(PATIENCE_S)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Line:
    """Makes channels, and can break the one that there is."""

    def __init__(self) -> None:
        self.made: list[PairChannel] = []
        self.is_down = threading.Event()

    def __call__(self, argument: str) -> PairChannel:
        if self.is_down.is_set():
            raise SystemUnavailable("the line is down")
        self.made.append(PairChannel(argument))
        return self.made[-1]

    def cut(self) -> None:
        self.made[-1].cut()


@pytest.fixture
def line() -> Line:
    return Line()


def served(serve: Callable[[socket.socket], None]) -> socket.socket:
    """A server on this machine; its socket ends it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listener


def echo(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)


@pytest.fixture
def echo_port() -> Iterator[int]:
    with served(echo) as listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relayed(line: Line, port: int) -> Iterator[tuple[Relay, Callable[[], socket.socket]]]:
    """A relay for one port of ours, and what connects to it as a node does."""
    relay = Relay(line, [port], place="the login node", address="127.0.0.1")
    try:
        yield relay, lambda: socket.create_connection(("127.0.0.1", relay.port_map[port]), timeout=PATIENCE_S)
    finally:
        relay.close()


def exchanged(node: socket.socket, data: bytes) -> bytes:
    """What comes back of what is sent."""
    sender = threading.Thread(target=node.sendall, args=(data,))
    sender.start()
    found = bytearray()
    while len(found) < len(data) and (part := node.recv(1024 * 1024)):
        found += part
    sender.join()
    return bytes(found)


def test_what_runs_on_a_login_node_is_understood_by_an_old_python() -> None:
    for module in (relaystream, relay_module, relayhost):
        source = Path(module.__file__).read_text()

        ast.parse(source, feature_version=(3, 6))
        assert "__future__" not in source


def test_a_node_reaches_a_port_of_ours_through_the_relay(line: Line, echo_port: int) -> None:
    with relayed(line, echo_port) as (relay, connect), connect() as node:
        assert relay.addresses == ["127.0.0.1"]
        assert exchanged(node, b"hello") == b"hello"


def test_much_is_carried_both_ways_at_once_and_unchanged(line: Line, echo_port: int) -> None:
    data = random.Random(1).randbytes(LARGE)

    with relayed(line, echo_port) as (_, connect), connect() as node:
        assert exchanged(node, data) == data


def test_a_connection_that_does_not_read_holds_up_no_other(line: Line, echo_port: int) -> None:
    with relayed(line, echo_port) as (_, connect), connect() as lazy, connect() as node:
        lazy.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            # As much as everything between here and there has room for.
            while True:
                lazy.send(bytes(65536))

        assert exchanged(node, b"x" * LARGE) == b"x" * LARGE


def test_the_end_of_a_connection_arrives_after_all_that_was_sent(line: Line) -> None:
    def tell(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"x" * LARGE)

    with served(tell) as listener, relayed(line, listener.getsockname()[1]) as (_, connect), connect() as node:
        with node.makefile("rb") as file:
            assert len(file.read()) == LARGE
        listener.shutdown(socket.SHUT_RDWR)


def test_what_a_node_sent_before_it_left_arrives(line: Line) -> None:
    heard: list[int] = []
    done = threading.Event()

    def hear(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            heard.append(len(file.read()))
        done.set()

    with served(hear) as listener, relayed(line, listener.getsockname()[1]) as (_, connect):
        with connect() as node:
            node.sendall(b"x" * LARGE)

        assert done.wait(PATIENCE_S)
        listener.shutdown(socket.SHUT_RDWR)
    assert heard == [LARGE]


def test_a_node_is_turned_away_while_nobody_listens_here(line: Line) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with relayed(line, port) as (_, connect), connect() as node:
        assert node.recv(1) == b""


def test_no_byte_is_lost_when_the_line_breaks_again_and_again(line: Line, echo_port: int) -> None:
    data = random.Random(2).randbytes(LARGE)
    cuts = 0

    with relayed(line, echo_port) as (relay, connect), connect() as node:
        ports = relay.port_map
        sender = threading.Thread(target=node.sendall, args=(data,))
        sender.start()
        found = bytearray()
        while len(found) < len(data):
            found += node.recv(1024 * 1024)
            # The next only when there is a new line, and there is some way to go.
            if cuts < len(line.made) and len(found) > (cuts + 1) * LARGE // 10 and cuts < 5:
                line.cut()
                cuts += 1
        sender.join()

        assert bytes(found) == data
        assert cuts == 5
        assert relay.port_map == ports


def test_connections_wait_while_the_line_is_down(line: Line, echo_port: int) -> None:
    with relayed(line, echo_port) as (_, connect), connect() as node:
        assert exchanged(node, b"before") == b"before"
        line.is_down.set()
        line.cut()
        line.made[-1].process.wait(PATIENCE_S)

        with connect() as later:
            node.sendall(b"meanwhile")
            later.sendall(b"new")
            line.is_down.clear()

            assert node.recv(100) == b"meanwhile"
            assert later.recv(100) == b"new"


def test_a_relay_that_has_ended_is_lost_and_the_node_is_cut_off(line: Line, echo_port: int) -> None:
    with relayed(line, echo_port) as (relay, connect), connect() as node:
        assert exchanged(node, b"x") == b"x"
        assert not relay.is_lost

        psutil.Process(relay.pid).kill()

        assert node.recv(1) == b""
        assert relay.wait_until_lost(PATIENCE_S)


def test_closing_ends_the_program_on_the_login_node(line: Line, echo_port: int) -> None:
    with relayed(line, echo_port) as (relay, connect), connect() as node:
        assert exchanged(node, b"x") == b"x"

        relay.close()

        assert node.recv(1) == b""
    assert has_ended(relay.pid)
    assert line.made[0].process.wait(PATIENCE_S) == 0


def test_a_relay_ends_by_itself_when_nobody_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "GRACE_S", 0.0)
    session = relay_module.Session()

    session.run(waits_for_pipes=True)

    assert session.has_ended
    session.close()


def test_silence_is_taken_for_a_broken_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay_module, "SILENCE_S", 0.0)
    session = relay_module.Session()
    near, far = socket.socketpair()
    with far:
        reader, writer = os.dup(near.fileno()), near.detach()
        session.attach(reader, writer)

        session.run()

        assert not session.is_attached
        assert not session.has_ended
    session.close()


def test_a_line_that_has_fallen_silent_is_given_up_for_another(
    line: Line, echo_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    relay = Relay(line, [echo_port], place="the login node", address="127.0.0.1", give_up=given_up.set)
    with socket.create_connection(("127.0.0.1", relay.port_map[echo_port]), timeout=PATIENCE_S) as node:
        assert exchanged(node, b"before") == b"before"

        # Of this side only; the other says less often that it is there.
        monkeypatch.setattr(relay_module, "SILENCE_S", 0.1)
        assert given_up.wait(PATIENCE_S)
        monkeypatch.setattr(relay_module, "SILENCE_S", PATIENCE_S)

        assert exchanged(node, b"after") == b"after"
    relay.close()
    assert len(line.made) > 1


def test_what_login_scripts_print_is_no_trouble(echo_port: int) -> None:
    relay = Relay(
        lambda argument: PairChannel(argument, before="echo Welcome; printf 'no line end';"),
        [echo_port],
        place="the login node",
        address="127.0.0.1",
    )

    with socket.create_connection(("127.0.0.1", relay.port_map[echo_port])) as node:
        assert exchanged(node, b"hello") == b"hello"
    relay.close()


def test_an_address_that_is_not_the_login_nodes_is_named(line: Line) -> None:
    with pytest.raises(ProviderError, match=r"the relay on the login node: .*cannot listen on 192\.0\.2\.99"):
        Relay(line, [1], place="the login node", address="192.0.2.99")


def test_what_keeps_the_program_from_starting_is_told() -> None:
    with pytest.raises(SystemUnavailable, match="does not start on the login node: python3 is not here"):
        Relay(
            lambda argument: PairChannel(
                argument, before='head -c "$4" > /dev/null; echo python3 is not here >&2; exit 1;'
            ),
            [1],
            place="the login node",
        )
