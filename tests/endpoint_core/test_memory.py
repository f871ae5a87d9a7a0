"""What is said of memory when a worker has died: on made-up nodes, and on this one when it really runs out."""

from __future__ import annotations

import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from calling import PATIENCE_S, bench

from farcall_endpoint.failures import WorkerEnded
from farcall_endpoint.memory import Kills, Memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:          100000 kB\nMemAvailable:     {available} kB\n"


class MadeUpNode:
    def __init__(self, root: Path, *, cgroup: str, counter: str, available: int = 8_000_000) -> None:
        self.root = root
        self._counter = root / counter
        for path, text in (
            ("proc/self/cgroup", cgroup),
            ("proc/vmstat", "nr_free_pages 5\noom_kill 3\n"),
            ("proc/meminfo", MEMINFO.format(available=available)),
            ("proc/77/status", "Name:\tpython3\nVmHWM:\t 2500000 kB\nVmRSS:\t 100 kB\n"),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
        self._counter.parent.mkdir(parents=True, exist_ok=True)
        self.kill(0)

    def kill(self, count: int) -> None:
        """The kernel has ended so many in the control group."""
        self._counter.write_text(f"low 0\noom_kill_disable 0\noom_kill {count}\n")

    def kill_elsewhere(self, count: int) -> None:
        (self.root / "proc/vmstat").write_text(f"oom_kill {3 + count}\n")


VERSION_2 = ("0::/job\n", "sys/fs/cgroup/job/memory.events")
VERSION_2_INSIDE = ("0::/\n", "sys/fs/cgroup/memory.events")
VERSION_1 = ("5:cpu:/x\n4:memory,hugetlb:/job\n0::/\n", "sys/fs/cgroup/memory/job/memory.oom_control")


@pytest.mark.parametrize(("cgroup", "counter"), [VERSION_2, VERSION_2_INSIDE, VERSION_1])
def test_a_kill_in_the_control_group_is_named(tmp_path: Path, cgroup: str, counter: str) -> None:
    node = MadeUpNode(tmp_path, cgroup=cgroup, counter=counter, available=400_000)
    memory = Memory(tmp_path)
    before = memory.kills()
    node.kill(1)

    said = memory.sentence(before, memory.peak(77), -signal.SIGKILL, "")

    assert before == Kills(group=0, node=3)
    assert said == (
        "The kernel ended a process for want of memory in the control group of this block meanwhile; the worker "
        "process itself was seen using up to 2.6 GB; 0.4 GB of the node's 16.4 GB were available then, which is little."
    )


def test_a_kill_elsewhere_on_the_node_is_told_apart_from_none(tmp_path: Path) -> None:
    node = MadeUpNode(tmp_path, cgroup=VERSION_2[0], counter=VERSION_2[1])
    memory = Memory(tmp_path)
    before = memory.kills()

    none = memory.sentence(before, None, -signal.SIGKILL, "")
    node.kill_elsewhere(2)
    elsewhere = memory.sentence(before, None, -signal.SIGKILL, "")

    assert none.startswith("The kernel has ended no process for want of memory meanwhile; 8.2 GB")
    assert elsewhere.startswith("The kernel ended a process for want of memory on this node meanwhile")


@pytest.mark.parametrize("exit_code", [0, 1, -signal.SIGSEGV, None])
def test_other_deaths_are_not_put_down_to_memory(tmp_path: Path, exit_code: int | None) -> None:
    MadeUpNode(tmp_path, cgroup=VERSION_2[0], counter=VERSION_2[1])

    assert Memory(tmp_path).sentence(Kills(0, 3), 10**9, exit_code, "Segmentation fault\n") == ""


def test_a_complaint_in_stderr_makes_it_plausible(tmp_path: Path) -> None:
    MadeUpNode(tmp_path, cgroup=VERSION_2[0], counter=VERSION_2[1])

    said = Memory(tmp_path).sentence(Kills(0, 3), None, -signal.SIGABRT, "what():  std::bad_alloc\n")

    assert "the task's stderr says 'std::bad_alloc'" in said


def test_where_nothing_can_be_seen_nothing_is_said(tmp_path: Path) -> None:
    memory = Memory(tmp_path)

    assert memory.kills() == Kills(None, None)
    assert memory.peak(1) is None
    assert memory.sentence(Kills(), None, -signal.SIGKILL, "") == ""


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A control group in which little memory may be used; making one takes root."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if "memory" in line.split(":", 2)[1].split(","))
        for parent in (Path("/sys/fs/cgroup/memory", path.lstrip("/")), Path("/sys/fs/cgroup/memory")):
            with suppress(OSError):
                group = parent / f"farcall-test-{uuid.uuid4().hex[:8]}"
                group.mkdir()
                (group / "memory.limit_in_bytes").write_text(str(300 * 1024 * 1024))
                with suppress(OSError):
                    (group / "memory.memsw.limit_in_bytes").write_text(str(300 * 1024 * 1024))
                yield group
                with suppress(OSError):
                    group.rmdir()
                return
    pytest.skip("no control group for memory can be made here (that takes root and version 1 of control groups)")


def test_a_task_that_the_kernel_ends_for_want_of_memory_is_reported_so(tmp_path: Path, small_group: Path) -> None:
    def eat() -> None:
        import time

        kept = []
        for _ in range(200):
            kept.append(bytearray(8 * 1024 * 1024))
            # Slowly enough to be seen at it.
            time.sleep(0.1)

    init = f"echo $$ > {small_group}/cgroup.procs"
    with bench(tmp_path, worker_init=init) as node:
        error = node.call(eat, task_id="eater").exception(PATIENCE_S)

    assert isinstance(error, WorkerEnded)
    assert (error.cause, error.task_id, error.exit_code) == ("died", "eater", -signal.SIGKILL)
    assert error.memory.startswith("The kernel ended a process for want of memory in the control group of this block")
    assert "was seen using up to 0.2 GB" in error.memory or "was seen using up to 0.3 GB" in error.memory
