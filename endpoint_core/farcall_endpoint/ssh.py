"""Run commands on a login node over SSH, keep files there, and let its nodes reach this machine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import platform
import select
import shlex
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import paramiko

from .provider import Access, Finding, ProviderError, SystemUnavailable
from .relaying import LOADER, Relay
from .shell import FILE_TIMEOUT_S, NOT_FOUND, Ran, Shell, name_of
from .sshconnection import Connection
from .sshlogin import BROKEN, words
from .sshoptions import SshOptions

#: An SSH server allows ten at a time on one connection unless it was told otherwise; one is the relay's.
MOST_CHANNELS = 9

#: A program that has not ended by then, after its time, is killed over there by `timeout`.
_KILLED_AFTER_S = 2

#: Directories of earlier runs that are kept over there.
RUNS_KEPT = 5

#: Of the files that nodes need none is large.
_LARGEST_FILE_BYTES = 1024 * 1024

#: How long we wait before asking again for a session that was refused.
_SESSION_PAUSE_S = 0.1

#: What is sent at a time.
_PACKET_BYTES = 32 * 1024

#: How long we wait between two looks whether more can be sent.
_SEND_PAUSE_S = 0.02

_NOT_FOUND_ADVICE = (
    "[commands over SSH run without a login shell, so PATH may lack it: "
    "set ssh.login_shell to true, or extend PATH in ssh.init]"
)

#: Makes a directory $2 for a run in $1, with what comes over stdin in it, and removes those of the oldest runs. An
#: agent's are named for the time; others are not for long.
_UNPACK = (
    'umask 077; mkdir -p "$1/$2" && cd "$1" && tar -xf - -C "$2" || exit; '
    'ls -1 | grep "^2" | sort | head -n "-$3" | while read -r old; do rm -rf "$old"; done; '
    'find . -mindepth 1 -maxdepth 1 ! -name "2*" -mtime +0 -exec rm -rf {} +'
)


class SshShell(Shell):
    """A login node, as one user."""

    gives_access = True

    def __init__(self, options: SshOptions) -> None:
        self._options = options
        self._connection = Connection(options)
        self.place = self._connection.place
        self._channels = threading.BoundedSemaphore(MOST_CHANNELS)
        #: What was given with the last access.
        self.relay: Relay | None = None

    def run(self, command: Sequence[str], *, stdin: bytes = b"", timeout_s: float) -> Ran:
        deadline = time.monotonic() + timeout_s
        if not self._channels.acquire(timeout=timeout_s):
            raise SystemUnavailable(
                f"{name_of(command)} on {self.place} was not run: {MOST_CHANNELS} other commands run"
            )
        try:
            channel = self._channel(self._line(command, timeout_s, len(stdin)))
            try:
                ran = self._attend(channel, name_of(command), stdin, deadline)
            finally:
                _close(channel)
        finally:
            self._channels.release()
        if ran.exit_code == NOT_FOUND:
            return Ran(NOT_FOUND, ran.stdout, f"{ran.stderr.strip()} {_NOT_FOUND_ADVICE}".strip())
        return ran

    def examine(self) -> Iterator[Finding]:
        try:
            version = self._connection.transport().remote_version
        except SystemUnavailable as error:
            yield Finding(f"SSH to {self.place}", False, str(error))
            return
        yield Finding(f"SSH to {self.place}", True, version)
        yield self._examined_directory()
        yield self._examined_relay()

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access | None:
        if self.relay is not None:
            self.relay.close()
        # Endpoints of several machines may have one name, and share a directory there.
        origin = hashlib.sha256(f"{platform.node()}:{run_dir.parent}".encode()).hexdigest()[:8]
        home = f"{self._directory()}/{run_dir.parent.parent.name}-{origin}"
        directory = f"{home}/runs/{run_dir.name}"
        self._must(
            ["sh", "-c", _UNPACK, "sh", f"{home}/runs", run_dir.name, str(RUNS_KEPT)],
            f"{directory} cannot be written",
            stdin=_packed(run_dir),
        )
        self.relay = self._new_relay(ports)
        return Access(",".join(self.relay.addresses), self.relay.port_map, directory, f"{home}/tasks_working_dir")

    @property
    def access_is_lost(self) -> bool:
        return self.relay is not None and self.relay.is_lost

    def close(self) -> None:
        if self.relay is not None:
            self.relay.close()
        self._connection.close()

    # -- commands -----------------------------------------------------------------------------------------------------

    def _line(self, command: Sequence[str], timeout_s: float, stdin_bytes: int) -> str:
        """What the user's shell over there is told: it may be any, so what it sees are words in single quotes."""
        script = f"{self._options.init}\n" if self._options.init.strip() else ""
        # Not `exec`: this shell turns a signal that kills the command into an exit code.
        limited = f'timeout -s KILL {math.ceil(timeout_s) + _KILLED_AFTER_S} "$@"'
        if stdin_bytes:
            # It knows by itself where the input ends, and waits for all of it. What paramiko sends to a channel, also
            # that the input ends, may otherwise come after the channel's end, at which sshd ends the whole connection.
            script += f"head -c {stdin_bytes} | {{ {limited}; code=$?; cat > /dev/null; exit $code; }}"
        else:
            script += f"{limited} < /dev/null; exit $?"
        return shlex.join([*self._shell(), script, "farcall", *command])

    def _shell(self) -> list[str]:
        return ["bash", "-l", "-c"] if self._options.login_shell else ["sh", "-c"]

    def _channel(self, line: str) -> paramiko.Channel:
        """A session in which this line runs."""
        channel = self._session()
        try:
            channel.settimeout(self._options.connect_timeout_s)
            channel.exec_command(line)
        except BROKEN as error:
            _close(channel)
            raise SystemUnavailable(f"the connection to {self.place} failed: {words(error)}") from error
        return channel

    def _session(self) -> paramiko.Channel:
        deadline = time.monotonic() + self._options.connect_timeout_s
        while True:
            transport = self._connection.transport()
            try:
                return transport.open_session(timeout=self._options.connect_timeout_s)
            except BROKEN as error:
                if not transport.is_active():
                    raise SystemUnavailable(f"the connection to {self.place} failed: {words(error)}") from error
                # It may count some of ours that have just ended, or allow fewer.
                if time.monotonic() > deadline:
                    raise SystemUnavailable(
                        f"{self.place} refuses another session on our connection ({words(error)}); "
                        "its sshd must allow at least two, and better ten (MaxSessions)"
                    ) from error
            time.sleep(_SESSION_PAUSE_S)

    def _attend(self, channel: paramiko.Channel, name: str, stdin: bytes, deadline: float) -> Ran:
        """Feed a program, and drain both of its streams alike: it would wait for us if one were full."""
        stdout, stderr = bytearray(), bytearray()
        rest = memoryview(stdin)
        ready = select.poll()
        ready.register(channel.fileno(), select.POLLIN)
        try:
            while not (channel.closed or channel.eof_received):
                if rest and channel.send_ready():
                    rest = self._feed(channel, rest)
                ready.poll(1000 * self._left(deadline, name, at_most=_SEND_PAUSE_S if rest else math.inf))
                _drain(channel, stdout, stderr)
            _drain(channel, stdout, stderr)
            # The streams have ended, and the program will.
            if not channel.status_event.wait(self._left(deadline, name)):
                self._left(deadline, name)
        except BROKEN as error:
            raise self._lost(name) from error
        code = channel.exit_status
        if code < 0:
            raise self._lost(name)
        return Ran(code, stdout.decode(errors="replace"), stderr.decode(errors="replace"))

    @staticmethod
    def _feed(channel: paramiko.Channel, rest: memoryview) -> memoryview:
        try:
            rest = rest[channel.send(rest[:_PACKET_BYTES].tobytes()) :]
        except OSError:
            # It has ended, or its connection has.
            return memoryview(b"")
        return rest

    def _left(self, deadline: float, name: str, *, at_most: float = math.inf) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise SystemUnavailable(f"{name} on {self.place} did not end in time and is killed")
        return min(left, at_most)

    def _lost(self, name: str) -> SystemUnavailable:
        return SystemUnavailable(
            f"the connection to {self.place} was lost while {name} ran there; it may have done its work"
        )

    # -- files and the relay ------------------------------------------------------------------------------------------

    def _directory(self) -> str:
        """Of this machine's files over there, as its nodes see it."""
        wanted = self._options.directory
        begin = '"$HOME"' + shlex.quote(wanted[1:]) if wanted.startswith("~/") else shlex.quote(wanted)
        ran = self.run(["sh", "-c", f"umask 077; mkdir -p {begin} && cd {begin} && pwd"], timeout_s=FILE_TIMEOUT_S)
        if ran.exit_code:
            raise ProviderError(f"the directory {wanted} on {self.place} cannot be used (ssh.directory): {ran.said}")
        return ran.stdout.strip().splitlines()[-1]

    def _new_relay(self, ports: Sequence[int]) -> Relay:
        return Relay(
            self._loader,
            ports,
            place=self.place,
            address=self._options.relay_address,
            give_up=self._connection.reset,
        )

    def _loader(self, argument: str) -> paramiko.Channel:
        script = f"{self._options.init}\n" if self._options.init.strip() else ""
        script += 'exec "$@"'
        return self._channel(
            shlex.join([*self._shell(), script, "farcall", self._options.python, "-c", LOADER, argument])
        )

    def _examined_directory(self) -> Finding:
        subject = f"the directory {self._options.directory} on {self.place}"
        try:
            return Finding(subject, True, self._directory())
        except ProviderError as error:
            return Finding(subject, False, str(error), "name another under ssh.directory, which the nodes see too")

    def _examined_relay(self) -> Finding:
        subject = f"a relay on {self.place}"
        try:
            relay = self._new_relay([1])
        except ProviderError as error:
            return Finding(subject, False, str(error), "name a Python of at least 3.6 there under ssh.python")
        try:
            return Finding(subject, True, f"possible; nodes would connect to {' or '.join(relay.addresses)}")
        finally:
            relay.close()


def _close(channel: paramiko.Channel) -> None:
    # It says so to the other side, which may not be there any more.
    with contextlib.suppress(*BROKEN):
        channel.close()


def _drain(channel: paramiko.Channel, stdout: bytearray, stderr: bytearray) -> None:
    while channel.recv_ready():
        stdout += channel.recv(1024 * 1024)
    while channel.recv_stderr_ready():
        stderr += channel.recv_stderr(1024 * 1024)


def _packed(run_dir: Path) -> bytes:
    """Its small files, such as the certificates by which nodes and agent know each other."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(run_dir.rglob("*")):
            is_small = path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST_FILE_BYTES
            if path.is_dir() or is_small:
                info = archive.gettarinfo(path, str(path.relative_to(run_dir)))
                info.mode = 0o700 if path.is_dir() else 0o600
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                if path.is_dir():
                    archive.addfile(info)
                else:
                    with path.open("rb") as file:
                        archive.addfile(info, file)
    return buffer.getvalue()
