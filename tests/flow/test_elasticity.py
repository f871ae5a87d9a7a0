"""Blocks follow the load: up to ``max_blocks`` while tasks wait, down to ``min_blocks`` when there are none."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import curves
import pytest
from running import RunningService, running_endpoint

from farcall import Client, Executor

pytestmark = pytest.mark.settings("embedded")

CONFIGURATION = """\
heartbeat_period: 1
engine:
  max_workers_per_node: 1
  job_status_kwargs: {max_idletime: 2, strategy_period: 0.5}
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 3}
"""


def doze(x):
    import time

    time.sleep(0.5)
    return x


def test_blocks_follow_the_load_up_to_the_most_and_down_to_the_least(service: RunningService, tmp_path: Path) -> None:
    client = Client(service_url=service.url, token=service.token)
    with (
        running_endpoint(service, "elastic", CONFIGURATION) as endpoint,
        curves.watched(endpoint.directory) as curve,
        Executor(endpoint.id, client) as executor,
    ):
        futures = [executor.submit(doze, x) for x in range(60)]
        curve.wait_for(lambda moment: moment.blocks == 3)
        assert [future.result(curves.PATIENCE_S) for future in futures] == list(range(60))
        curve.wait_for(lambda moment: moment.blocks == 1 and moment.tasks == 0)
        # And up again.
        again = [executor.submit(doze, x) for x in range(30)]
        curve.wait_for(lambda moment: moment.blocks > 1)
        assert [future.result(curves.PATIENCE_S) for future in again] == list(range(30))

    assert curve.most_blocks == 3
    assert "blocks   3" in curves.text(curve.moments)
    ElementTree.fromstring(curves.svg(curve.moments, title="elastic"))
