"""Trees of processes end, with what hides and what multiplies."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from calling import PATIENCE_S, wait_until

from farcall_endpoint import killing
from farcall_endpoint.killing import MARK, Killer, Tree, living

#: Starts copies of itself all the time, each in a session of its own, and heeds no request.
MULTIPLY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            end = min(end, time.monotonic() + 2)
        else:
            os._exit(0)
    time.sleep(0.3)
"""


class Family:
    """A process and what it starts, under a mark of their own."""

    def __init__(self, program: str, *, task_id: str = "") -> None:
        self.mark = uuid.uuid4().hex
        environment = {MARK: self.mark, "FARCALL_TASK_ID": task_id}
        self.process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline().decode()
        self.tree = Tree(psutil.Process(self.process.pid), self.mark)

    def members(self) -> list[psutil.Process]:
        return living([self.tree])[0]

    def end(self) -> None:
        killing.kill(self.tree)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def families() -> Iterator[list[Family]]:
    made: list[Family] = []
    yield made
    for family in made:
        family.end()


def ended_in(killer: Killer, tree: Tree, grace_s: float) -> float:
    done = threading.Event()
    began = time.monotonic()
    killer.end(tree, grace_s, done.set)
    assert done.wait(PATIENCE_S)
    return time.monotonic() - began


SLEEP = "print('up', flush=True); import time; time.sleep(1000)"
SULK = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {SLEEP}"
DAEMON = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(child.pid, flush=True)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(["sleep", "1000"], env={})
print(child.pid, flush=True)
time.sleep(1000)
"""


def test_who_ends_when_asked_is_not_killed(families: list[Family]) -> None:
    families.append(Family(SLEEP))

    ended_in(Killer(), families[0].tree, grace_s=PATIENCE_S)

    assert families[0].process.wait() == -15


def test_who_does_not_end_when_asked_is_killed_after_the_grace(families: list[Family]) -> None:
    families.append(Family(SULK))

    took_s = ended_in(Killer(), families[0].tree, grace_s=0.5)

    assert took_s >= 0.5
    assert families[0].process.wait() == -9


def test_orphans_are_found_by_their_mark_and_children_without_it_by_their_parent(families: list[Family]) -> None:
    families += [Family(DAEMON), Family(PARENT)]
    families[0].process.wait()
    hidden = [psutil.Process(int(family.said)) for family in families]

    assert [member.pid for member in families[0].members()] == [hidden[0].pid]
    assert hidden[1] in families[1].members()
    for family in families:
        ended_in(Killer(), family.tree, grace_s=PATIENCE_S)
    for process in hidden:
        wait_until(lambda process=process: not process.is_running() or process.status() == "zombie", "it ends")


def test_several_end_at_the_same_time(families: list[Family]) -> None:
    families += [Family(SULK) for _ in range(3)]
    killer = Killer()
    done = threading.Semaphore(0)
    began = time.monotonic()
    for family in families:
        killer.end(family.tree, 2.0, done.release)

    for _ in families:
        assert done.acquire(timeout=PATIENCE_S)

    # One after the other would take three graces.
    assert time.monotonic() - began < 5.5


def test_what_multiplies_is_ended_as_a_whole(families: list[Family]) -> None:
    families.append(Family(MULTIPLY))
    wait_until(lambda: len(families[0].members()) > 3, "it multiplies")

    ended_in(Killer(), families[0].tree, grace_s=0.2)

    assert families[0].members() == []


def test_what_was_begun_for_another_task_is_spared(families: list[Family]) -> None:
    families.append(Family(SLEEP, task_id="earlier"))
    mark = families[0].mark
    families.append(Family(SLEEP))
    own = Tree(psutil.Process(families[1].process.pid), mark, "now")
    same = Tree(psutil.Process(families[1].process.pid), mark, "earlier")

    assert living([own])[0] == [own.root]
    assert {member.pid for member in living([same])[0]} == {family.process.pid for family in families}


def test_the_number_of_a_process_that_has_ended_is_nobodys(families: list[Family], tmp_path: Path) -> None:
    families.append(Family("print('up', flush=True)"))
    families[0].process.wait()

    assert families[0].members() == []
