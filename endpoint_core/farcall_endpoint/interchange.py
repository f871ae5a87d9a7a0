"""``python -m farcall_endpoint.interchange``: Parsl's interchange, with a steady clock."""

from __future__ import annotations

import pickle
import sys

from parsl.executors.high_throughput import interchange
from parsl.utils import setproctitle

from .steady import steady


def main() -> None:
    setproctitle("parsl: HTEX interchange")
    steady(interchange)
    interchange.Interchange(**pickle.load(sys.stdin.buffer)).start()


if __name__ == "__main__":
    main()
