"""What starts the workers on every node of a block: the command of a batch system or of MPI around our own."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from farcall.errors import ConfigurationError

#: Makes of the command for one node and the number of nodes the command for a block.
Launch: TypeAlias = Callable[[str, int], str]


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher as a configuration names it: ``srun``, or ``{type: srun, overrides: --mpi=none}``."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def read(cls, raw: Any) -> Launcher:
        """Raises ValueError with a sentence for the administrator."""
        if isinstance(raw, str) and raw:
            return cls(raw)
        if isinstance(raw, Mapping) and isinstance(raw.get("type"), str):
            return cls(raw["type"], tuple(sorted((str(key), raw[key]) for key in raw if key != "type")))
        raise ValueError(f"expected the name of a launcher, such as srun or SrunLauncher, got {raw!r}")

    @property
    def is_single(self) -> bool:
        """Whether it starts the workers on the block's first node only."""
        return self.name in ("single", "SimpleLauncher", "SingleNodeLauncher")


def launch(launcher: Launcher) -> Launch:
    """What the launcher does. Raises ConfigurationError if there is none of that name, or it has no such option."""
    from parsl import launchers  # late: it takes half a second, and those who read a configuration need none

    options = dict(launcher.options)
    ours = _OURS.get(launcher.name)
    if ours is not None:
        _refuse_unknown(launcher, options, list(inspect.signature(ours).parameters)[2:])
        return lambda command, nodes: ours(command, nodes, **options)
    kind = getattr(launchers, launcher.name, None)
    if not (isinstance(kind, type) and issubclass(kind, launchers.base.Launcher)):
        theirs = sorted(key for key in vars(launchers) if key.endswith("Launcher"))
        known = ", ".join([*(key for key in _OURS if key.islower()), *theirs])
        raise ConfigurationError(f"there is no launcher called {launcher.name!r}; there are: {known}")
    _refuse_unknown(launcher, options, list(inspect.signature(kind).parameters))
    parsls = kind(**options)
    return lambda command, nodes: str(parsls(command, 1, nodes))


def _refuse_unknown(launcher: Launcher, options: Mapping[str, Any], known: list[str]) -> None:
    unknown = sorted(options.keys() - known)
    if unknown:
        has = f"has only: {', '.join(known)}" if known else "has none"
        raise ConfigurationError(f"the launcher {launcher.name} has no option {unknown[0]!r}; it {has}")


def _single(command: str, nodes: int) -> str:
    return command


def _srun(command: str, nodes: int, overrides: str = "") -> str:
    # Since 22.05 a step does not get the cores of its job's tasks by itself. Bound to one of them, a manager could
    # give its workers no others.
    cores = '${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"}'
    # That a manager ends badly on one node is no reason to end the others.
    options = f"--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 --label"
    return f"srun {options} {cores} {overrides} sh -c {shlex.quote(command)}"


# Of the many kinds of mpiexec all take a file with one host a line, and start one process on each.
_HOSTS = """\
farcall_hosts="$(mktemp "${TMPDIR:-/tmp}/farcall-hosts.XXXXXX")"
if [ -n "$PBS_NODEFILE" ]; then sort -u "$PBS_NODEFILE"; else scontrol show hostnames; fi > "$farcall_hosts"
"""


def _mpiexec(command: str, nodes: int, overrides: str = "", bind_cmd: str = "--bind-to") -> str:
    run = f'mpiexec {bind_cmd} none {overrides} -n {nodes} --hostfile "$farcall_hosts" sh -c {shlex.quote(command)}'
    return f'{{ {_HOSTS}{run}; farcall_code=$?; rm -f "$farcall_hosts"; (exit $farcall_code); }}'


#: By our names and by Parsl's. Parsl's own keep the command in a file of the directory where tasks run.
_OURS: Mapping[str, Callable[..., str]] = {
    "single": _single,
    "srun": _srun,
    "mpiexec": _mpiexec,
    "SimpleLauncher": _single,
    "SingleNodeLauncher": _single,
    "SrunLauncher": _srun,
    "MpiExecLauncher": _mpiexec,
}
