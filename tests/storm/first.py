"""The first process of the storm's namespace: starts the storm, reaps what lost its parent, ends with the storm."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    storm = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _frame: os.kill(storm, number))
    while True:
        pid, status = os.wait()
        if pid == storm:
            sys.exit(os.waitstatus_to_exitcode(status) & 0x7F)


if __name__ == "__main__":
    main()
