"""What the service bears: a million tasks that wait, hundreds of executors at once, a thousand endpoints.

    python benchmarks/load --part queue --setting embedded larger        # minutes
    python benchmarks/load --part executors endpoints --setting embedded

`queue` submits `--tasks` tasks to an endpoint that is stopped, starts it, and waits for all results, while another
process asks the routes that lists and displays use. `executors` lets 300 executors of 3 processes work at once.
`endpoints` lets 1,000 endpoints that are only simulated take tasks and send heartbeats beside a real one.

Figures depend on the machine: what counts is how they change within one run, and CPU time more than time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

# Beside this folder is what the benchmarks share; what starts services and servers for the tests starts them here too.
sys.path.insert(1, str(Path(__file__).parents[1]))
sys.path.insert(2, str(Path(__file__).parents[2] / "tests"))
from crowded import endpoints, executors
from end_to_end import SETTINGS
from waiting import queue

PARTS: dict[str, Callable[[str, argparse.Namespace], bool]] = {
    "queue": queue,
    "executors": executors,
    "endpoints": endpoints,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--setting", nargs="+", choices=SETTINGS, default=["embedded"], help="default: embedded")
    parser.add_argument("--tasks", type=int, default=1_000_000, help="of `queue` (default 1,000,000)")
    parser.add_argument("--wait", type=float, default=15, help="seconds in which nothing else happens (default 15)")
    parser.add_argument("--executors", type=int, default=300, help="of `executors` (default 300)")
    parser.add_argument("--endpoints", type=int, default=1000, help="of `endpoints` (default 1,000)")
    parser.add_argument("--heartbeat-period", type=float, default=10, help="of `endpoints`, in seconds (default 10)")
    parser.add_argument("--tasks-each", type=int, default=10, help="of each executor and endpoint (default 10)")
    parser.add_argument("--trips", type=int, default=200, help="of a lone task, of `endpoints` (default 200)")
    options = parser.parse_args()
    os.environ.pop("FARCALL_SERVICE_URL", None)
    good = True
    for setting in options.setting:
        for part in options.part:
            print(f"-- {part}, {setting}", flush=True)
            good = PARTS[part](setting, options) and good
    print("within the limits" if good else "NOT within the limits")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
