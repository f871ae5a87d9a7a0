"""Whether memory may be why a worker died: what the kernel lets us see, in a sentence."""

from __future__ import annotations

import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: With less than this share of the node's memory available, it was short.
_SHORT = 0.05

#: What programs print that were refused memory.
_COMPLAINTS = ("MemoryError", "std::bad_alloc", "Cannot allocate memory", "out of memory", "Out of memory")


@dataclass(frozen=True, slots=True)
class Kills:
    """How many processes the kernel has ended for want of memory: of our control group, and of the whole node."""

    group: int | None = None
    node: int | None = None


class Memory:
    """The node's memory, as the files under ``/proc`` and ``/sys/fs/cgroup`` tell of it."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._group_files = list(_group_files(self._proc, root / "sys/fs/cgroup"))

    def kills(self) -> Kills:
        group = [number for file in self._group_files if (number := _field(file, "oom_kill")) is not None]
        return Kills(group[0] if group else None, _field(self._proc / "vmstat", "oom_kill"))

    def peak(self, pid: int) -> int | None:
        """The most bytes that a process has had in memory so far."""
        kilobytes = _field(self._proc / str(pid) / "status", "VmHWM:")
        return None if kilobytes is None else kilobytes * 1024

    def sentence(self, before: Kills, peak: int | None, exit_code: int | None, stderr: str) -> str:
        """What is to be said of memory when a worker has died; nothing if it cannot have been the reason."""
        complaint = next((words for words in _COMPLAINTS if words in stderr), None)
        if exit_code != -signal.SIGKILL and complaint is None:
            return ""
        parts = [self._kernels_word(before, self.kills())]
        if complaint is not None:
            parts.append(f"the task's stderr says {complaint!r}")
        if peak is not None:
            parts.append(f"the worker process itself was seen using up to {_gigabytes(peak)}")
        parts.append(self._whats_left())
        said = "; ".join(part for part in parts if part)
        return f"{said[0].upper()}{said[1:]}." if said else ""

    def _kernels_word(self, before: Kills, after: Kills) -> str:
        if _grew(before.group, after.group):
            return "the kernel ended a process for want of memory in the control group of this block meanwhile"
        if _grew(before.node, after.node):
            return "the kernel ended a process for want of memory on this node meanwhile"
        if after.node is None:
            return ""
        return "the kernel has ended no process for want of memory meanwhile"

    def _whats_left(self) -> str:
        total = _field(self._proc / "meminfo", "MemTotal:")
        available = _field(self._proc / "meminfo", "MemAvailable:")
        if not total or available is None:
            return ""
        short = ", which is little" if available < _SHORT * total else ""
        return f"{_gigabytes(available * 1024)} of the node's {_gigabytes(total * 1024)} were available then{short}"


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _group_files(proc: Path, groups: Path) -> list[Path]:
    """Where our control group may count its kills, in version 2 and version 1, seen from inside a container or not."""
    found = []
    with suppress(OSError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += [groups / path.lstrip("/") / "memory.events", groups / "memory.events"]
            elif "memory" in controllers.split(","):
                base = groups / "memory"
                found += [base / path.lstrip("/") / "memory.oom_control", base / "memory.oom_control"]
    return found


def _field(file: Path, name: str) -> int | None:
    """The number that follows a name in one of the kernel's tables."""
    with suppress(OSError, ValueError, IndexError):
        for line in file.read_text().splitlines():
            words = line.split()
            if words and words[0] == name:
                return int(words[1])
    return None


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
