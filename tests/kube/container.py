"""Becomes the first process of a container that is none: the machine's own files, with the pod's volumes among them.

A program of its own, in namespaces of its own for mounts and processes: ``container.py SPECIFICATION READY``. That is a
JSON file with ``root`` (an empty directory), ``mounts`` (pairs of source and place), ``command``, ``environment``,
``directory``, ``user`` and ``group``, and a descriptor to say on that the command begins. Nothing that it makes is left
when it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18

#: Of the machine's, those that a container has of its own.
_OWN = {"proc", "run"}


def mount(source: str, target: Path, kind: str | None = None, flags: int = 0) -> None:
    words = [None if word is None else os.fsencode(word) for word in (source, str(target), kind)]
    if _LIBC.mount(*words, flags, None):
        raise OSError(ctypes.get_errno(), f"cannot mount {source} on {target}")


def main(specification: str, ready: int) -> None:
    wanted = json.loads(Path(specification).read_text())
    root = Path(wanted["root"])
    mount("none", Path("/"), None, _MS_REC | _MS_PRIVATE)
    mount("container", root, "tmpfs")
    for entry in Path("/").iterdir():
        here = root / entry.name
        if entry.is_symlink():
            here.symlink_to(entry.readlink())
        elif entry.is_dir():
            here.mkdir()
            if entry.name not in _OWN:
                mount(str(entry), here, None, _MS_BIND | _MS_REC)
    os.chroot(root)
    os.chdir("/")
    mount("proc", Path("/proc"), "proc")
    # All are looked up before the first is mounted, which may hide where the others are.
    mounts = [(os.open(source, os.O_PATH), Path(source).is_file(), Path(place)) for source, place in wanted["mounts"]]
    for source, is_file, target in mounts:
        if is_file:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        else:
            target.mkdir(parents=True, exist_ok=True)
        mount(f"/proc/self/fd/{source}", target, None, _MS_BIND)
    os.chdir(wanted["directory"])
    if wanted["group"] is not None:
        os.setgroups([wanted["group"]])
        os.setgid(wanted["group"])
    if wanted["user"] is not None:
        os.setuid(wanted["user"])
    command = wanted["command"]
    os.write(ready, b".")
    os.close(ready)
    try:
        os.execvpe(command[0], command, wanted["environment"])
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        # As a shell says that there is no such command.
        sys.exit(127)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
