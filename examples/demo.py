"""The whole of Farcall on this machine: a service, an endpoint, the tutorial, and an orderly end.

    make demo

Everything lives in a temporary home and on free ports, so it disturbs no Farcall that you may have running.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ENDPOINT_CONFIGURATION = """\
display_name: The demonstration's endpoint
engine:
  max_workers_per_node: 2
  provider: {type: local, init_blocks: 1, min_blocks: 1, max_blocks: 1}
"""


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="farcall-demo-") as home:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FARCALL_")}
        environment |= {"FARCALL_HOME": home, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}

        def step(text: str) -> None:
            print(f"[{time.monotonic() - began:5.1f} s] {text}", flush=True)

        def endpoint(*arguments: str) -> None:
            subprocess.run([BIN / "farcall-endpoint", *arguments], env=environment, check=True)

        step("starting a service")
        service = subprocess.Popen(
            [BIN / "farcall-webservice", "serve", "--port", "0"], env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            assert service.stdout is not None
            ready = service.stdout.readline()
            if not ready:
                return service.wait() or 1
            step(ready.strip())
            endpoint("configure", "demo")
            Path(home, "demo", "config.yaml").write_text(ENDPOINT_CONFIGURATION)
            step("starting an endpoint")
            endpoint("start", "demo")
            try:
                endpoint_id = json.loads(Path(home, "demo", "endpoint.json").read_text())["endpoint_id"]
                step("running the tutorial")
                subprocess.run([sys.executable, HERE / "tutorial.py", endpoint_id], env=environment, check=True)
                print()
                step("the tutorial is done; stopping the endpoint and the service")
            finally:
                endpoint("stop", "demo")
        finally:
            service.terminate()
            service.wait(timeout=30)
        step("everything that was started has ended")
    return 0


if __name__ == "__main__":
    sys.exit(main())
