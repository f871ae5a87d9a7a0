"""Hosts made of network namespaces, the cables between them, and small disks; all of it ends with the storm.

The storm runs in namespaces of its own (see ``__main__``), so that what is made here is nobody else's and needs no
cleaning up.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

#: Only the hosts of the storm know of it.
NETWORK = "10.77.0"

Direction = Literal["in", "out"]


class Host:
    """A machine, as far as the network is concerned: one address, one cable to the switch."""

    def __init__(self, switch: Switch, name: str, number: int, *, here: bool) -> None:
        self.name = name
        self.address = f"{NETWORK}.{number}"
        self._switch = switch
        self._pid = os.getpid() if here else _namespace()
        #: What precedes a command so that it runs on this host.
        self.prefix: Sequence[str | Path] = () if here else _enter(self._pid)
        self._port = f"to-{name}"
        switch.ip("link", "add", self._port, "type", "veth", "peer", "name", "eth0", "netns", str(self._pid))
        switch.ip("link", "set", self._port, "master", "bridge", "up")
        self._run("ip", "link", "set", "lo", "up")
        self._run("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self._run("ip", "link", "set", "eth0", "up")
        self._run("nft", "add table inet storm")
        for direction, hook in (("in", "input"), ("out", "output")):
            self._run("nft", f"add chain inet storm {direction} {{ type filter hook {hook} priority 0; }}")

    def unplug(self) -> None:
        """Pull the cable: nothing arrives, and nobody is told."""
        self._switch.ip("link", "set", self._port, "down")

    def plug(self) -> None:
        self._switch.ip("link", "set", self._port, "up")

    def drop(self, direction: Direction) -> None:
        """Lose what comes in or what goes out, without a word to either side."""
        interface = "iifname" if direction == "in" else "oifname"
        self._run("nft", f'add rule inet storm {direction} {interface} "eth0" drop')

    def let_through(self, direction: Direction) -> None:
        self._run("nft", f"flush chain inet storm {direction}")

    def pids(self) -> set[int]:
        """Of all that runs here; of nothing where this process itself is."""
        ours = _network(self._pid)
        found = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
        return {pid for pid in found - {self._pid} if _network(pid) == ours} if self.prefix else set()

    def _run(self, *command: str) -> None:
        _run(*self.prefix, *command)


class Switch:
    """What the hosts' cables lead to."""

    def __init__(self) -> None:
        self._enter = _enter(_namespace())
        self.ip("link", "add", "bridge", "type", "bridge")
        self.ip("link", "set", "bridge", "up")
        self._hosts = 0

    def host(self, name: str, *, here: bool = False) -> Host:
        """A new host; ``here`` makes it of the namespace that this process is in."""
        self._hosts += 1
        return Host(self, name, self._hosts, here=here)

    def ip(self, *arguments: str) -> None:
        _run(*self._enter, "ip", *arguments)


class Disk:
    """A small disk of its own, which can be full."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._size = megabytes * 1024 * 1024
        _run("mount", "-t", "tmpfs", "-o", f"size={self._size},mode=755", "storm", str(folder))

    def fill(self) -> None:
        """Leave no room: as if others had written it full."""
        while True:
            found = os.statvfs(self.folder)
            used = (found.f_blocks - found.f_bfree) * found.f_frsize
            try:
                self._resize(max(used, found.f_frsize))
                return
            except OSError:
                # Somebody wrote between the look and the change; a disk cannot be smaller than what is on it.
                time.sleep(0.01)

    def empty(self) -> None:
        """Give the room back."""
        self._resize(self._size)

    def _resize(self, size: int) -> None:
        _run("mount", "-o", f"remount,size={size}", str(self.folder))


def _namespace() -> int:
    """A process with a network namespace of its own, which lives as long as the process does."""
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    while _network(holder.pid) == _network(os.getpid()):
        time.sleep(0.01)
    return holder.pid


def _network(pid: int) -> Path | None:
    """What tells its network from others; None if there is no such process any more."""
    try:
        return Path(f"/proc/{pid}/ns/net").readlink()
    except OSError:
        return None


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--net", "--"]


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.returncode} {done.stderr.strip()}")
