"""What tests start ends with them, also when there was no time to stop it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

#: A run that starts a daemon, as `farcall-endpoint start` does, and forgets it.
RUN = """
import leftovers, subprocess
leftovers.begin()
daemon = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=subprocess.DEVNULL)
print(daemon.pid)
leftovers.end()
"""


def test_what_a_run_has_left_is_ended_and_named_and_nothing_else() -> None:
    with subprocess.Popen(["sleep", "600"]) as other:
        done = subprocess.run(
            [sys.executable, "-c", RUN], cwd=Path(__file__).parent, check=True, capture_output=True, text=True
        )
        spared = other.poll() is None
        other.kill()

    pid = int(done.stdout)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert f"{pid} sleep 600" in done.stderr
    assert str(other.pid) not in done.stderr
    assert spared
