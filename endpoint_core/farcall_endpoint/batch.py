"""What all providers have in common that drive a batch system by its commands: a block is one job.

A subclass writes the job's script, names the commands and reads what they print; where they run, the files of a block,
what is remembered of it, and what people are told, are here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import threading
import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from .provider import (
    Access,
    BlockSpec,
    BlockState,
    Finding,
    Provider,
    ProviderConfig,
    ProviderError,
    SystemUnavailable,
    setting,
)
from .shell import NOT_FOUND, LocalShell, Ran, Shell
from .sshoptions import SshOptions

#: Of what a block printed to each of its streams, for people.
OUTPUT_TAIL_BYTES = 4096

#: Blocks that have ended whose files are kept.
ENDED_KEPT = 50

#: The agent's own. A job would get them from a batch system that hands on the environment, and keep them in its files.
SECRETS = ("FARCALL_TOKEN", "FARCALL_CLIENT_SECRET", "FUNCX_SDK_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_SECRET")


@dataclasses.dataclass(frozen=True)
class BatchConfig(ProviderConfig):
    """The options that every batch provider has; each adds its own."""

    account: str | None = setting(None, help="What the batch system charges the blocks to.")
    scheduler_options: str = setting(
        "", help="Lines for the head of each job's script as the batch system wants them, such as: #SBATCH --exclusive"
    )
    command_timeout_s: float = setting(
        30.0, key="cmd_timeout", minimum=1, help="Seconds that a command of the batch system may take."
    )
    ssh: SshOptions | None = setting(  # noqa: RUF009 - the value is frozen
        None, help="Where the batch system's commands are, if not here: keys such as host and user; see docs/ssh.md."
    )


@dataclasses.dataclass(frozen=True)
class Job:
    """A block, as the batch system tells of it."""

    state: BlockState
    #: Why it waits, on which nodes it runs, or how it ended; in the system's words.
    said: str = ""


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of one block, as the machine with the batch system's commands and the nodes see them."""

    script: str
    stdout: str
    stderr: str
    #: The script leaves its exit code here.
    exit_code: str
    #: For the job: what people know the block by, and then who asked for it.
    name: str = ""

    @classmethod
    def of(cls, spec: BlockSpec, directory: str) -> Files:
        stem = f"{directory}/blocks/{spec.name}-{uuid.uuid4().hex[:8]}"
        name = f"{spec.name}.{spec.owner}" if spec.owner else spec.name
        return cls(f"{stem}.sh", f"{stem}.out", f"{stem}.err", f"{stem}.exit", name)

    @property
    def all(self) -> tuple[str, ...]:
        return (self.script, self.stdout, self.stderr, self.exit_code)


@dataclasses.dataclass
class _Block:
    """What is remembered of a block that this agent asked for."""

    files: Files | None
    job: Job = Job(BlockState.PENDING)
    is_cancelled: bool = False


class BatchProvider(Provider):
    """Drives a batch system through its commands, which :attr:`shell` runs."""

    #: The commands that it needs, for ``doctor``: what to run, and what it is for.
    commands: ClassVar[Mapping[str, Sequence[str]]] = {}

    #: Variables of the environment that the commands do not see; :data:`SECRETS` is always among them.
    hidden: Sequence[str] = ()

    def __init__(self, config: BatchConfig, shell: Shell | None = None) -> None:
        super().__init__(config)
        self.options = config
        self.shell = shell or _shell(config)
        self.needs_network = not self.shell.gives_access
        self._access: Access | None = None
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}

    # -- what a subclass brings ---------------------------------------------------------------------------------------

    @abstractmethod
    def head(self, spec: BlockSpec, files: Files) -> Sequence[str]:
        """The lines at the head of the job's script that say what is asked for."""

    @abstractmethod
    def submit_command(self, files: Files) -> Sequence[str]:
        """What asks for a job with the script ``files.script``."""

    @abstractmethod
    def block_id(self, printed: str) -> str:
        """The job's id, out of what the command printed. Raises ValueError if there is none."""

    @abstractmethod
    def look(self, block_ids: Sequence[str]) -> Mapping[str, Job]:
        """What the system says of these blocks; nothing of those that it does not know. Uses :meth:`ask`."""

    @abstractmethod
    def cancel_command(self, block_ids: Sequence[str]) -> Sequence[str]:
        """What ends these jobs."""

    @abstractmethod
    def is_refusal(self, ran: Ran) -> bool:
        """Whether a command that failed was answered by the system; if not, the system could not be reached."""

    def preparation(self, spec: BlockSpec) -> Sequence[str]:
        """Shell lines of the job's script before ``worker_init``; none, unless the system needs some."""
        return ()

    # -- what the engine calls ----------------------------------------------------------------------------------------

    def submit(self, spec: BlockSpec) -> str:
        files = Files.of(spec, self._access.directory if self._access else str(spec.run_dir))
        self.shell.write(files.script, self.script(spec, files).encode())
        self._remove_old_files()
        command = self.submit_command(files)
        try:
            printed = self.ask(command)
        except ProviderError:
            # The system has a copy of it, should it have taken the job all the same.
            with contextlib.suppress(SystemUnavailable):
                self.shell.remove([files.script])
            raise
        try:
            block_id = self.block_id(printed)
        except ValueError:
            raise ProviderError(
                f"{command[0]} on {self.shell.place} said nothing that is a job's id: {printed!r}"
            ) from None
        with self._lock:
            self._blocks[block_id] = _Block(files)
        return block_id

    def script(self, spec: BlockSpec, files: Files) -> str:
        """The job's script: the head, then ``worker_init`` and the command in one shell."""
        lines = [
            "#!/bin/bash",
            *self.head(spec, files),
            *_lines(self.options.scheduler_options),
            f"trap {shlex.quote(f'echo $? > {shlex.quote(files.exit_code)}')} EXIT",
            # A shell that this signal ends would leave the exit code of the command before, which was well.
            "trap 'exit 143' TERM",
            *self.preparation(spec),
            spec.worker_init,
            spec.command,
        ]
        return "\n".join(lines) + "\n"

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        with self._lock:
            ended = {key: self._blocks[key].job for key in block_ids if self._has_ended(key)}
        wanted = [key for key in block_ids if key not in ended]
        seen = self.look(wanted) if wanted else {}
        found = {key: seen.get(key) or self._by_exit_code(key) for key in wanted}
        with self._lock:
            for key, job in found.items():
                found[key] = self._remember(key, job)
        return {key: (ended.get(key) or found[key]).state for key in block_ids}

    def cancel(self, block_ids: Sequence[str]) -> None:
        with self._lock:
            wanted = [key for key in block_ids if not self._has_ended(key)]
            # Before they are ended, as others may look meanwhile; and also if nobody can say whether it was done.
            for key in wanted:
                self._blocks.setdefault(key, _Block(None)).is_cancelled = True
        if wanted:
            self.end(wanted)

    def reason(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
            return block.job.said if block else ""

    def output(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
        if block is None:
            return ""
        try:
            printed = [self.shell.tail(path, OUTPUT_TAIL_BYTES).strip() for path in _streams(block.files)]
        except SystemUnavailable as error:
            printed = [f"[what it printed cannot be read: {error}]"]
        said = f"[{block.job.said}]" if block.job.said else ""
        return "\n".join(part for part in (*printed, said) if part)

    def give_access(self, run_dir: Path, ports: Sequence[int]) -> Access | None:
        self._access = self.shell.give_access(run_dir, ports)
        return self._access

    @property
    def access_is_lost(self) -> bool:
        return self.shell.access_is_lost

    def examine(self) -> Iterator[Finding]:
        yield from self.shell.examine()
        for name, command in self.commands.items():
            yield self._examined(name, command)

    def close(self) -> None:
        self.shell.close()

    # -- for subclasses -----------------------------------------------------------------------------------------------

    def ask(self, command: Sequence[str]) -> str:
        """What a command of the system prints. Raises ProviderError with what it said if it fails."""
        ran = self.run(command)
        if ran.exit_code == 0:
            return ran.stdout
        raise self.failure(command, ran)

    def run(self, command: Sequence[str], *, stdin: bytes = b"") -> Ran:
        """Run a command of the system to its end, without what is :attr:`hidden` in its environment."""
        unset = [word for name in (*SECRETS, *self.hidden) for word in ("-u", name)]
        return self.shell.run(["env", *unset, *command], stdin=stdin, timeout_s=self.options.command_timeout_s)

    def failure(self, command: Sequence[str], ran: Ran) -> ProviderError:
        """What to raise for a command of the system that has failed."""
        if ran.exit_code == NOT_FOUND:
            return ProviderError(f"there is no command {command[0]} on {self.shell.place}; is its directory in PATH?")
        sentence = f"{command[0]} on {self.shell.place} failed: {ran.said}"
        return ProviderError(sentence) if self.is_refusal(ran) else SystemUnavailable(sentence)

    def exit_code(self, block_id: str) -> int | None:
        """What the block's script left when it ended; None if it did not get so far, or the block is not ours."""
        with self._lock:
            block = self._blocks.get(block_id)
        if block is None or block.files is None:
            return None
        text = self.shell.tail(block.files.exit_code, OUTPUT_TAIL_BYTES).strip()
        return int(text) if text.isdecimal() else None

    def end(self, block_ids: Sequence[str]) -> None:
        """Have the system end these jobs; those that have ended are no error."""
        self.ask(self.cancel_command(block_ids))

    # -- memory -------------------------------------------------------------------------------------------------------

    def _has_ended(self, block_id: str) -> bool:
        block = self._blocks.get(block_id)
        return block is not None and block.job.state.has_ended

    def _remember(self, block_id: str, job: Job) -> Job:
        if job.state is BlockState.UNKNOWN and block_id not in self._blocks:
            return job
        # One of an earlier agent is new to us.
        block = self._blocks.setdefault(block_id, _Block(None))
        if block.is_cancelled and job.state in (BlockState.FAILED, BlockState.UNKNOWN):
            job = Job(BlockState.CANCELLED, "ended by the endpoint")
        block.job = job
        return job

    def _by_exit_code(self, block_id: str) -> Job:
        """A job that the system does not know any more may have left its exit code."""
        code = self.exit_code(block_id)
        if code is None:
            return Job(BlockState.UNKNOWN, "the batch system does not know it")
        return Job(BlockState.DONE if code == 0 else BlockState.FAILED, f"exit code {code}")

    def _remove_old_files(self) -> None:
        with self._lock:
            ended = [key for key, block in self._blocks.items() if block.job.state.has_ended]
            old = [self._blocks.pop(key) for key in ended[:-ENDED_KEPT]]
        self.shell.remove([path for block in old if block.files for path in block.files.all])

    def _examined(self, name: str, command: Sequence[str]) -> Finding:
        subject = f"{name} on {self.shell.place}"
        remedy = f"make sure that `{' '.join(command)}` works on {self.shell.place}"
        try:
            ran = self.run(command)
        except SystemUnavailable as error:
            return Finding(subject, False, str(error), remedy)
        said = (ran.stdout.strip() or ran.said).splitlines()
        return Finding(subject, ran.exit_code == 0, said[0] if ran.exit_code == 0 and said else ran.said, remedy)


def _shell(config: BatchConfig) -> Shell:
    if config.ssh is None:
        return LocalShell()
    from .ssh import SshShell  # late, as it brings paramiko, which most do without

    return SshShell(config.ssh)


def _streams(files: Files | None) -> tuple[str, ...]:
    return (files.stdout, files.stderr) if files else ()


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]
