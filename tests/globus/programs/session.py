"""Runs flows on demand, with one SDK loaded once: each flow in a forked child, so that none sees another's traces.

Reads lines of JSON (`{"flow": ..., "endpoint_id": ..., "timeout_s": ...}`) and answers each with one:
`{"failure": null or text}`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

FOLDER = Path(__file__).parents[1]
sys.path.insert(0, str(FOLDER))
# As if they were the program that was started: functions of an imported module travel by its name alone.
for file in (FOLDER / "flows.py", FOLDER / "lives.py"):
    exec(compile(file.read_text(), file, "exec"), globals())


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What a flow prints goes where it cannot be taken for an answer.
    os.dup2(2, 1)
    for line in sys.stdin:
        answers.write(json.dumps({"failure": failure_of(json.loads(line))}) + "\n")


def failure_of(order: dict) -> str | None:
    """Run a flow in a child; the traceback if it failed."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        with os.fdopen(write_end, "w") as told:
            told.write(run(order))
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end) as told:
        text = told.read()
    _, status = os.waitpid(child, 0)
    return text or (f"the process ended with {status}" if status else None)


def run(order: dict) -> str:
    # The flow's threads do not keep it from being told that it takes too long.
    signal.signal(signal.SIGALRM, too_long)
    signal.alarm(order["timeout_s"])
    try:
        {**FLOWS, **MPI_FLOWS, **LIVES}[order["flow"]](signed_in(), order["endpoint_id"])  # noqa: F821
    except BaseException:
        return traceback.format_exc()
    return ""


def too_long(_number: int, _frame: object) -> None:
    raise TimeoutError("the flow took too long")


if __name__ == "__main__":
    main()
