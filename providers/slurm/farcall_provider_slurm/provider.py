"""Blocks as jobs of Slurm: its commands, and how what they print is read."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from farcall_endpoint.batch import BatchProvider, Files, Job
from farcall_endpoint.provider import BlockSpec, BlockState, Finding, SystemUnavailable
from farcall_endpoint.shell import NOT_FOUND, Ran, Shell

from .config import SlurmConfig, head, preparation
from .environment import hidden_by
from .examining import examined
from .words import Seen, is_silence, job_of

log = logging.getLogger(__name__)

#: The reason comes last: it is a sentence at times, with commas in it.
_QUEUE_FORMAT = "%i|%T|%N|%r"
_ACCOUNTING_FORMAT = "jobid,state,exitcode,nodelist,reason"

#: How long accounting is left alone after it could not be asked: it may take its time to say so.
ACCOUNTING_PAUSE_S = 300.0

#: Of ``scancel``: the job has ended, or there is none. Some versions say so, some do not.
_NOTHING_TO_END = ("Invalid job id", "already completing or completed")


class SlurmProvider(BatchProvider):
    """Asks ``squeue`` for all blocks at once, and accounting, if there is any, how those ended that did not end well.

    Where there are several clusters, a block's id is ``12;name``, as ``sbatch --parsable`` has it.
    """

    Config = SlurmConfig
    launcher = "srun"
    #: Less often than others do: thousands may ask the same controller.
    poll_period_s = 10
    commands: ClassVar[Mapping[str, Sequence[str]]] = MappingProxyType(
        {"sbatch": ("sbatch", "--version"), "squeue": ("squeue", "--version"), "scancel": ("scancel", "--version")}
    )

    def __init__(self, config: SlurmConfig, shell: Shell | None = None) -> None:
        super().__init__(config, shell)
        self._config = config
        self.hidden = hidden_by(config)
        self._accounting_from = 0.0

    def head(self, spec: BlockSpec, files: Files) -> Sequence[str]:
        return head(self._config, spec)

    def preparation(self, spec: BlockSpec) -> Sequence[str]:
        return preparation(self._config)

    def submit_command(self, files: Files) -> Sequence[str]:
        # As options, which win over the script: what we rely on is not for scheduler_options to change.
        return [
            "sbatch",
            "--parsable",
            # Run again by Slurm, a block would take the place of one that the engine has asked for meanwhile.
            "--no-requeue",
            *([f"--clusters={self._config.clusters}"] if self._config.clusters else []),
            f"--job-name={files.name}",
            # In a path, % begins a pattern.
            f"--output={files.stdout.replace('%', '%%')}",
            f"--error={files.stderr.replace('%', '%%')}",
            files.script,
        ]

    def block_id(self, printed: str) -> str:
        # Sites have sbatch print more than that.
        found = re.findall(r"^(\d+(?:;[\w.-]+)?)$", printed, re.MULTILINE)
        if not found:
            raise ValueError(printed)
        return str(found[-1])

    def look(self, block_ids: Sequence[str]) -> Mapping[str, Job]:
        seen: dict[str, Seen] = {}
        for cluster, ids in _by_cluster(block_ids).items():
            seen |= self._queued(cluster, ids)
            # squeue says of none how it ended.
            unclear = [key for key in ids if key not in seen or seen[key].meaning is BlockState.FAILED]
            told = self._accounted(cluster, unclear)
            # Accounting may be late.
            seen |= {key: job for key, job in told.items() if key not in seen or job.meaning.has_ended}
            for key in unclear:
                if key in seen and key not in told and seen[key].word != "CANCELLED":
                    seen[key] = self._shown(cluster, key) or seen[key]
        return {key: job_of(job) for key, job in seen.items()}

    def cancel_command(self, block_ids: Sequence[str]) -> Sequence[str]:
        cluster = _cluster_of(block_ids[0])
        return ["scancel", *_of(cluster), *(_number(key) for key in block_ids)]

    def end(self, block_ids: Sequence[str]) -> None:
        for ids in _by_cluster(block_ids).values():
            command = self.cancel_command(ids)
            ran = self.run(command)
            complaints = [line for line in ran.stderr.splitlines() if line.strip()]
            harmless = [line for line in complaints if any(part in line for part in _NOTHING_TO_END)]
            if ran.exit_code and not (complaints and complaints == harmless):
                raise self.failure(command, ran)

    def is_refusal(self, ran: Ran) -> bool:
        return not is_silence(ran.stderr + ran.stdout)

    def owned(self, owner: str) -> list[str]:
        found = []
        for cluster in self._config.cluster_names or [""]:
            command = ["squeue", "--me", "-h", "-t", "all", *_of(cluster), "-o", "%i|%T|%j"]
            for key, (state, name) in _rows(self.ask(command), 2, cluster).items():
                if name.endswith(f".{owner}") and not Seen(state).meaning.has_ended:
                    found.append(key)
        return found

    def examine(self) -> Iterator[Finding]:
        yield from super().examine()
        yield from examined(self._config, self.shell.place, self.run, self.script(_SMALL, _NO_FILES))

    # -- asking -------------------------------------------------------------------------------------------------------

    def _queued(self, cluster: str, ids: Sequence[str]) -> dict[str, Seen]:
        # Asked for one user, the controller sends the jobs of that one only, however many there are.
        everything = ["squeue", "--me", "-h", "-t", "all", *_of(cluster), "-o", _QUEUE_FORMAT]
        command = [*everything, "-j", ",".join(map(_number, ids))]
        ran = self.run(command)
        if "Invalid job id" in ran.stderr:
            # It says so of a single id that it has forgotten.
            if len(ids) == 1:
                return {}
            command, ran = everything, self.run(everything)
        if ran.exit_code:
            raise self.failure(command, ran)
        rows = _rows(ran.stdout, 3, cluster)
        return {key: Seen(state, nodes, reason) for key, (state, nodes, reason) in rows.items() if key in ids}

    def _accounted(self, cluster: str, ids: Sequence[str]) -> dict[str, Seen]:
        if not ids or time.monotonic() < self._accounting_from:
            return {}
        numbers = ",".join(map(_number, ids))
        try:
            ran = self.run(["sacct", "-X", "-P", "-n", *_of(cluster), "-o", _ACCOUNTING_FORMAT, "-j", numbers])
        except SystemUnavailable as error:
            ran = Ran(1, "", str(error))
        if ran.exit_code == 0:
            rows = _rows(ran.stdout, 4, cluster)
            return {key: Seen(state, nodes, reason, code) for key, (state, code, nodes, reason) in rows.items()}
        if ran.exit_code == NOT_FOUND or "accounting storage is disabled" in ran.stderr:
            self._accounting_from = float("inf")
        else:
            log.warning("Slurm's accounting does not say how blocks ended: %s", ran.said)
            self._accounting_from = time.monotonic() + ACCOUNTING_PAUSE_S
        return {}

    def _shown(self, cluster: str, block_id: str) -> Seen | None:
        """What the controller knows of a job that has just ended."""
        ran = self.run(["scontrol", "-o", *_of(cluster), "show", "job", _number(block_id)])
        told = dict(re.findall(r"(?:^|\s)(JobState|Reason|ExitCode|NodeList)=(\S+)", ran.stdout))
        if ran.exit_code or "JobState" not in told:
            return None
        return Seen(told["JobState"], told.get("NodeList", ""), told.get("Reason", ""), told.get("ExitCode", ""))


#: What ``sbatch --test-only`` is shown.
_SMALL = BlockSpec(command="true", name="doctor", run_dir=Path("/"))
_NO_FILES = Files("/dev/null", "/dev/null", "/dev/null", "/dev/null", "doctor")


def _by_cluster(block_ids: Sequence[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key in block_ids:
        groups.setdefault(_cluster_of(key), []).append(key)
    return groups


def _cluster_of(block_id: str) -> str:
    return block_id.partition(";")[2]


def _number(block_id: str) -> str:
    return block_id.partition(";")[0]


def _of(cluster: str) -> list[str]:
    return [f"--clusters={cluster}"] if cluster else []


def _rows(printed: str, columns: int, cluster: str) -> dict[str, list[str]]:
    """What stands after the id in each line that has so many columns more; other lines are no jobs."""
    suffix = f";{cluster}" if cluster else ""
    found = {}
    for line in printed.splitlines():
        key, *rest = line.split("|", columns)
        if len(rest) == columns:
            found[key.strip() + suffix] = rest
    return found
