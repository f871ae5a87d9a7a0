"""Each older version in the table of docs/globus.md, its SDK with its endpoint. `make test-old-clients` runs this."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from island_services import wait_until
from islands import CHECKOUT, Island

PROGRAM = Path(__file__).parent / "programs" / "old_client.py"


@dataclass(frozen=True)
class Version:
    """How one of them is called, and what it has to be told."""

    name: str
    command: str
    #: Of its variables that hold a client's id and secret, what precedes these words.
    prefix: str
    #: The variable that says "local".
    environment: str
    #: Under the home, where its endpoints are.
    folder: str

    @property
    def bin(self) -> Path:
        return CHECKOUT / ".venv-old" / self.name / "bin"

    def settings(self, as_client: dict[str, str]) -> dict[str, str]:
        """The table's last column."""
        return {
            f"{self.prefix}_CLIENT_ID": as_client["GLOBUS_COMPUTE_CLIENT_ID"],
            f"{self.prefix}_CLIENT_SECRET": as_client["GLOBUS_COMPUTE_CLIENT_SECRET"],
            self.environment: "local",
            "GLOBUS_SDK_SERVICE_URL_AUTH": as_client["GLOBUS_SDK_SERVICE_URL_AUTH"],
            "PATH": f"{self.bin}:/usr/local/bin:/usr/bin:/bin",
        }


GLOBUS_ENDPOINT, SDK_ENVIRONMENT = "globus-compute-endpoint", "GLOBUS_SDK_ENVIRONMENT"
VERSIONS = (
    Version("funcx-2.4.0", "funcx-endpoint", "FUNCX_SDK", SDK_ENVIRONMENT, ".globus_compute"),
    Version("globus-compute-2.0.0", GLOBUS_ENDPOINT, "FUNCX_SDK", "FUNCX_SDK_ENVIRONMENT", ".funcx"),
    Version("globus-compute-3.0.0", GLOBUS_ENDPOINT, "GLOBUS_COMPUTE", SDK_ENVIRONMENT, ".globus_compute"),
)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_sdk_and_endpoint_of(isle: Island, as_client: dict[str, str], version: Version) -> None:
    settings = version.settings(as_client)
    name = version.name.replace(".", "-")
    command = version.bin / version.command
    told = isle.home / version.folder / name / "endpoint.json"
    isle.run(command, "configure", name, env=settings)
    # It leaves its terminal by itself.
    isle.run(command, "start", name, env=settings)
    try:
        wait_until(told.exists, f"{name} has registered")
        endpoint_id = json.loads(told.read_text())["endpoint_id"]
        isle.run(version.bin / "python", PROGRAM, endpoint_id, env=settings, timeout_s=220)
    finally:
        isle.run(command, "stop", name, env=settings, check=False)
