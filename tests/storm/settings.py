"""The two settings of the service, with an agent, on hosts that can be cut off from each other."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from tests.running import BIN, environment_for
from tests.servers import private_postgres, private_rabbitmq
from tests.storm.clocks import Clock, missing_for_clocks
from tests.storm.hosts import Disk, Host, Switch
from tests.storm.parts import Part, ServerPart

PORT = 5000
#: An earlier fault may have left nobody to hit for the moment.
VICTIM_S = 20.0
#: How often a task is run again. The storm kills more than anybody's machines do.
MAX_RETRIES = 8

CONFIGURATION = f"""\
heartbeat_period: 2
engine:
  max_workers_per_node: 2
  max_retries_on_system_failure: {MAX_RETRIES}
  heartbeat_threshold: 8
  job_status_kwargs: {{max_idletime: 300, strategy_period: 1}}
  provider: {{type: local, init_blocks: 1, min_blocks: 1, max_blocks: 2}}
"""


@dataclass
class World:
    """A service and an agent, and everything that can be broken about them."""

    setting: str
    folder: Path
    switch: Switch
    hosts: dict[str, Host] = field(default_factory=dict)
    disks: dict[str, Disk] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    #: What an administrator does about a disk that was full, beside making room.
    after_full: dict[str, Callable[[], object]] = field(default_factory=dict)
    #: In the order in which they were started.
    parts: dict[str, Part] = field(default_factory=dict)
    #: How to find the processes that have a role.
    roles: dict[str, Callable[[], list[psutil.Process]]] = field(default_factory=dict)
    url: str = ""
    token: str = ""
    endpoint_id: str = ""
    #: Has a client submit tasks and be killed.
    visit: Callable[[int], None] = field(init=False)
    empty_broker: Callable[[float], None] = field(init=False)
    #: The number of messages on every queue.
    queued: Callable[[], Mapping[str, int]] = field(init=False)

    @property
    def markers(self) -> Path:
        """Where tasks note their starts; see `marks`."""
        return self.folder / "marks"

    @property
    def agent_directory(self) -> Path:
        return self.disks["agent"].folder / "storm"

    def pick(self, role: str, share: float) -> psutil.Process | None:
        """One of the processes that have a role, as soon as there is one; None if there is none for long."""
        wait_until(self.roles[role], VICTIM_S)
        found = sorted(self.roles[role](), key=lambda process: process.pid)
        return found[int(share * len(found))] if found else None

    def part_of(self, process: psutil.Process) -> Part | None:
        """The part whose own process it is."""
        for part in self.parts.values():
            if (own := part.process) is not None and own.pid == process.pid:
                return part
        return None

    def environment(self, home: Path, clock: str | None = None, **extra: str) -> dict[str, str]:
        """For a program that lives on ``home``, by the clock of that name."""
        environment = environment_for(home, TMPDIR=str(self.folder), **extra)
        if clock is not None and missing_for_clocks() is None:
            if clock not in self.clocks:
                self.clocks[clock] = Clock(self.folder, clock)
            environment |= self.clocks[clock].environment
        return environment

    def start(self, part: Part, role: str | None = None) -> None:
        self.parts[part.name] = part
        if role is not None:
            self.roles[role] = lambda: [
                process for each in self.parts.values() if each.name.startswith(role) and (process := each.process)
            ]
        part.start()

    def children(self, part: str, mark: str = "") -> list[psutil.Process]:
        """The processes that a part has started, and these in turn, whose command line has the mark."""
        process = self.parts[part].process
        if process is None:
            return []
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in process.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if mark in " ".join(child.cmdline()) and child.status() != psutil.STATUS_ZOMBIE:
                        found.append(child)
        return found


@contextmanager
def embedded(folder: Path) -> Iterator[World]:
    """`serve` on one host, the agent on another, whoever submits on a third."""
    world = _empty_world("embedded", folder, ("client", "service", "agent"))
    home = world.disks["service"].folder / "home"
    home.mkdir()
    host = world.hosts["service"]
    command = [*host.prefix, BIN / "farcall-webservice", "serve", "--host", host.address, "--port", str(PORT)]
    environment = world.environment(home, "service")
    with _stopped_at_the_end(world):
        world.start(
            Part("service", command, environment=environment, log=folder / "service.log", ready="ready at"), "service"
        )
        world.roles["valkey"] = lambda: world.children("service", "valkey-server")
        world.url = f"http://{host.address}:{PORT}"
        world.token = json.loads((home / "service" / "credentials.json").read_text())["token"]
        valkey = home / "service" / "valkey"

        def empty_broker(_away_s: float) -> None:
            for process in world.roles["valkey"]():
                shutil.rmtree(valkey / "appendonlydir", ignore_errors=True)
                process.kill()

        world.empty_broker = empty_broker
        world.queued = lambda: _queued_in_valkey(json.loads((valkey / "broker.json").read_text()), host.address)
        _start_agent(world)
        yield world


@contextmanager
def larger(folder: Path) -> Iterator[World]:
    """`web` and two `collect` on one host, and the database, the broker, the agent and the client on others."""
    world = _empty_world("larger", folder, ("client", "service", "agent", "database", "broker"))
    database, broker, host = world.hosts["database"], world.hosts["broker"], world.hosts["service"]
    user = pwd.getpwnam("postgres")
    own = world.disks["database"].folder / "postgres"
    own.mkdir()
    os.chown(own, user.pw_uid, user.pw_gid)
    as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(
            private_postgres(own, prefix=[*database.prefix, *as_user], host=database.address, start=False)
        )
        rabbitmq = stack.enter_context(
            private_rabbitmq(
                world.disks["broker"].folder / "rabbitmq", prefix=broker.prefix, host=broker.address, start=False
            )
        )
        # Not where the disk may be full.
        postgres.log, rabbitmq.log = folder / "postgres.log", folder / "rabbitmq.log"
        stack.enter_context(_stopped_at_the_end(world))
        world.start(ServerPart("postmaster", postgres), "postmaster")
        world.start(ServerPart("rabbitmq", rabbitmq), "rabbitmq")
        world.roles["database connection"] = lambda: world.children("postmaster", "postgres: farcall")
        home = world.disks["service"].folder / "home"
        home.mkdir()
        world.url = f"http://{host.address}:{PORT}"
        settings = {
            "FARCALL_DATABASE_URL": postgres.database(),
            "FARCALL_BROKER_URL": rabbitmq.url,
            "FARCALL_PORT": str(PORT),
            "FARCALL_HOST": host.address,
        }
        _prepare_larger(world, home, settings)
        for name in ("web", "collector-1", "collector-2"):
            words = ["web", "--workers", "2"] if name == "web" else ["collect"]
            command = [*host.prefix, BIN / "farcall-webservice", *words]
            environment = world.environment(home, "service", **settings)
            part = Part(name, command, environment=environment, log=folder / f"{name}.log", ready="Farcall is ready")
            world.start(part, name.partition("-")[0])
        world.roles["web worker"] = lambda: world.children("web")

        def empty_broker(away_s: float) -> None:
            part = world.parts["rabbitmq"]
            part.before_start = lambda: shutil.rmtree(
                world.disks["broker"].folder / "rabbitmq" / "mnesia", ignore_errors=True
            )
            part.kill(away_s=away_s)

        def queued() -> Mapping[str, int]:
            lines = rabbitmq.ctl("--silent", "list_queues", "name", "messages").splitlines()
            return {name: int(count) for name, _, count in (line.partition("\t") for line in lines)}

        def restart_vhost() -> None:
            # It stays down where RabbitMQ could not write; where it is up, or the server is not, this changes nothing.
            with contextlib.suppress(pytest.fail.Exception):
                rabbitmq.ctl("restart_vhost")

        world.after_full["broker"] = restart_vhost
        world.empty_broker = empty_broker
        world.queued = queued
        _start_agent(world)
        yield world


SETTINGS: Mapping[str, Callable[[Path], contextlib.AbstractContextManager[World]]] = {
    "embedded": embedded,
    "larger": larger,
}
#: Megabytes. What is not used takes no room.
DISKS = {"service": 8000, "agent": 2000, "database": 8000, "broker": 4000}


def _empty_world(setting: str, folder: Path, hosts: Sequence[str]) -> World:
    folder.mkdir(parents=True)
    folder.chmod(0o755)
    switch = Switch()
    world = World(setting, folder, switch)
    for name in hosts:
        world.hosts[name] = switch.host(name, here=name == "client")
        if name in DISKS:
            world.disks[name] = Disk(folder / "disks" / name, DISKS[name])
    return world


def _prepare_larger(world: World, home: Path, settings: Mapping[str, str]) -> None:
    environment = world.environment(home, **settings)

    def command(*words: str) -> str:
        done = subprocess.run(
            [*world.hosts["service"].prefix, BIN / "farcall-webservice", *words],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    command("db", "upgrade")
    command("user", "add", "owner")
    world.token = command("token", "create", "owner")


def _start_agent(world: World) -> None:
    home = world.disks["agent"].folder
    login = {"FARCALL_SERVICE_URL": world.url, "FARCALL_TOKEN": world.token}
    environment = world.environment(home, "agent", **login)
    program = [*world.hosts["agent"].prefix, BIN / "farcall-endpoint"]
    subprocess.run([*program, "configure", "storm"], env=environment, check=True, capture_output=True, text=True)
    (world.agent_directory / "config.yaml").write_text(CONFIGURATION)
    part = Part(
        "agent",
        [*program, "start", "storm", "--foreground"],
        environment=environment,
        log=world.folder / "agent.log",
        ready="ready",
    )
    world.start(part, "agent")
    world.endpoint_id = json.loads((world.agent_directory / "endpoint.json").read_text())["endpoint_id"]
    world.roles |= {
        "interchange": lambda: world.children("agent", "interchange"),
        "manager": lambda: world.children("agent", "farcall_endpoint.pool"),
        "worker": lambda: world.children("agent", "spawn_main"),
    }


@contextmanager
def _stopped_at_the_end(world: World) -> Iterator[None]:
    try:
        yield
    finally:
        for part in reversed(world.parts.values()):
            part.stop()


def _queued_in_valkey(kept: Mapping[str, object], host: str) -> Mapping[str, int]:
    import redis

    client = redis.Redis(host, int(str(kept["port"])), password=str(kept["password"]), decode_responses=True)
    with contextlib.closing(client):
        counts = {}
        for key in client.scan_iter():
            kind = client.type(key)
            if kind == "list":
                counts[key] = client.llen(key)
            elif kind == "hash" and key.startswith("unacked"):
                counts[key] = client.hlen(key)
        return counts


def wait_until(condition: Callable[[], object], timeout_s: float, period_s: float = 0.5) -> bool:
    """Look again and again until it is so. Returns whether it came to pass."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(period_s)
    return True
