"""What can be set beside ``type: slurm``, and the lines of a job's script that it stands for."""

from __future__ import annotations

import dataclasses
import re
import shlex
from typing import Any

from farcall_endpoint.batch import BatchConfig
from farcall_endpoint.provider import BlockSpec, setting


def _gpus(raw: Any) -> str:
    """A number, or a type with a number.

    >>> _gpus(4), _gpus("a100:2")
    ('4', 'a100:2')
    """
    if type(raw) in (int, str) and re.fullmatch(r"([\w.-]+:)?[1-9]\d*", str(raw)):
        return str(raw)
    raise ValueError(f"expected how many GPUs, such as 4 or a100:4, got {raw!r}")


@dataclasses.dataclass(frozen=True)
class SlurmConfig(BatchConfig):
    """Most are options of ``sbatch``, whose manual says more. The names are those of Parsl's SlurmProvider."""

    partition: str | None = setting(None, help="The partition; left out, Slurm's default.")
    qos: str | None = setting(None, help="The quality of service.")
    constraint: str | None = setting(None, help="Features that the nodes must have, such as: gpu&a100")
    reservation: str | None = setting(None, help="The reservation to run in.")
    clusters: str | None = setting(None, help="The cluster to ask, or several with commas, where there are several.")
    exclusive: bool = setting(True, help="Whether a block has its nodes for itself; the account pays for all of them.")
    cores_per_node: int | None = setting(
        None, minimum=1, help="Cores on each node; left out, all of an exclusive node, otherwise what Slurm gives."
    )
    mem_per_node: float | None = setting(
        None, minimum=0, help="Memory on each node in GB, 0 for all of it; left out, the site's default."
    )
    gpus_per_node: str | None = setting(
        None, parse=_gpus, help="GPUs on each node, as a number or with their type, such as: a100:4"
    )
    gres: str | None = setting(None, help="Generic resources of each node, such as: gpu:2")

    @property
    def cluster_names(self) -> list[str]:
        return self.clusters.split(",") if self.clusters else []


def head(config: SlurmConfig, spec: BlockSpec) -> list[str]:
    """The ``#SBATCH`` lines of a block's script; ``scheduler_options`` may correct them."""
    wanted: dict[str, object] = {
        "nodes": spec.nodes,
        # What starts the workers runs once a node, with all that there is.
        "ntasks-per-node": 1,
        "cpus-per-task": config.cores_per_node,
        "mem": None if config.mem_per_node is None else f"{round(config.mem_per_node * 1024)}M",
        "time": None if spec.walltime_s is None else _time(spec.walltime_s),
        "account": config.account,
        "partition": config.partition,
        "qos": config.qos,
        "constraint": config.constraint,
        "reservation": config.reservation,
        "gpus-per-node": config.gpus_per_node,
        "gres": config.gres,
    }
    lines = [f"#SBATCH --{name}={shlex.quote(str(value))}" for name, value in wanted.items() if value is not None]
    return [*lines, "#SBATCH --exclusive"] if config.exclusive else lines


def preparation(config: SlurmConfig) -> list[str]:
    """Shell lines before everything else in a block's script."""
    lines = [
        # Steps see what worker_init has set, also where the job itself was given no environment.
        "export SLURM_EXPORT_ENV=ALL",
        # Since Slurm 22.05 steps do not take it from the job.
        'if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK; fi',
    ]
    # How many workers there are room for: where Slurm does not confine a job, it sees the whole node.
    if config.cores_per_node is not None:
        lines.append(f"export PARSL_CORES={config.cores_per_node}")
    if config.mem_per_node:
        lines.append(f"export PARSL_MEMORY_GB={config.mem_per_node:g}")
    return lines


def _time(seconds: int) -> str:
    """Slurm counts in minutes, and rounds up by itself.

    >>> _time(90), _time(90000)
    ('0-00:01:30', '1-01:00:00')
    """
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:{seconds:02}"
