"""Shows that a node can do what a worker needs: ``-m farcall_endpoint.probe TOKEN PORT ADDRESSES [PROGRAM ...]``.

It imports what a manager imports, connects to whoever asked, and says which versions it has and which of the programs
are there. What keeps it from that is printed, and is then in the block's output.
"""

from __future__ import annotations

import json
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import metadata

#: Of one attempt to connect.
CONNECT_TIMEOUT_S = 10.0

#: What has to be the same, or nearly so, on the agent's side.
DISTRIBUTIONS = ("farcall", "farcall-endpoint", "parsl", "dill")


def facts(programs: Sequence[str] = ()) -> dict[str, object]:
    """``hostname``, ``python`` (its version), ``versions`` of our distributions, and ``missing``, of the programs."""
    return {
        "hostname": platform.node(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
        "missing": [name for name in programs if shutil.which(name) is None],
    }


def main(token: str, port: int, addresses: Sequence[str], programs: Sequence[str]) -> int:
    # What a manager cannot do without. Where it fails, Python's own words are the best that can be said.
    from . import pool, worker  # noqa: F401

    failures = []
    for address in addresses:
        try:
            with socket.create_connection((address, port), timeout=CONNECT_TIMEOUT_S) as connection:
                told = {"token": token, "address": address, **facts(programs)}
                connection.sendall(json.dumps(told).encode() + b"\n")
                # Closed by the other side once it has been read.
                connection.recv(1)
                return 0
        except OSError as error:
            failures.append(f"{address} port {port}: {error}")
    print(f"{platform.node()} cannot connect to the agent: {'; '.join(failures)}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4:]))
