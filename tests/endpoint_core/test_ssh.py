"""A login node as a provider uses it: its files, its PATH, lost connections, and the way of its nodes to us."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import paramiko
import pytest
from servers import needs
from sshd import PrivateSshd, has_ended, missing_sshd, private_sshd

from farcall.errors import ConfigurationError
from farcall_endpoint.batch import BatchConfig
from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import read_options
from farcall_endpoint.provider import Provider, ProviderError, SystemUnavailable
from farcall_endpoint.reading import Place
from farcall_endpoint.ssh import SshShell
from farcall_endpoint.sshoptions import SshOptions

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture
def shell(sshd: PrivateSshd) -> Iterator[SshShell]:
    shell = SshShell(SshOptions(**sshd.options))
    yield shell
    shell.close()


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """As an agent has it when its nodes are about to come."""
    path = tmp_path / "cluster" / "runs" / "20260101-120000-001"
    secrets = path / "htex" / "certificates"
    secrets.mkdir(parents=True)
    (secrets / "client.key_secret").write_text("secret")
    (path / "large").write_bytes(bytes(2_000_000))
    return path


# -- options ----------------------------------------------------------------------------------------------------------


class OverSsh(Provider):
    Config = BatchConfig


def read(options: dict[str, Any], lines: dict[tuple[str, ...], int] | None = None) -> SshOptions:
    place = Place("config.yaml", ("provider",), lines or {})
    config = read_options(OverSsh, ProviderSection("x", {"ssh": options}, place))  # type: ignore[type-abstract]
    assert isinstance(config, BatchConfig)
    assert config.ssh is not None
    return config.ssh


def test_options_are_read_from_the_providers_section() -> None:
    options = read({"host": "login.example.org", "keep_alive": 5, "proxy_jump": "a@b:22, c"})

    assert (options.host, options.keep_alive_s, options.proxy_jump) == ("login.example.org", 5, ("a@b:22", "c"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"hots": "x"}, "config.yaml, line 7: provider.ssh.hots: there is no such key; did you mean 'host'?"),
        ({"host": 5}, "config.yaml, line 7: provider.ssh.host: expected a text, got int 5"),
        ({"host": "x", "port": 0}, "provider.ssh.port: must be at least 1, got 0"),
        ({"host": "x", "proxy_jump": "a@b@c"}, "provider.ssh.proxy_jump: expected user@host:port"),
        ({}, "provider.ssh: 'host' is missing"),
        ("login", "provider.ssh: expected keys with values, got str 'login'"),
    ],
)
def test_a_wrong_option_is_answered_with_file_line_and_key(options: Any, complaint: str) -> None:
    lines = {("provider", "ssh", key): 7 for key in ("hots", "host")}

    with pytest.raises(ConfigurationError) as caught:
        read(options, lines)

    assert complaint in str(caught.value)


# -- commands ---------------------------------------------------------------------------------------------------------


def test_a_command_outside_of_path_is_found_after_init(sshd: PrivateSshd, tmp_path: Path) -> None:
    command = tmp_path / "bin" / "sbatch-of-ours"
    command.parent.mkdir()
    command.write_text("#!/bin/sh\necho submitted\n")
    command.chmod(0o755)
    without = SshShell(SshOptions(**sshd.options))
    init = f"# Slurm\nexport PATH={command.parent}:$PATH"
    shell = SshShell(SshOptions(**{**sshd.options, "init": init}))

    missed, found = without.run([command.name], timeout_s=PATIENCE_S), shell.run([command.name], timeout_s=PATIENCE_S)

    for each in (without, shell):
        each.close()
    assert missed.exit_code == 127
    assert "ssh.login_shell" in missed.said
    assert found.stdout == "submitted\n"


def test_a_login_shell_reads_the_profile(sshd: PrivateSshd) -> None:
    (sshd.home / ".bash_profile").write_text("export FROM_PROFILE=yes\n")
    shell = SshShell(SshOptions(**{**sshd.options, "login_shell": True}))

    ran = shell.run(["printenv", "FROM_PROFILE"], timeout_s=PATIENCE_S)

    shell.close()
    assert ran.stdout == "yes\n"


def test_after_a_drop_the_next_command_connects_again(sshd: PrivateSshd, shell: SshShell) -> None:
    assert shell.run(["echo", "one"], timeout_s=PATIENCE_S).stdout == "one\n"

    assert sshd.drop_connections()

    # It may not have been noticed yet; then the outcome is unknown, and said to be.
    for _ in range(2):
        try:
            ran = shell.run(["echo", "two"], timeout_s=PATIENCE_S)
            break
        except SystemUnavailable:
            continue
    assert ran.stdout == "two\n"


def test_a_command_that_ran_when_the_connection_broke_is_not_run_again(
    sshd: PrivateSshd, shell: SshShell, tmp_path: Path
) -> None:
    runs, begun = tmp_path / "runs", tmp_path / "begun"
    shell.run(["mkfifo", str(begun)], timeout_s=PATIENCE_S)
    script = f"echo run >> {runs}; echo > {begun}; exec sleep 5"

    with ThreadPoolExecutor() as threads:
        running = threads.submit(shell.run, ["sh", "-c", script], timeout_s=PATIENCE_S)
        begun.read_text()
        sshd.drop_connections()
        with pytest.raises(SystemUnavailable, match="was lost while sh ran there; it may have done its work"):
            running.result(PATIENCE_S)

    assert shell.run(["cat", str(runs)], timeout_s=PATIENCE_S).stdout == "run\n"


def test_a_server_that_allows_two_sessions_has_the_others_wait(tmp_path: Path) -> None:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path / "sshd", settings={"MaxSessions": "2"}) as sshd:
        shell = SshShell(SshOptions(**sshd.options))

        with ThreadPoolExecutor(6) as threads:
            runs = [threads.submit(shell.run, ["echo", str(number)], timeout_s=PATIENCE_S) for number in range(6)]
            printed = [run.result().stdout for run in runs]

        shell.close()
    assert printed == [f"{number}\n" for number in range(6)]


@pytest.mark.parametrize("limit", ["1M", "default"])
def test_new_keys_are_for_the_server_to_ask_for(tmp_path: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("ssh", missing_sshd)
    # As if so much had been sent that paramiko would ask.
    monkeypatch.setattr(paramiko.packet.Packetizer, "REKEY_BYTES", 2**20)
    with private_sshd(tmp_path / "sshd", settings={"RekeyLimit": limit, "LogLevel": "DEBUG1"}) as sshd:
        shell = SshShell(SshOptions(**sshd.options))

        with ThreadPoolExecutor(6) as threads:
            runs = [threads.submit(shell.run, ["cat"], stdin=b"x" * 300_000, timeout_s=PATIENCE_S) for _ in range(30)]
            lengths = {len(run.result().stdout) for run in runs}

        shell.close()
    assert lengths == {300_000}
    exchanges = sshd.log.read_text().count("SSH2_MSG_KEXINIT sent")
    assert exchanges == 1 if limit == "default" else exchanges > 1


# -- the way of the nodes ---------------------------------------------------------------------------------------------


def test_access_brings_files_and_ports_to_the_nodes(shell: SshShell, run_dir: Path, sshd: PrivateSshd) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        access = shell.give_access(run_dir, [port])

        assert access is not None
        secret = Path(access.directory, "htex", "certificates", "client.key_secret")
        assert secret.read_text() == "secret"
        assert (secret.stat().st_mode & 0o777, secret.parent.stat().st_mode & 0o777) == (0o600, 0o700)
        assert secret.is_relative_to(sshd.home / ".farcall")
        assert not Path(access.directory, "large").exists()
        with socket.create_connection((access.address.split(",")[0], access.ports[port])) as node:
            ours, _ = listener.accept()
            with ours:
                node.sendall(b"hello")
                assert ours.recv(100) == b"hello"


def test_of_earlier_runs_few_directories_remain(shell: SshShell, run_dir: Path) -> None:
    for number in range(2, 9):
        access = shell.give_access(run_dir.rename(run_dir.with_name(f"20260101-120000-00{number}")), [])
        run_dir = run_dir.with_name(f"20260101-120000-00{number}")

    assert access is not None
    kept = sorted(path.name for path in Path(access.directory).parent.iterdir())
    assert kept == [f"20260101-120000-00{number}" for number in range(4, 9)]


def test_a_connection_of_a_node_survives_that_of_ssh(sshd: PrivateSshd, shell: SshShell, run_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        access = shell.give_access(run_dir, [port])
        assert access is not None
        with socket.create_connection((access.address.split(",")[0], access.ports[port])) as node:
            ours, _ = listener.accept()
            with ours:
                for number in range(3):
                    sshd.drop_connections()
                    node.sendall(b"%d" % number)
                    assert ours.recv(100) == b"%d" % number
                    ours.sendall(b"back")
                    assert node.recv(100) == b"back"
    assert not shell.access_is_lost


def test_nothing_is_left_on_the_login_node_after_closing(shell: SshShell, run_dir: Path) -> None:
    shell.give_access(run_dir, [1])
    assert shell.relay is not None

    shell.close()

    assert has_ended(shell.relay.pid)


def test_a_new_access_ends_the_earlier_one(shell: SshShell, run_dir: Path) -> None:
    shell.give_access(run_dir, [1])
    assert shell.relay is not None
    first = shell.relay

    shell.give_access(run_dir, [2])

    assert has_ended(first.pid)
    assert not shell.access_is_lost


def test_access_is_lost_with_the_relay(shell: SshShell, run_dir: Path) -> None:
    shell.give_access(run_dir, [1])
    assert shell.relay is not None

    os.kill(shell.relay.pid, signal.SIGKILL)

    assert shell.relay.wait_until_lost(PATIENCE_S)
    assert shell.access_is_lost


def test_a_directory_that_cannot_be_made_is_named(sshd: PrivateSshd, run_dir: Path) -> None:
    shell = SshShell(SshOptions(**{**sshd.options, "directory": "/dev/null/x"}))

    with pytest.raises(ProviderError, match=r"the directory /dev/null/x on .* cannot be used \(ssh.directory\)"):
        shell.give_access(run_dir, [1])

    shell.close()


# -- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_is_told_of_connection_directory_and_relay(shell: SshShell, sshd: PrivateSshd) -> None:
    findings = list(shell.examine())

    assert [finding.subject.partition(" on ")[0].partition(" to ")[0] for finding in findings] == [
        "SSH",
        "the directory ~/.farcall",
        "a relay",
    ]
    assert all(finding.is_well for finding in findings)
    assert f"{sshd.user}@127.0.0.1:{sshd.port}" in findings[0].subject
    assert "SSH-2.0-OpenSSH" in findings[0].said


def test_doctor_is_told_what_keeps_us_out(sshd: PrivateSshd) -> None:
    shell = SshShell(SshOptions(**{**sshd.options, "known_hosts": "/dev/null"}))

    (finding,) = shell.examine()

    assert not finding.is_well
    assert "accept it with: ssh-keyscan" in finding.said


def test_doctor_is_told_that_there_is_no_python_for_the_relay(sshd: PrivateSshd) -> None:
    shell = SshShell(SshOptions(**{**sshd.options, "python": "no-python"}))

    *_, relay = shell.examine()

    shell.close()
    assert not relay.is_well
    assert "no-python" in relay.said
    assert "ssh.python" in relay.remedy
