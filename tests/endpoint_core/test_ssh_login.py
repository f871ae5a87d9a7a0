"""What keeps us from a host that is reached over SSH is said in a sentence, with what to do about it."""

from __future__ import annotations

import dataclasses
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import free_ports, needs
from sshd import PrivateSshd, missing_sshd, new_key, private_sshd

from farcall_endpoint.provider import ProviderError, SystemUnavailable
from farcall_endpoint.ssh import SshShell
from farcall_endpoint.sshoptions import SshOptions

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


@pytest.fixture(scope="module")
def inner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path_factory.mktemp("inner")) as server:
        yield server


@pytest.fixture(autouse=True)
def no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)


def said(options: dict[str, Any]) -> str:
    """What is said of a command that could not be run."""
    shell = SshShell(SshOptions(**options))
    with pytest.raises(SystemUnavailable) as caught:
        shell.run(["true"], timeout_s=PATIENCE_S)
    shell.close()
    return str(caught.value)


def works(options: dict[str, Any]) -> bool:
    shell = SshShell(SshOptions(**options))
    ran = shell.run(["echo", "here"], timeout_s=PATIENCE_S)
    shell.close()
    return ran.stdout == "here\n"


def test_the_key_that_was_named_opens_the_host(sshd: PrivateSshd) -> None:
    assert works(sshd.options)


def test_an_unknown_host_is_refused_with_the_command_that_accepts_it(sshd: PrivateSshd, tmp_path: Path) -> None:
    known = tmp_path / "known hosts"

    sentence = said({**sshd.options, "known_hosts": str(known)})

    assert f"{sshd.user}@127.0.0.1:{sshd.port}" in sentence
    assert "ssh-ed25519 SHA256:" in sentence
    subprocess.run(["sh", "-c", sentence.partition("accept it with: ")[2]], check=True, capture_output=True)
    assert works({**sshd.options, "known_hosts": str(known)})


def test_a_changed_host_key_is_refused_with_the_commands_that_mend_it(sshd: PrivateSshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(sshd.known_as(new_key(tmp_path / "earlier")))

    sentence = said({**sshd.options, "known_hosts": str(known)})

    assert "Somebody may be listening in" in sentence
    remove, accept = sentence.partition("remove the old one with: ")[2].split(" and accept the new one with: ")
    for command in (remove, accept):
        subprocess.run(["sh", "-c", command], check=True, capture_output=True)
    assert works({**sshd.options, "known_hosts": str(known)})


def test_a_host_that_is_known_by_a_key_of_another_kind_is_not_called_changed(sshd: PrivateSshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(sshd.known_as(new_key(tmp_path / "rsa", kind="rsa")))

    sentence = said({**sshd.options, "known_hosts": str(known)})

    assert "is not in" in sentence
    assert "by ssh-rsa only" in sentence


def test_a_known_host_is_found_where_names_are_hashed(sshd: PrivateSshd, tmp_path: Path) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(sshd.known_hosts.read_text())
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", known], check=True, capture_output=True)

    assert "127.0.0.1" not in known.read_text()
    assert works({**sshd.options, "known_hosts": str(known)})


def test_a_key_that_opens_nothing_is_named(sshd: PrivateSshd, tmp_path: Path) -> None:
    key = new_key(tmp_path / "other")

    sentence = said({**sshd.options, "key": str(key)})

    assert f"lets us in with none of our keys (tried: {key})" in sentence
    assert "authorized_keys" in sentence


def test_an_account_that_is_not_there_is_refused_alike(sshd: PrivateSshd) -> None:
    assert "nobody-of-this-name@127.0.0.1" in said({**sshd.options, "user": "nobody-of-this-name"})


@pytest.mark.parametrize("kind", ["ed25519", "rsa", "ecdsa"])
def test_an_encrypted_key_is_opened_with_the_passphrase_in_the_environment(
    sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    key = new_key(tmp_path / "locked", kind=kind, passphrase="secret words")
    sshd.let_in(key)
    monkeypatch.setenv("MY_PASSPHRASE", "secret words")

    assert works({**sshd.options, "key": str(key), "passphrase_variable": "MY_PASSPHRASE"})


def test_an_encrypted_key_without_a_passphrase_says_how_to_give_one(sshd: PrivateSshd, tmp_path: Path) -> None:
    key = new_key(tmp_path / "locked", passphrase="secret words")

    sentence = said({**sshd.options, "key": str(key)})

    assert f"the key {key} for" in sentence
    assert "it is encrypted" in sentence
    assert "passphrase_env" in sentence


def test_a_wrong_passphrase_is_not_shown(sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key(tmp_path / "locked", passphrase="secret words")
    monkeypatch.setenv("MY_PASSPHRASE", "something else")

    sentence = said({**sshd.options, "key": str(key), "passphrase_variable": "MY_PASSPHRASE"})

    assert "passphrase" in sentence
    assert "MY_PASSPHRASE" in sentence
    assert "something else" not in sentence


def test_a_passphrase_that_is_not_set_is_missed_by_name(sshd: PrivateSshd, tmp_path: Path) -> None:
    key = new_key(tmp_path / "locked", passphrase="secret words")

    assert "MY_PASSPHRASE, which is not set" in said(
        {**sshd.options, "key": str(key), "passphrase_variable": "MY_PASSPHRASE"}
    )


def test_a_key_that_is_not_there_and_one_that_is_none_are_told_apart(sshd: PrivateSshd, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no key")

    assert "there is no such file" in said({**sshd.options, "key": str(tmp_path / "none")})
    assert "it is no private key" in said({**sshd.options, "key": str(tmp_path / "text")})


def test_keys_of_an_agent_are_used(sshd: PrivateSshd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    address = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", address], stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        # It says where it is once it is there.
        agent.stdout.readline()
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        subprocess.run(["ssh-add", "-q", sshd.key], check=True, capture_output=True)

        assert works({**sshd.options, "key": None, "agent": True})

        agent.terminate()


def test_a_port_where_nobody_listens_is_named() -> None:
    needs("ssh", missing_sshd)
    (port,) = free_ports(1)

    sentence = said({"host": "127.0.0.1", "port": port, "config": None})

    assert f"127.0.0.1 port {port} cannot be reached: Connection refused" in sentence


def test_a_name_that_means_nothing_is_named() -> None:
    assert "there is no host called 'no-such-host.invalid'" in said({"host": "no-such-host.invalid", "config": None})


def test_what_listens_and_is_no_ssh_server_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        sentence = said({"host": "127.0.0.1", "port": port, "config": None, "connect_timeout_s": 1.0})

    assert f"127.0.0.1 port {port} does not speak SSH" in sentence


def test_after_a_refusal_the_host_is_not_asked_again_at_once(tmp_path: Path) -> None:
    needs("ssh", missing_sshd)
    with private_sshd(tmp_path / "sshd", settings={"LogLevel": "VERBOSE"}) as sshd:
        shell = SshShell(SshOptions(**{**sshd.options, "key": str(new_key(tmp_path / "other"))}))

        for _ in range(3):
            with pytest.raises(SystemUnavailable, match="none of our keys"):
                shell.run(["true"], timeout_s=PATIENCE_S)

        shell.close()
    assert sshd.log.read_text().count("Connection from 127.0.0.1") == 1


def test_a_host_behind_another_is_reached_through_it(sshd: PrivateSshd, inner: PrivateSshd) -> None:
    both = sshd.folder / "both"
    both.write_text(sshd.known_hosts.read_text() + inner.known_hosts.read_text())
    inner.let_in(sshd.key)
    options = {**inner.options, "key": str(sshd.key), "known_hosts": str(both)}

    assert works({**options, "proxy_jump": (f"{sshd.user}@127.0.0.1:{sshd.port}",)})


def test_an_unknown_host_behind_another_is_accepted_by_ssh_itself(sshd: PrivateSshd, inner: PrivateSshd) -> None:
    inner.let_in(sshd.key)
    jump = f"{sshd.user}@127.0.0.1:{sshd.port}"

    sentence = said(
        {**inner.options, "key": str(sshd.key), "known_hosts": str(sshd.known_hosts), "proxy_jump": (jump,)}
    )

    words = shlex.split(sentence.partition("accept it with: ")[2])
    assert words[0] == "ssh"
    assert words[words.index("-J") + 1] == jump


def test_a_host_that_cannot_reach_the_next_is_named(sshd: PrivateSshd) -> None:
    (port,) = free_ports(1)

    sentence = said({**sshd.options, "port": port, "proxy_jump": (f"{sshd.user}@127.0.0.1:{sshd.port}",)})

    assert f"{sshd.user}@127.0.0.1:{sshd.port} cannot connect us to 127.0.0.1 port {port}" in sentence


def test_the_ssh_configuration_says_what_we_do_not(sshd: PrivateSshd, inner: PrivateSshd, tmp_path: Path) -> None:
    inner.let_in(sshd.key)
    both = tmp_path / "both"
    both.write_text(sshd.known_hosts.read_text() + inner.known_hosts.read_text())
    config = tmp_path / "config"
    config.write_text(
        f"Host *\n  User {sshd.user}\n  HostName 127.0.0.1\n  IdentityFile {sshd.key}\n  UserKnownHostsFile {both}\n"
        f"Host door\n  Port {sshd.port}\nHost cluster\n  Port {inner.port}\n  ProxyJump door\n"
    )
    given = SshOptions(host="cluster", config=str(config), agent=False)

    assert works(dataclasses.asdict(given))
    assert "nobody-of-this-name@" in said({**dataclasses.asdict(given), "user": "nobody-of-this-name"})


def test_an_ssh_configuration_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="there is no such SSH configuration"):
        SshShell(SshOptions(host="x", config=str(tmp_path / "none")))
