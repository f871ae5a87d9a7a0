"""What must not outlive the agent does not."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "farcall_endpoint.lifeline", str(os.getpid()), "sleep", "600"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux promises to end a process with its parent")
def test_the_command_dies_with_its_parent_however_that_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))

        parent.kill()

        _, alive = psutil.wait_procs([child], timeout=20)
    assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_the_command_has_a_session_of_its_own() -> None:
    program = "import os; print(os.getpid() == os.getsid(0))"
    command = [sys.executable, "-m", "farcall_endpoint.lifeline", str(os.getpid()), sys.executable, "-c", program]

    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"


def test_a_parent_that_is_gone_already_is_said_so() -> None:
    command = [sys.executable, "-m", "farcall_endpoint.lifeline", "999999999", "echo", "here"]

    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == 1
    assert "process 999999999 is gone" in done.stderr
    assert done.stdout == ""
