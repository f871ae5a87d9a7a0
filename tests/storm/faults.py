"""What is done to the parts of a world, and how it is undone."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import psutil
from tests.storm.hosts import Direction
from tests.storm.schedule import Strike
from tests.storm.settings import World

log = logging.getLogger(__name__)

#: What is broken for as long as the block lasts. Yields what it was done to, in words; None if there was nobody.
Fault = Callable[[World, Strike], contextlib.AbstractContextManager[str | None]]

#: How far a clock jumps, in seconds, either way: by less than anything lives.
JUMPS_S = (3600, -3600, 86_400, -120)


def of(world: World) -> Mapping[str, tuple[Fault, float]]:
    """The faults that make sense in a world, each with its weight."""
    found: dict[str, tuple[Fault, float]] = {}
    for role in world.roles:
        found[f"kill {role}"] = (_kill(role), 2.0)
        found[f"stop {role}"] = (_stop(role), 1.0)
    for host in world.hosts:
        found[f"unplug {host}"] = (_unplug(host), 2.0)
        found[f"deafen {host}"] = (_drop(host, "in"), 1.0)
        found[f"mute {host}"] = (_drop(host, "out"), 1.0)
        if host != "client":
            found[f"power off {host}"] = (_power_off(host), 1.0)
    for disk in world.disks:
        found[f"fill disk of {disk}"] = (_fill(disk), 1.0)
    for clock in world.clocks:
        found[f"jump clock of {clock}"] = (_jump(clock), 1.0)
    found["kill client"] = (_kill_client, 1.0)
    found["empty the broker"] = (_empty_broker, 2.0)
    return found


def strike(world: World, fault: Fault, planned: Strike, over: threading.Event) -> str | None:
    """Break it, hold it broken, mend it. Returns what it was done to."""
    with fault(world, planned) as victim:
        if victim is not None:
            over.wait(planned.hold_s)
    return victim


def _kill(role: str) -> Fault:
    @contextmanager
    def kill(world: World, planned: Strike) -> Iterator[str | None]:
        victim = world.pick(role, planned.pick)
        if victim is None:
            yield None
            return
        part = world.part_of(victim)
        if part is not None:
            part.kill(away_s=planned.hold_s)
        else:
            victim.kill()
        yield f"{role} {victim.pid}"

    return kill


def _stop(role: str) -> Fault:
    @contextmanager
    def stop(world: World, planned: Strike) -> Iterator[str | None]:
        victim = world.pick(role, planned.pick)
        if victim is None:
            yield None
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.suspend()
        try:
            yield f"{role} {victim.pid}"
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.resume()

    return stop


def _unplug(name: str) -> Fault:
    @contextmanager
    def unplug(world: World, _planned: Strike) -> Iterator[str | None]:
        world.hosts[name].unplug()
        try:
            yield name
        finally:
            world.hosts[name].plug()

    return unplug


def _drop(name: str, direction: Direction) -> Fault:
    @contextmanager
    def drop(world: World, _planned: Strike) -> Iterator[str | None]:
        world.hosts[name].drop(direction)
        try:
            yield name
        finally:
            world.hosts[name].let_through(direction)

    return drop


def _power_off(name: str) -> Fault:
    """All its processes end at once, and no connection is closed."""

    @contextmanager
    def power_off(world: World, planned: Strike) -> Iterator[str | None]:
        host = world.hosts[name]
        host.unplug()
        try:
            pids = host.pids()
            for part in world.parts.values():
                if (process := part.process) is not None and process.pid in pids:
                    part.kill(away_s=planned.hold_s)
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            yield name
        finally:
            host.plug()

    return power_off


def _fill(name: str) -> Fault:
    @contextmanager
    def fill(world: World, _planned: Strike) -> Iterator[str | None]:
        world.disks[name].fill()
        try:
            yield name
        finally:
            world.disks[name].empty()
            world.after_full.get(name, lambda: None)()

    return fill


def _jump(name: str) -> Fault:
    @contextmanager
    def jump(world: World, planned: Strike) -> Iterator[str | None]:
        seconds = JUMPS_S[int(planned.pick * len(JUMPS_S))]
        world.clocks[name].jump(seconds)
        try:
            yield f"{name} by {seconds} s"
        finally:
            world.clocks[name].jump(0)

    return jump


@contextmanager
def _kill_client(world: World, planned: Strike) -> Iterator[str | None]:
    world.visit(planned.number)
    yield "a client"


@contextmanager
def _empty_broker(world: World, planned: Strike) -> Iterator[str | None]:
    world.empty_broker(planned.hold_s)
    yield "all queues"
