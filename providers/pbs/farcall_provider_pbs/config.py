"""What can be set beside ``type: pbs``, and the lines of a job's script that it stands for."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from farcall_endpoint.batch import BatchConfig
from farcall_endpoint.provider import BlockSpec, setting

from .client import Client, Dialect

#: Every PBS takes as many in the name of a job, and a newer one more than anybody needs.
SHORT_NAME_CHARACTERS, LONG_NAME_CHARACTERS = 15, 200


def _dialect(raw: Any) -> str:
    if raw in ("auto", *(dialect.value for dialect in Dialect)):
        return str(raw)
    raise ValueError(f"expected auto, pbspro or torque, got {raw!r}")


@dataclasses.dataclass(frozen=True)
class PbsConfig(BatchConfig):
    """Most are qsub's own options; see its manual."""

    dialect: str = setting(
        "auto",
        parse=_dialect,
        help="How nodes are asked for: pbspro (select statements), torque (nodes=), or auto to find out.",
    )
    queue: str | None = setting(None, help="The queue; left out, the default of PBS.")
    cpus_per_node: int | None = setting(None, minimum=1, help="Cores on each node; left out, PBS decides.")
    mem_per_node: float | None = setting(None, minimum=0.001, help="Memory on each node in GB; left out, PBS decides.")
    gpus_per_node: int | None = setting(None, minimum=1, help="GPUs on each node.")
    mpiprocs: int | None = setting(None, minimum=1, help="How often each node stands in the file of nodes (pbspro).")
    select_options: str = setting("", help="More for each node as select takes it, such as: ngpus=4:system=polaris")
    place: str | None = setting(None, help="How a block's nodes are placed (pbspro), such as: scatter:excl")

    @property
    def wanted_dialect(self) -> Dialect | None:
        """None if it is to be found out."""
        return None if self.dialect == "auto" else Dialect(self.dialect)


def head(config: PbsConfig, client: Client, spec: BlockSpec) -> list[str]:
    """The ``#PBS`` lines of a block's script."""
    options = {
        "-N": job_name(spec, takes_long_names=client.takes_long_names),
        "-S": "/bin/bash",
        # Run again by PBS, a block would take nobody's place.
        "-r": "n",
        # No mail.
        "-m": "n",
        "-A": config.account,
        "-q": config.queue,
    }
    asked = _selected(config, spec) if client.dialect is Dialect.PBSPRO else _nodes(config, spec)
    if spec.walltime_s is not None:
        asked.append(f"walltime={_time(spec.walltime_s)}")
    return [
        *(f"#PBS {option} {shlex.quote(value)}" for option, value in options.items() if value is not None),
        *(f"#PBS -l {resource}" for resource in asked),
    ]


def job_name(spec: BlockSpec, *, takes_long_names: bool) -> str:
    """What people see in the queue. Whose job it is comes last, or is all that there is room for; see :func:`is_of`.

    >>> spec = BlockSpec(command="", name="farcall.mine.3", run_dir=None, owner="0123456789ab")
    >>> job_name(spec, takes_long_names=True), job_name(spec, takes_long_names=False)
    ('farcall.mine.3.0123456789ab', 'fc-0123456789ab')
    """
    most = LONG_NAME_CHARACTERS if takes_long_names else SHORT_NAME_CHARACTERS
    if spec.owner and not takes_long_names:
        return f"fc-{spec.owner}"[:most]
    name = re.sub(r"[^A-Za-z0-9._-]", "-", spec.name)
    # PBS wants a letter first.
    name = name if name[:1].isalpha() else f"b{name}"
    return f"{name[: most - len(spec.owner) - 1]}.{spec.owner}" if spec.owner else name[:most]


def is_of(owner: str, name: str) -> bool:
    """Whether a job of that name was asked for by this owner."""
    return name.endswith(f".{owner}") or name == f"fc-{owner}"


def _selected(config: PbsConfig, spec: BlockSpec) -> list[str]:
    chunk = {
        "ncpus": config.cpus_per_node,
        "mem": None if config.mem_per_node is None else f"{round(config.mem_per_node * 1024)}mb",
        "ngpus": config.gpus_per_node,
        "mpiprocs": config.mpiprocs,
    }
    parts = [f"{name}={value}" for name, value in chunk.items() if value is not None]
    select = ":".join([str(spec.nodes), *parts, *filter(None, [config.select_options.strip(":")])])
    return [f"select={select}", *([f"place={config.place}"] if config.place else [])]


def _nodes(config: PbsConfig, spec: BlockSpec) -> list[str]:
    parts = [
        f"nodes={spec.nodes}",
        *([f"ppn={config.cpus_per_node}"] if config.cpus_per_node else []),
        *([f"gpus={config.gpus_per_node}"] if config.gpus_per_node else []),
        *filter(None, [config.select_options.strip(":")]),
    ]
    # Of the whole job.
    memory = [] if config.mem_per_node is None else [f"mem={round(config.mem_per_node * 1024 * spec.nodes)}mb"]
    return [":".join(parts), *memory]


def _time(seconds: int) -> str:
    """
    >>> _time(90), _time(90000)
    ('00:01:30', '25:00:00')
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"
