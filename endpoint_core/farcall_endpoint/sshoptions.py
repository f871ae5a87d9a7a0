"""How a login node is reached: what stands under ``ssh`` in a provider's section, and in ~/.ssh/config."""

from __future__ import annotations

import dataclasses
import getpass
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provider import ProviderError, setting

if TYPE_CHECKING:
    from paramiko import SSHConfig

_HOP = re.compile(r"(?:(?P<user>[^@\s]+)@)?(?P<host>\[[^\]\s]+\]|[^:@\s\[\]]+)(?::(?P<port>\d+))?")


def _hops(raw: Any) -> tuple[str, ...]:
    hops = raw.split(",") if isinstance(raw, str) else raw
    if isinstance(hops, list | tuple) and all(isinstance(hop, str) and _HOP.fullmatch(hop.strip()) for hop in hops):
        return tuple(hop.strip() for hop in hops)
    raise ValueError(f"expected user@host:port or a list of those, got {raw!r}")


@dataclasses.dataclass(frozen=True)
class SshOptions:
    """The keys under ``ssh``."""

    host: str = setting(help="The login node: a name, an address, or a Host of the SSH configuration.")
    port: int | None = setting(None, minimum=1, help="Its SSH port; left out, 22.")
    user: str | None = setting(None, help="The account there; left out, the name of yours here.")
    key: str | None = setting(None, help="The file with your private key; left out, the usual ones are tried.")
    passphrase_variable: str | None = setting(
        None, key="passphrase_env", help="The environment variable with the passphrase of the key."
    )
    agent: bool = setting(True, help="Whether to use the keys of ssh-agent as well.")
    proxy_jump: tuple[str, ...] = setting(
        (), parse=_hops, help="The hosts to go through, one after the other, each as user@host:port."
    )
    known_hosts: str | None = setting(None, help="The file with the hosts' keys; left out, ~/.ssh/known_hosts.")
    config: str | None = setting("~/.ssh/config", help="The SSH configuration; null for none.")
    keep_alive_s: int = setting(
        15, key="keep_alive", minimum=1, help="Seconds between signs of life; after three without one we connect again."
    )
    connect_timeout_s: float = setting(15.0, key="connect_timeout", minimum=1, help="Seconds that connecting may take.")
    directory: str = setting(
        "~/.farcall", help="A directory there for the blocks' files; login and compute nodes must both see it."
    )
    init: str = setting(
        "", help="Shell lines that run before each command there, such as: export PATH=/opt/slurm/bin:$PATH"
    )
    login_shell: bool = setting(False, help="Whether commands run in a login shell (bash -l), which reads the profile.")
    python: str = setting("python3", help="Python 3.6 or newer there, for the relay.")
    relay_address: str | None = setting(
        None, help="By which the compute nodes reach the login node; left out, all its addresses are tried."
    )


@dataclasses.dataclass(frozen=True)
class Hop:
    """One host to be connected to, and how."""

    host: str
    port: int
    user: str
    keys: tuple[Path, ...]
    known_hosts: Path

    @property
    def place(self) -> str:
        """For sentences."""
        return f"{self.user}@{self.host}" + ("" if self.port == 22 else f":{self.port}")

    @property
    def known_as(self) -> str:
        """In a file of known hosts."""
        return self.host if self.port == 22 else f"[{self.host}]:{self.port}"


def route(options: SshOptions) -> list[Hop]:
    """The hosts to be connected to, the login node last. Raises ProviderError for an unreadable SSH configuration."""
    config = _ssh_config(options)
    found = dict(config.lookup(options.host)) if config else {}
    jumps = options.proxy_jump or _hops_of(found.get("proxyjump"))
    hops = [_hop(jump, config, options) for jump in jumps]
    last = _made(
        found,
        host=options.host,
        user=options.user,
        port=options.port,
        key=options.key,
        known_hosts=options.known_hosts,
    )
    return [*hops, last]


def _ssh_config(options: SshOptions) -> SSHConfig | None:
    from paramiko import ConfigParseError, SSHConfig  # late, as the other shell does without it

    if options.config is None:
        return None
    path = Path(options.config).expanduser()
    try:
        return SSHConfig.from_path(str(path))
    except FileNotFoundError:
        if options.config == SshOptions.config:
            return None
        raise ProviderError(f"{path}: there is no such SSH configuration; see the key ssh.config") from None
    except (OSError, ConfigParseError) as error:
        raise ProviderError(f"{path}: the SSH configuration cannot be read: {error}") from error


def _hops_of(text: str | None) -> tuple[str, ...]:
    return () if text in (None, "none") else _hops(text)


def _hop(text: str, config: SSHConfig | None, options: SshOptions) -> Hop:
    match = _HOP.fullmatch(text)
    assert match is not None
    host = match["host"].strip("[]")
    found = dict(config.lookup(host)) if config else {}
    port = int(match["port"]) if match["port"] else None
    return _made(found, host=host, user=match["user"], port=port, key=options.key, known_hosts=options.known_hosts)


def _made(
    found: Mapping[str, Any],
    *,
    host: str,
    user: str | None,
    port: int | None,
    key: str | None,
    known_hosts: str | None,
) -> Hop:
    """What was said, or else what the SSH configuration has found."""
    return Hop(
        found.get("hostname", host),
        port or int(found.get("port", 22)),
        user or found.get("user") or getpass.getuser(),
        tuple(_keys(key, found)),
        Path(known_hosts or str(found.get("userknownhostsfile", "~/.ssh/known_hosts")).split()[0]).expanduser(),
    )


def _keys(key: str | None, found: Mapping[str, Any]) -> Iterator[Path]:
    if key is not None:
        yield Path(key).expanduser()
        return
    usual = [f"~/.ssh/id_{kind}" for kind in ("ed25519", "ecdsa", "rsa")]
    for name in (*found.get("identityfile", ()), *usual):
        path = Path(name).expanduser()
        if os.access(path, os.R_OK):
            yield path
