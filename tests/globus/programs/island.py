"""The first process of an island: sets it up, then writes down every name that somebody asks to be resolved.

It prints `ready`, and ends with its standard input; everything in the island ends with it.
"""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

FORMAT_OF_HEADER = 12
REFUSED_AS_UNKNOWN = b"\x81\x83"


def main(folder: Path, needed: list[Path]) -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    resolver = folder / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    if Path("/etc/resolv.conf").exists():
        mount("--bind", resolver, "/etc/resolv.conf")
    if os.getuid() == 0:
        open_the_way(folder, needed)
    # The first process of a namespace inherits the orphans: whoever asks after one must not find a zombie.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    names.bind(("127.0.0.1", 53))
    threading.Thread(target=answer, args=(names, folder / "names"), daemon=True).start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()


def open_the_way(folder: Path, needed: list[Path]) -> None:
    """Let others come to these folders where a folder above them is closed, such as root's home.

    That folder is covered by an empty one, in here only, in which nothing but the needed ones are.
    """
    closed = {above for path in needed for above in path.parents if not above.stat().st_mode & stat.S_IXOTH}
    kept = {path: folder / f"kept{number}" for number, path in enumerate(needed) if closed & set(path.parents)}
    for path, aside in kept.items():
        aside.mkdir()
        mount("--bind", path, aside)
    for above in sorted(closed):
        if above.exists():
            mount("-t", "tmpfs", "-o", "mode=755", "cover", above)
    for path, aside in kept.items():
        path.mkdir(parents=True, exist_ok=True)
        mount("--bind", aside, path)


def mount(*arguments: str | Path) -> None:
    subprocess.run(["mount", *arguments], check=True)


def answer(names: socket.socket, log: Path) -> None:
    """Note the names that are asked for; tell everybody that there is no such name."""
    with log.open("a", buffering=1) as asked:
        while True:
            question, asker = names.recvfrom(4096)
            asked.write(name_in(question) + "\n")
            reply = question[:2] + REFUSED_AS_UNKNOWN + question[4:6] + bytes(6) + question[FORMAT_OF_HEADER:]
            names.sendto(reply, asker)


def name_in(question: bytes) -> str:
    labels, at = [], FORMAT_OF_HEADER
    while at < len(question) and question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode("ascii", "replace"))
        at += 1 + question[at]
    return ".".join(labels)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(each) for each in sys.argv[2:]])
