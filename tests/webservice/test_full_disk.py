"""The disk of the service is full, and then it is not."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from running import RunningService, running_service
from servers import needs

MEGABYTE = 1024 * 1024
ROOM = 48 * MEGABYTE


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(path)]
    mounted: list[bool] = []

    def missing() -> str | None:
        try:
            mounted.append(subprocess.run(mount, capture_output=True, check=False).returncode == 0)
        except OSError:
            mounted.append(False)
        return None if mounted[-1] else "this account may not mount a disk"

    needs("mount", missing)
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def ask(service: RunningService, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        service.url + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {service.token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_full_disk_is_said_in_words_and_everything_goes_on_when_there_is_room(small_disk: Path) -> None:
    with running_service(small_disk / "home") as service:
        said: list[str] = []
        assert service.process.stderr is not None
        reader = threading.Thread(target=lambda: said.extend(service.process.stderr or ()), daemon=True)
        reader.start()
        _, function = ask(service, "POST", "/v3/functions", {"function_name": "f", "function_code": "4\nst\nx"})
        _, endpoint = ask(
            service, "POST", "/v3/endpoints", {"endpoint_name": "e", "metadata": {"accepts": ["task_batch"]}}
        )
        path = f"/v3/endpoints/{endpoint['endpoint_id']}/submit"
        body = {"tasks": {function["function_uuid"]: ["x" * 100_000] * 20}}

        balloon = small_disk / "balloon"
        fill(balloon)
        kept = 0
        status, refused = ask(service, "POST", path, body)
        while status == 200 and kept < 100:
            kept += 1
            fill(balloon)
            status, refused = ask(service, "POST", path, body)
        health = ask(service, "GET", "/healthz")
        for _ in range(50):
            ask(service, "POST", path, body)

        assert (status, refused["code"]) == (503, "STORAGE_FULL")
        assert "full" in refused["message"]
        assert health[0] == 503

        balloon.unlink()
        deadline = time.monotonic() + 60
        while (ask(service, "POST", path, body)[0], ask(service, "GET", "/healthz")[0]) != (200, 200):
            assert time.monotonic() < deadline, "the service did not find back"
            time.sleep(0.1)
        _, receipt = ask(service, "POST", path, body)
        task_id = receipt["tasks"][function["function_uuid"]][0]
        while ask(service, "GET", f"/v2/tasks/{task_id}")[1]["status"] != "waiting-for-ep":
            assert time.monotonic() < deadline, "nothing is sent any more"
            time.sleep(0.1)
        log = (small_disk / "home/service/service.log").read_text(errors="replace")
        assert "Traceback" not in log
    reader.join(timeout=30)
    assert not [line for line in said if "Traceback" in line or "Logging error" in line]
    assert uuid.UUID(task_id)


def fill(balloon: Path) -> None:
    """Take all the room that there is."""
    with balloon.open("ab", buffering=0) as file:
        try:
            while file.write(b"\0" * 65536):
                pass
        except OSError:
            return
