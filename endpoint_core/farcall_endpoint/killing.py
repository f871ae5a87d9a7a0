"""Ends all processes that came of a worker: those it has started, those they have, and those that hide from it.

A process that starts a session of its own or whose parent ends is no longer among the worker's descendants. So every
worker carries a mark in the environment that it was started with, which its children have as well; and the manager
makes itself the parent of orphans below it, so that they are reaped.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from .calls import TASK_ID

log = logging.getLogger(f"parsl.{__name__}")

#: The variable with the mark; its value is another one for every process of a worker.
MARK = "FARCALL_WORKER"

#: Between asking the processes of a task that is to end and killing them.
GRACE_S = 3.0

#: From <linux/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36

#: Between two looks at a tree that is ending; later they are fewer.
_FIRST_LOOK_S, _LAST_LOOK_S = 0.05, 0.25

#: After being killed a process is gone within milliseconds; one that waits for a dead disk may never be.
_MOST_DYING_S = 1.0

#: Looks in which all processes of a tree are stopped, so that none starts others while they are killed.
_MOST_LOOKS = 20


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of orphans below it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True)
class Tree:
    """A worker, and all that came of it; but not what it has begun for other tasks than the one that it is running."""

    root: psutil.Process
    mark: str
    task_id: str | None = None


def living(trees: Sequence[Tree]) -> list[list[psutil.Process]]:
    """The processes of each tree that have not ended."""
    children: dict[int, list[psutil.Process]] = defaultdict(list)
    marked: dict[str | None, list[psutil.Process]] = defaultdict(list)
    tasks: dict[psutil.Process, str] = {}
    for process in psutil.process_iter():
        # It may end at any time, or be somebody else's.
        with suppress(psutil.Error, OSError):
            children[process.ppid()].append(process)
            environment = process.environ()
            tasks[process] = environment.get(TASK_ID, "")
            marked[environment.get(MARK)].append(process)
    found = []
    for tree in trees:
        # The number of one that has ended may be another's by now.
        members = dict.fromkeys([tree.root] if tree.root.is_running() else [])
        members.update(dict.fromkeys(marked[tree.mark]))
        parents = [member.pid for member in members]
        for pid in parents:
            new = [child for child in children[pid] if child not in members]
            members.update(dict.fromkeys(new))
            parents += [child.pid for child in new]
        found.append([member for member in members if _is_alive(member) and not _is_spared(member, tree, tasks)])
    return found


def _is_spared(process: psutil.Process, tree: Tree, tasks: Mapping[psutil.Process, str]) -> bool:
    """Whether an earlier task has left it, perhaps for later ones."""
    return tree.task_id is not None and process != tree.root and tasks.get(process, "") not in ("", tree.task_id)


def _is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.pid != os.getpid() and bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def kill(tree: Tree) -> None:
    """Kill all of a tree, also if it starts new processes all the time."""
    stopped: list[psutil.Process] = []
    for _ in range(_MOST_LOOKS):
        new = [process for process in living([tree])[0] if process not in stopped]
        if not new:
            break
        for process in new:
            _tell(process, "suspend")
        stopped += new
    for process in stopped:
        _tell(process, "kill")


def end_children(task_id: str, grace_s: float = 1.0) -> None:
    """In a worker: end all processes that its task has started, and return when they are gone."""
    tree = Tree(psutil.Process(), os.environ.get(MARK, ""), task_id)
    (processes,) = living([tree])
    for process in processes:
        _tell(process, "terminate")
    # Those that are not our own children cannot be waited for by us; psutil looks whether they are there.
    _, left = psutil.wait_procs(processes, timeout=grace_s)
    for process in left:
        _tell(process, "kill")


def _tell(process: psutil.Process, what: str) -> None:
    # It may end by itself at any time, and some are not ours to end.
    with suppress(psutil.Error):
        getattr(process, what)()


@dataclass(eq=False)
class _Ending:
    tree: Tree
    kill_at: float
    then: Callable[[], None]
    asked: list[psutil.Process] = field(default_factory=list)


class Killer:
    """The thread that ends trees, all of them at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._endings: list[_Ending] = []
        self._work = threading.Event()
        self._thread: threading.Thread | None = None

    def end(self, tree: Tree, grace_s: float, then: Callable[[], None]) -> None:
        """Ask all processes of a tree to end, kill them after the grace, and call ``then`` when they are gone."""
        with self._lock:
            self._endings.append(_Ending(tree, time.monotonic() + grace_s, then))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
                self._thread.start()
        self._work.set()

    def _run(self) -> None:
        while True:
            self._work.wait()
            self._work.clear()
            pause_s = _FIRST_LOOK_S
            while self._endings:
                try:
                    self._look()
                except Exception:
                    log.exception("ending processes failed, trying again")
                if self._work.wait(self._until_kill(pause_s)):
                    self._work.clear()
                    pause_s = _FIRST_LOOK_S
                else:
                    pause_s = min(1.2 * pause_s, _LAST_LOOK_S)

    def _until_kill(self, most_s: float) -> float:
        """So long, but not past the moment in which the next is to be killed; and little once one has been."""
        with self._lock:
            rests = [ending.kill_at - time.monotonic() for ending in self._endings]
        return min([most_s, *(max(rest, 0.01) if rest > 0 else _FIRST_LOOK_S for rest in rests)])

    def _look(self) -> None:
        with self._lock:
            endings = list(self._endings)
        for ending, processes in zip(endings, living([ending.tree for ending in endings]), strict=True):
            now = time.monotonic()
            if processes and now < ending.kill_at:
                for process in processes:
                    if process not in ending.asked:
                        _tell(process, "terminate")
                ending.asked = processes
            elif processes and now < ending.kill_at + _MOST_DYING_S:
                kill(ending.tree)
            else:
                if processes:
                    log.warning("processes %s do not end", [process.pid for process in processes])
                with self._lock:
                    self._endings.remove(ending)
                ending.then()
