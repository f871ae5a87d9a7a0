"""``python -m tests.storm``: a storm in namespaces of its own."""

from __future__ import annotations

import argparse
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.storm.weather import storm

SETTINGS = ("embedded", "larger")
#: So many violations are printed.
SHOWN = 30
INSIDE = "FARCALL_STORM_INSIDE"


def main() -> int:
    options = _options()
    if INSIDE not in os.environ:
        _enter()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("tests.storm").setLevel(logging.INFO)
    logging.getLogger("farcall").setLevel(logging.ERROR)
    folder = Path(tempfile.mkdtemp(prefix="farcall-storm-"))
    folder.chmod(0o755)
    failed = False
    for setting in SETTINGS if options.setting == "both" else (options.setting,):
        _say(f"a storm with seed {options.seed} in the setting {setting}; what it leaves is in {folder}")
        began = time.monotonic()
        made = storm(
            setting,
            options.seed,
            folder / setting,
            tasks=options.tasks,
            strikes=options.faults,
            longest_s=options.longest,
            only=tuple(options.only),
        )
        _say("\n".join(["", *made.report, "", f"with start and end: {time.monotonic() - began:.0f} s"]))
        _say(_told(made.violations, folder / setting / "violations.txt"))
        failed = failed or bool(made.violations)
    if not failed and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if failed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--setting", choices=(*SETTINGS, "both"), default="both")
    parser.add_argument("--tasks", type=int, default=2000, help="so many tasks in each setting")
    parser.add_argument("--faults", type=int, default=0, help="so many faults; left out, each kind once")
    parser.add_argument("--longest", type=float, default=5.0, help="seconds that a fault lasts at most")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="repeats the storm that named it")
    parser.add_argument("--only", action="append", default=[], help="only faults of this name; may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep logs and disks also when all is well")
    return parser.parse_args()


def _enter() -> None:
    """Become the same program in namespaces of its own; `first` reaps there what nobody waits for."""
    own = ["--user", "--map-root-user"] if os.geteuid() else []
    os.environ[INSIDE] = "yes"
    unshare = ["unshare", *own, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    again = [sys.executable, "-m", "tests.storm.first", sys.executable, "-m", "tests.storm", *sys.argv[1:]]
    os.execvp("unshare", [*unshare, *again])


def _told(violations: Sequence[str], path: Path) -> str:
    if not violations:
        return "everything is as it should be"
    path.write_text("\n".join(violations))
    shown = [f"VIOLATION: {sentence}" for sentence in violations[:SHOWN]]
    return "\n".join([*shown, f"{len(violations)} violations; all of them, and logs and disks, are in {path.parent}"])


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
