"""Log in on one host by SSH, or say in a sentence what keeps us from it and what to do about it."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paramiko

from .provider import SystemUnavailable
from .sshoptions import Hop, SshOptions

log = logging.getLogger(__name__)

# It tells of every step, with traceback, in its own words.
logging.getLogger("paramiko").setLevel(logging.CRITICAL)

#: What paramiko raises when a connection breaks or is not what it should be.
BROKEN = (paramiko.SSHException, OSError, EOFError)

#: What a server may send before we have read it, in all of a channel. paramiko's own would do for a faster language.
_WINDOW = 4 * 1024 * 1024


#: So many bytes, or packets, go through no connection.
_NEVER = 2**62


class ConnectionRefused(SystemUnavailable):
    """The host, or we, want no connection: trying again will not help until somebody changes something."""


def log_in(hop: Hop, sock: Any, options: SshOptions, *, jumps: str) -> paramiko.Transport:
    """A connection that has shown the right host key and let us in, over ``sock``. Raises SystemUnavailable.

    ``jumps`` are the hosts before it, as ``ssh -J`` wants them.
    """
    transport = paramiko.Transport(sock, default_window_size=_WINDOW)
    transport.banner_timeout = transport.auth_timeout = options.connect_timeout_s
    # New keys are for the server to ask for, as OpenSSH does: where paramiko asks and a channel's end comes before
    # the answer, its thread waits for itself (paramiko's issue 822).
    transport.packetizer.REKEY_BYTES = transport.packetizer.REKEY_PACKETS = _NEVER
    try:
        _greet(transport, hop, options.connect_timeout_s, jumps)
        _authenticate(transport, hop, options)
        transport.set_keepalive(options.keep_alive_s)
    except BROKEN as error:
        transport.close()
        if "banner" in str(error):
            raise _speechless(hop, options.connect_timeout_s) from error
        raise SystemUnavailable(f"the connection to {hop.place} failed: {words(error)}") from error
    except BaseException:
        transport.close()
        raise
    return transport


def _speechless(hop: Hop, timeout_s: float) -> SystemUnavailable:
    return SystemUnavailable(f"{hop.host} port {hop.port} does not speak SSH, or not within {timeout_s:g} s")


def words(error: BaseException) -> str:
    """What an exception says, or at least its name."""
    return str(error) or type(error).__name__


# -- the host's key ---------------------------------------------------------------------------------------------------


def _greet(transport: paramiko.Transport, hop: Hop, timeout_s: float, jumps: str) -> None:
    known = _known_keys(hop)
    if known:
        _ask_for(transport, known)
    began = time.monotonic()
    transport.start_client(timeout=timeout_s)
    if not transport.initial_kex_done and time.monotonic() - began >= timeout_s:
        raise _speechless(hop, timeout_s)
    key = transport.get_remote_server_key()
    ours = known.get(key.get_name())
    if ours is None:
        raise ConnectionRefused(_unknown(hop, key, jumps, other_kinds=list(known)))
    if ours != key:
        raise ConnectionRefused(_changed(hop, ours, key, jumps))


def _known_keys(hop: Hop) -> dict[str, paramiko.PKey]:
    try:
        found = paramiko.HostKeys(str(hop.known_hosts)).lookup(hop.known_as)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConnectionRefused(f"{hop.known_hosts} cannot be read: {error.strerror}") from error
    return {kind: found[kind] for kind in found} if found is not None else {}


def _ask_for(transport: paramiko.Transport, known: dict[str, paramiko.PKey]) -> None:
    """A server has keys of several kinds; it is to show one that we know."""
    options = transport.get_security_options()
    wanted = {"rsa-sha2-512", "rsa-sha2-256", *known} if "ssh-rsa" in known else set(known)
    options.key_types = sorted(options.key_types, key=lambda kind: kind not in wanted)


def _unknown(hop: Hop, key: paramiko.PKey, jumps: str, *, other_kinds: list[str]) -> str:
    others = f" (which knows it by {', '.join(other_kinds)} only)" if other_kinds else ""
    return (
        f"the host key of {hop.place}, {_shown(key)}, is not in {hop.known_hosts}{others}; "
        f"if it is what the site says, accept it with: {_accept(hop, key.get_name(), jumps)}"
    )


def _changed(hop: Hop, expected: paramiko.PKey, key: paramiko.PKey, jumps: str) -> str:
    remove = shlex.join(["ssh-keygen", "-R", hop.known_as, "-f", str(hop.known_hosts)])
    return (
        f"the host key of {hop.place} is {_shown(key)}, and not {_shown(expected)} as {hop.known_hosts} says. Somebody "
        f"may be listening in. If the site says that it was changed, remove the old one with: {remove} "
        f"and accept the new one with: {_accept(hop, key.get_name(), jumps)}"
    )


def _shown(key: paramiko.PKey) -> str:
    return f"{key.get_name()} {key.fingerprint}"


def _accept(hop: Hop, kind: str, jumps: str) -> str:
    file = shlex.quote(str(hop.known_hosts))
    if not jumps:
        return f"ssh-keyscan -t {kind.removeprefix('ssh-')} -p {hop.port} {shlex.quote(hop.host)} >> {file}"
    # A host behind others cannot be scanned; ssh itself asks.
    options = f"-o UserKnownHostsFile={file} -o HostKeyAlgorithms={kind}"
    return f"ssh {options} -J {shlex.quote(jumps)} -p {hop.port} {shlex.quote(f'{hop.user}@{hop.host}')} true"


# -- our keys ---------------------------------------------------------------------------------------------------------


class _Unusable(Exception):
    """A private key that cannot be read, and why."""


def _authenticate(transport: paramiko.Transport, hop: Hop, options: SshOptions) -> None:
    tried = []
    agent = paramiko.Agent() if options.agent else None
    try:
        for name, key in _keys(hop, options, agent):
            tried.append(name)
            try:
                more = transport.auth_publickey(hop.user, key)
            except paramiko.BadAuthenticationType as error:
                raise ConnectionRefused(
                    f"{hop.place} does not take keys, but {', '.join(error.allowed_types)}; ask for another way in"
                ) from error
            except paramiko.AuthenticationException:
                # A server may end the connection after some attempts.
                if transport.is_active():
                    continue
                break
            if more:
                raise ConnectionRefused(
                    f"{hop.place} wants {' and '.join(more)} beside a key, which nobody is here to give; "
                    "ask the site for a way in for programs"
                )
            return
    finally:
        if agent is not None:
            agent.close()
    if options.agent and "SSH_AUTH_SOCK" not in os.environ:
        tried.append("no ssh-agent, as none runs")
    raise ConnectionRefused(
        f"{hop.place} lets us in with none of our keys (tried: {', '.join(tried) or 'none, as there is none'}); "
        "see that the account is right, and that the public key is in its authorized_keys there"
    )


def _keys(hop: Hop, options: SshOptions, agent: paramiko.Agent | None) -> Iterator[tuple[str, paramiko.PKey]]:
    """The key that was asked for, or those of the agent and then the usual ones."""
    if options.key is None and agent is not None:
        yield from _of_agent(agent)
    passphrase = os.environ.get(options.passphrase_variable) if options.passphrase_variable else None
    for path in hop.keys:
        try:
            yield str(path), _load_key(path, passphrase)
        except _Unusable as error:
            if options.key is not None and not (agent is not None and agent.get_keys()):
                raise ConnectionRefused(
                    f"the key {path} for {hop.place} cannot be used: {error}; {_advice(options.passphrase_variable)}"
                ) from error
            # Nobody asked for it, or the agent may have it open.
            log.debug("the key %s is not used: %s", path, error)
    if options.key is not None and agent is not None:
        yield from _of_agent(agent)


def _of_agent(agent: paramiko.Agent) -> Iterator[tuple[str, paramiko.PKey]]:
    for key in agent.get_keys():
        yield f"{key.comment or key.get_name()} of ssh-agent", key


def _advice(variable: str | None) -> str:
    if variable is None:
        return "if it has a passphrase, load it into ssh-agent, or name under passphrase_env the variable that has it"
    return f"see the environment variable {variable}" + ("" if variable in os.environ else ", which is not set")


def _load_key(path: Path, passphrase: str | None) -> paramiko.PKey:
    try:
        # By position: its name has changed in paramiko 5.
        return paramiko.PKey.from_path(str(path), passphrase.encode() if passphrase else None)
    except FileNotFoundError:
        raise _Unusable("there is no such file") from None
    except OSError as error:
        raise _Unusable(f"it cannot be read: {error.strerror}") from None
    except (TypeError, paramiko.PasswordRequiredException):
        raise _Unusable("it is encrypted" if passphrase is None else "its passphrase is not for it") from None
    except (ValueError, paramiko.SSHException, paramiko.pkey.UnknownKeyType) as error:
        wrong = "the passphrase is wrong, or it is no private key" if passphrase else "it is no private key"
        raise _Unusable(f"{wrong} ({words(error)})") from None
