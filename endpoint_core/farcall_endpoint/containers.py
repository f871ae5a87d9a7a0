"""The command lines of container runtimes: how a block's managers, and all that they start, are run in an image.

The keys, ``container_type``, ``container_uri`` and ``container_cmd_options``, are Globus Compute's. The image brings
``python3`` with ``farcall-endpoint``; network and user are those of the block, and the directories that a manager reads
and writes are at the same place inside.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any

#: In a command of one's own: what is to run, and the directory that it must see. The second names are Globus Compute's.
COMMAND, RUN_DIR = "{COMMAND}", "{RUN_DIR}"
_SYNONYMS = MappingProxyType({"{EXECUTOR_LAUNCH_CMD}": COMMAND, "{EXECUTOR_RUNDIR}": RUN_DIR})

#: The first process of a container hears no signal for which it has no handler, and a shell hands none on. A signal
#: ends its waiting, too, so it waits again for as long as there is somebody to wait for.
_FIRST = (
    "{command} & child=$!; trap 'kill -TERM $child' TERM INT; "
    "while wait $child; code=$?; kill -0 $child 2>/dev/null; do :; done; exit $code"
)

#: What a batch system has told the block and a manager or a task may need.
_VARIABLES = ("SLURM_JOB_END_TIME", "SLURM_JOB_NODELIST", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")


@dataclasses.dataclass(frozen=True)
class Container:
    """Which runtime and which image, and what else to tell the runtime."""

    kind: str
    uri: str
    options: str = ""

    def around(self, command: str, directories: Sequence[str]) -> str:
        """The line for ``sh`` that runs another such line in the container; it ends as that one does.

        ``directories`` are those that have to be there; the first is the run's.
        """
        if self.kind == "custom":
            return _custom(self.options, command, directories)
        words = _RUNTIMES[self.kind](self.uri, self.options, directories)
        return " ".join([*words, "sh", "-c", shlex.quote(_FIRST.format(command=command))])


def kind_of(raw: Any) -> str | None:
    """For a configuration: the name of a runtime. Raises ValueError for any other."""
    if raw in (None, "none", "None"):
        return None
    if raw not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)}, got {raw!r}")
    return str(raw)


def container_of(kind: str | None, uri: str | None, options: str) -> Container | None:
    """The container that a configuration asks for. Raises ValueError if something is missing or too much."""
    if kind is None:
        if uri is not None or options:
            raise ValueError("container_uri and container_cmd_options need a container_type")
        return None
    if kind == "custom":
        if not any(name in options for name in (COMMAND, "{EXECUTOR_LAUNCH_CMD}")):
            raise ValueError(f"with container_type custom, container_cmd_options must have {COMMAND} in it")
    elif not uri:
        raise ValueError(f"container_type {kind} needs a container_uri, the image")
    return Container(kind, uri or "", options)


def _docker_like(program: str, *fixed: str) -> Callable[[str, str, Sequence[str]], list[str]]:
    def words(uri: str, options: str, directories: Sequence[str]) -> list[str]:
        return [
            program,
            "run",
            "--rm",
            "--network=host",
            *fixed,
            '--workdir="$PWD"',
            *(f"--env={name}" for name in _VARIABLES),
            *(f"--volume={shlex.quote(f'{path}:{path}')}" for path in directories),
            *_more(options),
            shlex.quote(uri),
        ]

    return words


def _apptainer_like(program: str) -> Callable[[str, str, Sequence[str]], list[str]]:
    def words(uri: str, options: str, directories: Sequence[str]) -> list[str]:
        binds = [f"--bind={shlex.quote(f'{path}:{path}')}" for path in directories]
        return [program, "exec", '--pwd="$PWD"', *binds, *_more(options), shlex.quote(uri)]

    return words


def _shifter(uri: str, options: str, directories: Sequence[str]) -> list[str]:
    # It brings the site's file systems into the image by itself, and refuses to mount over them.
    return ["shifter", f"--image={shlex.quote(uri)}", '--workdir="$PWD"', *_more(options)]


def _charliecloud(uri: str, options: str, directories: Sequence[str]) -> list[str]:
    binds = [f"--bind={shlex.quote(f'{path}:{path}')}" for path in directories]
    # Without --write-fake or --write, the image must have the directories that are bound.
    return ["ch-run", *binds, '--cd="$PWD"', *_more(options), shlex.quote(uri), "--"]


def _custom(template: str, command: str, directories: Sequence[str]) -> str:
    for theirs, ours in _SYNONYMS.items():
        template = template.replace(theirs, ours)
    return template.replace(RUN_DIR, shlex.quote(directories[0])).replace(COMMAND, f"sh -c {shlex.quote(command)}")


def _more(options: str) -> list[str]:
    """As they are: they may use what only the node's shell knows, such as ``$SCRATCH``."""
    return [options] if options.strip() else []


_RUNTIMES: dict[str, Callable[[str, str, Sequence[str]], list[str]]] = {
    # The daemon would run it as root, and what it writes would be root's.
    "docker": _docker_like("docker", '--user="$(id -u):$(id -g)"', "--env=HOME=/tmp"),
    "podman": _docker_like("podman"),
    "podman-hpc": _docker_like("podman-hpc"),
    "apptainer": _apptainer_like("apptainer"),
    "singularity": _apptainer_like("singularity"),
    "shifter": _shifter,
    "charliecloud": _charliecloud,
}

KINDS = (*_RUNTIMES, "custom")
