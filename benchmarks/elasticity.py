"""How blocks follow the load, drawn: an endpoint of its own gets waves of tasks, and what it does is written down.

python benchmarks/elasticity.py                       # as text
python benchmarks/elasticity.py --svg elasticity.svg  # and as a picture
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import wait
from pathlib import Path

# What starts services and looks at endpoints for the tests does it here too.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import curves
from running import running_endpoint, running_service

from farcall import Client, Executor

CONFIGURATION = """\
heartbeat_period: 1
engine:
  max_workers_per_node: 1
  job_status_kwargs: {{max_idletime: {idle}, strategy_period: 0.5}}
  provider: {{type: local, init_blocks: 0, min_blocks: 0, max_blocks: {blocks}}}
"""


def doze(seconds):
    import time

    time.sleep(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--blocks", type=int, default=4, help="max_blocks")
    parser.add_argument("--idle", type=float, default=3, help="max_idletime")
    parser.add_argument("--waves", type=int, nargs="+", default=[40, 4], help="tasks of half a second each, at a time")
    parser.add_argument("--svg", type=Path, help="where to put the picture")
    options = parser.parse_args()
    configuration = CONFIGURATION.format(idle=options.idle, blocks=options.blocks)
    with (
        tempfile.TemporaryDirectory() as home,
        running_service(Path(home)) as service,
        running_endpoint(service, "elastic", configuration) as endpoint,
        curves.watched(endpoint.directory) as curve,
        Executor(endpoint.id, Client(service_url=service.url, token=service.token)) as executor,
    ):
        for tasks in options.waves:
            wait([executor.submit(doze, 0.5) for _ in range(tasks)])
            curve.wait_for(lambda moment: moment.blocks == 0 and moment.tasks == 0)
            # So that the pause can be seen.
            time.sleep(2)
    sys.stdout.write(curves.text(curve.moments))
    if options.svg is not None:
        options.svg.write_text(curves.svg(curve.moments, title=f"at most {options.blocks} blocks"))


if __name__ == "__main__":
    main()
