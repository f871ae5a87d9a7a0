"""A service with one endpoint, for as long as a part runs; and what that endpoint computes."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from end_to_end import BIN, SETTINGS
from running import RunningService

from farcall import Client

CONFIGURATION = """\
heartbeat_period: 10
engine:
  max_workers_per_node: 2
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


def twice(x):
    return 2 * x


@dataclass
class Place:
    """A service with an endpoint, which is stopped at first."""

    service: RunningService
    client: Client
    roots: dict[str, list[int]]
    endpoint_id: str
    directory: Path

    def endpoint(self, *arguments: str) -> None:
        command = [BIN / "farcall-endpoint", *arguments]
        subprocess.run(command, env=self.service.environment, check=True, capture_output=True)

    def agent_pid(self) -> int:
        return int(json.loads((self.directory / "agent.pid").read_text())["pid"])


@contextmanager
def place(setting: str) -> Iterator[Place]:
    with (
        tempfile.TemporaryDirectory(prefix="farcall-load-") as home,
        SETTINGS[setting](Path(home)) as (service, roots),
    ):
        made = Place(service, Client(service_url=service.url, token=service.token), roots, "", Path(home, "real"))
        made.endpoint("configure", "real")
        (made.directory / "config.yaml").write_text(CONFIGURATION)
        made.endpoint("start", "real")
        made.endpoint_id = json.loads((made.directory / "endpoint.json").read_text())["endpoint_id"]
        made.endpoint("stop", "real")
        try:
            yield made
        finally:
            made.endpoint("stop", "real")


def disk_mb(home: Path) -> str:
    sizes = {path.name: path.stat().st_size / 1e6 for path in home.glob("**/*.sqlite*") if path.exists()}
    return ", ".join(f"{name} {size:.0f} MB" for name, size in sorted(sizes.items()) if size >= 1)
