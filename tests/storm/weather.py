"""One storm, from the first part's start to the last check."""

from __future__ import annotations

import logging
import random
import shutil
import threading
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tests.storm import checks, faults, losses, marks, report, schedule
from tests.storm.client import WINDOW, StormClient
from tests.storm.marks import Marks
from tests.storm.report import Struck
from tests.storm.settings import SETTINGS, World
from tests.storm.tasks import Task

log = logging.getLogger(__name__)

#: When nothing has come back for so long after the last fault, nothing will.
PATIENCE_S = 240.0
START_S = 60.0
#: Within which work goes on after a fault is over.
RECOVERY_S = 90.0
#: Of a file that is kept to be looked at.
MOST_KEPT_BYTES = 200_000_000


class Storm:
    """Tasks and faults in one world. What was wrong is in ``violations``, a report in ``report``."""

    def __init__(
        self, world: World, seed: int, *, tasks: int, strikes: int, longest_s: float, only: tuple[str, ...] = ()
    ) -> None:
        self._world = world
        self._seed = seed
        self._faults = faults.of(world)
        unknown = set(only) - self._faults.keys()
        if unknown:
            raise ValueError(
                f"no fault here is called {', '.join(sorted(unknown))}; there are {', '.join(self._faults)}"
            )
        weights = {name: weight for name, (_, weight) in self._faults.items() if not only or name in only}
        self._strikes = schedule.strikes(seed, strikes, weights, longest_s=longest_s)
        self._tasks = schedule.tasks(seed, tasks)
        self._count = tasks
        self._struck: list[Struck] = []
        self._over = threading.Event()
        self._released = 0.0
        self._changed = threading.Condition()
        self.violations: list[str] = []
        self.report: list[str] = []

    def blow(self) -> None:
        world = self._world
        client = StormClient(world.url, world.token, world.endpoint_id, markers=str(world.markers))
        world.visit = client.visit
        world.markers.touch()
        client.wait_for_worker(START_S)
        began = time.monotonic()
        threading.Thread(target=client.submit, args=(self._paced(),), daemon=True).start()
        striking = []
        self._release(0.5)
        for planned in self._strikes:
            # The tasks are to last as long as the faults.
            client.wait_until_submitted(self._released - WINDOW, RECOVERY_S)
            thread = threading.Thread(target=self._strike, args=(planned, began, client), daemon=True)
            thread.start()
            striking.append(thread)
            if not planned.overlaps:
                thread.join()
            self._over.wait(planned.pause_s)
        for thread in striking:
            thread.join()
        self._release(self._count)
        log.info("the storm is over after %.0f s; waiting for the rest", time.monotonic() - began)
        if not client.wait_until_submitted(self._count, PATIENCE_S):
            self.violations.append(f"only {len(client.seen)} of {self._count} tasks could be submitted")
        if not client.wait_for_all(PATIENCE_S):
            self.violations.append(f"{len(client.seen) - client.ended} tasks have not come back")
        if not client.ask_for_visitors(PATIENCE_S):
            self.violations.append("tasks have not ended whose client was killed")
        duration_s = time.monotonic() - began
        log.info("%d of %d tasks have come back; looking", client.ended, len(client.seen))
        noted = self._look(client)
        self.report = list(
            report.lines(
                seed=self._seed,
                setting=world.setting,
                duration_s=duration_s,
                seen=client.seen,
                struck=self._struck,
                marks=noted,
            )
        )

    def _look(self, client: StormClient) -> Marks:
        world = self._world
        self.violations += client.second_thoughts.troubles
        self.violations += checks.every_task_has_its_outcome(client)
        noted = marks.read(world.markers)
        self.violations += checks.starts(client.seen, noted)
        self.violations += checks.what_is_cancelled_stays_so(client.seen, noted, self._struck)
        self.violations += losses.unexplained(client.seen, noted, self._struck)
        self.violations += checks.nothing_is_queued(world)
        self.violations += checks.nobody_is_lost(world)
        client.close()
        self.violations += checks.stopped_in_order(world)
        return noted

    def _release(self, slices: float) -> None:
        """Let so many more tasks be submitted, in parts of which there is one for each fault."""
        with self._changed:
            self._released += slices * self._count / (len(self._strikes) + 1)
            self._changed.notify()

    def _paced(self) -> Iterator[Task]:
        """The tasks as they are released, in bursts."""
        chance = random.Random(f"pace {self._seed}")
        given = 0
        # Some bursts for each half of what comes with a fault, lest one waits for the next fault.
        most = max(1, int(self._count / (len(self._strikes) + 1) / 8))
        while tasks := list(islice(self._tasks, chance.randint(1, most))):
            given += len(tasks)
            with self._changed:
                self._changed.wait_for(lambda given=given: self._released >= given)
            yield from tasks
            time.sleep(chance.uniform(0, 0.2))

    def _strike(self, planned: schedule.Strike, began: float, client: StormClient) -> None:
        self._release(0.5)
        self._over.wait(planned.lead_s)
        fault, _ = self._faults[planned.fault]
        at = time.monotonic()
        log.info("%6.1f s: fault %d, %s for %.1f s", at - began, planned.number, planned.fault, planned.hold_s)
        try:
            victim = faults.strike(self._world, fault, planned, self._over)
        # The storm goes on; but this was not the storm that the seed stands for.
        except Exception as error:
            log.exception("fault %d", planned.number)
            self.violations.append(f"fault {planned.number}, {planned.fault}, could not be had: {error}")
            victim = None
        if victim is None:
            log.info("fault %d found nobody to hit", planned.number)
        over_at = time.monotonic()
        self._struck.append(Struck(planned, victim, at, over_at))
        self._release(0.5)
        if not planned.overlaps and not client.wait_for_one_after(over_at, RECOVERY_S):
            self.violations.append(
                f"no task came back within {RECOVERY_S:.0f} s after fault {planned.number}, {planned.fault}"
            )


def storm(
    setting: str, seed: int, folder: Path, *, tasks: int, strikes: int, longest_s: float, only: tuple[str, ...] = ()
) -> Storm:
    """Have a storm in a setting; what it leaves to look at is in ``folder``."""
    with SETTINGS[setting](folder) as world:
        made = Storm(world, seed, tasks=tasks, strikes=strikes, longest_s=longest_s, only=only)
        made.blow()
        if made.violations:
            _keep_evidence(world)
    return made


def _keep_evidence(world: World) -> None:
    """The small disks end with the storm; what is on them is copied to where the logs are."""
    for name, disk in world.disks.items():
        shutil.copytree(
            disk.folder,
            world.folder / "evidence" / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.sock"),
            symlinks=True,
            copy_function=_copied,
        )


def _copied(source: str, target: str) -> None:
    try:
        if Path(source).stat().st_size < MOST_KEPT_BYTES:
            shutil.copy2(source, target)
    except OSError as error:
        log.info("not kept: %s", error)
