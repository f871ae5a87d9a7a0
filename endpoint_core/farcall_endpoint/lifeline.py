"""Run a command that must not outlive the process that started it.

``python -m farcall_endpoint.lifeline PID COMMAND...`` becomes COMMAND, in a session of its own (Ctrl-C in the agent's
terminal is the agent's to handle), and the kernel kills it when its parent, which must be PID, dies: even by
``kill -9``, when nobody is left to clean up. Where the kernel has no such promise (it is Linux's own), the command just
runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: From <linux/prctl.h>. The promise survives exec, and counts the *thread* that started us as the parent.
PR_SET_PDEATHSIG = 1


def tie_to_parent(parent_pid: int) -> None:
    """Ask the kernel to kill this process when its parent dies; end at once if that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit(f"lifeline: process {parent_pid} is gone")


def main(arguments: list[str]) -> None:
    parent_pid, *command = arguments
    if os.getpid() != os.getsid(0):
        os.setsid()
    tie_to_parent(int(parent_pid))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
