"""What an administrator can tell an endpoint, in ``config.yaml`` or a ``config.py`` that builds a :class:`Config`.

The keys are those of a Globus Compute configuration where the notion is the same. In the file the scaling keys stand
beside the provider's own; in here they belong to the engine, which alone decides how many blocks there are.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import socket
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .containers import Container, container_of, kind_of
from .launchers import Launcher
from .mpi import LAUNCHERS
from .provider import setting
from .reading import Place


class Config(dict[str, Any]):
    """What a ``config.py`` assigns to ``config``: the keys of ``config.yaml`` as arguments.

    ``config = Config(display_name="Mine", engine=Engine(max_workers_per_node=2, provider=Provider(type="local")))``
    """


class Engine(dict[str, Any]):
    """The keys under ``engine``, for a ``config.py``."""


class Provider(dict[str, Any]):
    """The keys under ``engine.provider``, for a ``config.py``."""


def seconds_of(raw: Any) -> int:
    """A duration: whole seconds, ``HH:MM:SS`` or ``D-HH:MM:SS``.

    >>> seconds_of("01:30:00"), seconds_of("2-00:00:00"), seconds_of(90)
    (5400, 172800, 90)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)", raw) if isinstance(raw, str) else None
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if type(raw) is int and raw > 0:
        return raw
    raise ValueError(f"expected HH:MM:SS or a number of seconds, got {raw!r}")


def _function_ids(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list | tuple):
        raise ValueError(f"expected a list of function ids, got {raw!r}")
    try:
        return tuple(str(uuid.UUID(str(item))) for item in raw)
    except ValueError:
        raise ValueError(f"expected a list of function ids, such as {uuid.UUID(int=0)}, got {raw!r}") from None


def _cpu_affinity(raw: Any) -> str:
    if raw in ("none", "block", "block-reverse", "alternating") or re.fullmatch(r"list(:\d+([-,]\d+)*)+", str(raw)):
        return str(raw)
    raise ValueError(f"expected none, block, block-reverse, alternating or list:0,1:2,3, got {raw!r}")


def _port_range(raw: Any) -> tuple[int, int]:
    if isinstance(raw, list | tuple) and len(raw) == 2 and all(type(port) is int for port in raw):
        first, last = raw
        if 1024 <= first < last <= 65536:
            return first, last
    raise ValueError(f"expected two ports, the lower first, such as [54000, 55000], got {raw!r}")


def _address(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"expected an address as text, such as 10.0.0.5, got {raw!r}")
    try:
        return str(ipaddress.ip_address(raw))
    except ValueError:
        pass
    try:
        # The engine binds to it and takes numbers only.
        return socket.gethostbyname(raw)
    except OSError as error:
        raise ValueError(
            f"expected the address of this machine, such as 10.0.0.5, or a name that has one, got {raw!r} ({error})"
        ) from None


def _on_block_failures(raw: Any) -> str:
    if raw in ("fail", "wait"):
        return str(raw)
    raise ValueError(f"expected fail or wait, got {raw!r}")


def _mpi_launcher(raw: Any) -> str:
    if raw in LAUNCHERS:
        return str(raw)
    raise ValueError(f"expected one of {', '.join(LAUNCHERS)}, got {raw!r}")


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """How tasks are run, and how many blocks there are to run them."""

    max_workers_per_node: int | None = setting(
        None, section="engine", minimum=1, help="Workers on each node; left out, as many as cores_per_worker allows."
    )
    cores_per_worker: float = setting(
        1.0, section="engine", minimum=0.01, help="Cores each worker counts for; less than 1 shares a core."
    )
    mem_per_worker: float | None = setting(
        None,
        section="engine",
        minimum=0.01,
        help="Memory in GB each worker counts for; left out, memory is not counted.",
    )
    available_accelerators: int | tuple[str, ...] = setting(
        (),
        section="engine",
        help="GPUs of a node, as a number or a list of names; each worker is given one of its own.",
    )
    cpu_affinity: str = setting(
        "none",
        section="engine",
        parse=_cpu_affinity,
        help="Pin workers to cores: none, block, block-reverse, alternating or list:0,1:2,3.",
    )
    mpi_launcher: str | None = setting(
        None,
        section="engine",
        parse=_mpi_launcher,
        help="With type GlobusMPIEngine: what starts the ranks, mpiexec, srun or aprun; left out, mpiexec.",
    )
    max_workers_per_block: int | None = setting(
        None,
        section="engine",
        minimum=1,
        help="With type GlobusMPIEngine: MPI tasks that run in a block at a time; left out, one a node.",
    )
    prefetch_capacity: int = setting(
        0, section="engine", minimum=0, help="Calls a node may hold beyond those its workers are running."
    )
    encrypted: bool = setting(True, section="engine", help="Encrypt what travels between the agent and its workers.")
    address: str | None = setting(
        None,
        section="engine",
        parse=_address,
        help="The address by which nodes reach this machine; left out, it is found out.",
    )
    worker_port_range: tuple[int, int] = setting(
        (54000, 55000), section="engine", parse=_port_range, help="The ports on which nodes reach this machine."
    )
    heartbeat_period_s: int = setting(
        2, section="engine", key="heartbeat_period", minimum=1, help="Seconds between heartbeats of the nodes."
    )
    heartbeat_threshold_s: int = setting(
        30,
        section="engine",
        key="heartbeat_threshold",
        minimum=2,
        help="Seconds of silence after which a node is lost.",
    )
    container_type: str | None = setting(
        None,
        section="engine",
        parse=kind_of,
        help="Run workers in containers: docker, podman, podman-hpc, apptainer, singularity, shifter, charliecloud or "
        "custom.",
    )
    container_uri: str | None = setting(
        None, section="engine", help="The image, as the container's runtime takes it; it brings farcall-endpoint."
    )
    container_cmd_options: str = setting(
        "",
        section="engine",
        help="More for the runtime's command, such as: -v /data:/data; with type custom, the whole command with "
        "{COMMAND} in it.",
    )
    working_dir: str | None = setting(
        None, section="engine", help="Where tasks run; left out, a directory of the endpoint."
    )
    max_idletime_s: float = setting(
        120.0,
        section="job_status_kwargs",
        key="max_idletime",
        minimum=0,
        help="Seconds after which a block without work is ended, down to min_blocks.",
    )
    strategy_period_s: float = setting(
        5.0,
        section="job_status_kwargs",
        key="strategy_period",
        minimum=0.1,
        help="Seconds between two decisions on how many blocks there should be.",
    )
    init_blocks: int = setting(1, section="provider", minimum=0, help="Blocks to begin with.")
    min_blocks: int = setting(0, section="provider", minimum=0, help="Blocks that are kept even without work.")
    max_blocks: int = setting(1, section="provider", minimum=1, help="Blocks at most.")
    nodes_per_block: int = setting(1, section="provider", minimum=1, help="Nodes in each block.")
    parallelism: float = setting(
        1.0,
        section="provider",
        minimum=0,
        help="Workers to ask for per waiting task, from 0 (one block will do) to 1 (one worker a task).",
    )
    walltime_s: int | None = setting(
        None,
        section="provider",
        key="walltime",
        parse=seconds_of,
        help="How long a block may live, as HH:MM:SS; left out, the system decides.",
    )
    worker_init: str = setting(
        "",
        section="provider",
        help="Shell lines run in each block before its workers start, such as: module load python",
    )
    launcher: Launcher | None = setting(  # noqa: RUF009 - the value is frozen
        None,
        section="provider",
        parse=Launcher.read,
        help="What starts the workers on every node of a block: srun, mpiexec or single; left out, the provider's own.",
    )
    max_block_failures: int = setting(
        3,
        section="provider",
        minimum=1,
        help="Blocks that may fail in a row before a worker of theirs has connected; then no more are asked for.",
    )
    on_block_failures: str = setting(
        "fail",
        section="provider",
        parse=_on_block_failures,
        help="What tasks do that wait then: fail with what the last block said, or wait.",
    )

    @property
    def container(self) -> Container | None:
        """What the managers run in. Raises ValueError if something is missing or too much."""
        return container_of(self.container_type, self.container_uri, self.container_cmd_options)

    @property
    def managers_per_block(self) -> int:
        """Where MPI tasks run, one on the block's first node looks after all of them."""
        return 1 if self.mpi_launcher else self.nodes_per_block

    @property
    def workers_per_manager(self) -> int | None:
        """At most; None for as many as there is room for."""
        return self.max_workers_per_block or self.nodes_per_block if self.mpi_launcher else self.max_workers_per_node


@dataclasses.dataclass(frozen=True)
class ProviderSection:
    """Which provider starts the blocks, and its own options as they stand in the file.

    ``plugins.build_provider`` checks the options: only it loads the plugin that knows them.
    """

    type: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    place: Place = dataclasses.field(default=Place("config"), compare=False)


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """One endpoint, as its administrator wants it."""

    name: str
    directory: Path
    display_name: str | None = setting(
        None, section="endpoint", help="What people see in lists; left out, the endpoint's name."
    )
    public: bool = setting(False, section="endpoint", help="Whether others may find this endpoint and use it.")
    allowed_functions: tuple[str, ...] | None = setting(
        None,
        section="endpoint",
        parse=_function_ids,
        help="Ids of the only functions that may run here; left out, all may.",
    )
    heartbeat_period_s: int = setting(
        10, section="endpoint", key="heartbeat_period", minimum=1, help="Seconds between reports to the service."
    )
    task_timeout_s: float | None = setting(
        None,
        section="endpoint",
        key="task_timeout",
        minimum=0.001,
        help="Seconds after which a task is stopped; left out, it may run for ever.",
    )
    max_retries: int = setting(
        2,
        section="engine",
        key="max_retries_on_system_failure",
        minimum=0,
        help="How often a task is run again whose worker or node was lost.",
    )
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    provider: ProviderSection = dataclasses.field(default_factory=lambda: ProviderSection("local"))
    #: The file as it is written, for the service to show to the endpoint's users.
    text: str = dataclasses.field(default="", compare=False, repr=False)
