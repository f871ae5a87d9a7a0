"""Blocks as processes of this machine; none outlives the agent, however that ends."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path

from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderConfig, ProviderError, setting

log = logging.getLogger(__name__)

_WARDEN = Path(__file__).with_name("warden.py")
_OUTPUT_TAIL = 4096
_OUTPUTS_KEPT = 50
_ENDED_BLOCKS_KEPT = 50

#: The agent's own. A task is somebody's code, and what it starts can read its environment.
_SECRETS = frozenset(
    {"FARCALL_TOKEN", "FARCALL_CLIENT_SECRET", "FUNCX_SDK_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_SECRET"}
)

#: Write ends of lifelines. A child that is forked without exec must not keep one open after the agent's death.
_write_ends: set[int] = set()


def _drop_lifelines() -> None:
    while _write_ends:
        os.close(_write_ends.pop())


os.register_at_fork(after_in_child=_drop_lifelines)


@dataclasses.dataclass(frozen=True)
class LocalConfig(ProviderConfig):
    """What can be set beside ``type: local``."""

    shell: str = setting("bash", help="The shell that runs worker_init and starts the workers.")


@dataclasses.dataclass
class _Block:
    process: subprocess.Popen[bytes]
    output: Path
    cancelled: bool = False

    def state(self) -> BlockState:
        if self._ended() is None:
            return BlockState.RUNNING
        if self.cancelled:
            return BlockState.CANCELLED
        return BlockState.DONE if self.process.returncode == 0 else BlockState.FAILED

    def _ended(self) -> int | None:
        """The exit code once it has ended. What a killed warden left of its group goes too."""
        if self.process.returncode is None and _has_exited(self.process.pid):
            # Before the warden is reaped: until then nothing else can be given its number.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        return self.process.returncode


class LocalProvider(Provider):
    """Starts each block under a warden, a small process that ends the block when the agent is gone."""

    Config = LocalConfig
    needs_network = False
    #: A look at a process costs nothing.
    poll_period_s = 1

    def __init__(self, config: LocalConfig) -> None:
        super().__init__(config)
        if platform.system() != "Linux":
            raise ProviderError(
                "the local provider runs on Linux only (nothing else lets it end all that a block has started), and "
                f"this machine runs {platform.system() or 'another system'}"
            )
        self._shell = config.shell
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}
        # Nothing is ever written. Every warden reads one end, and only this process has the other one.
        self._read_end, self._write_end = os.pipe()
        _write_ends.add(self._write_end)

    def submit(self, spec: BlockSpec) -> str:
        shell = shutil.which(self._shell)
        if shell is None:
            raise ProviderError(f"the shell {self._shell!r} is not there; set 'shell' of the local provider")
        if spec.nodes != 1:
            raise ProviderError(f"this machine is one node, not {spec.nodes}; set nodes_per_block to 1")
        block_id = f"{spec.name}-{uuid.uuid4().hex[:12]}"
        output = spec.run_dir / "blocks" / f"{block_id}.log"
        with self._lock:
            try:
                output.parent.mkdir(parents=True, exist_ok=True)
                self._forget_old_blocks()
                self._remove_old_outputs(output.parent)
                self._blocks[block_id] = _Block(self._start(shell, spec, output), output)
            except OSError as error:
                raise ProviderError(f"the block cannot be started: {error}") from error
        return block_id

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        with self._lock:
            return {
                block_id: self._blocks[block_id].state() if block_id in self._blocks else BlockState.UNKNOWN
                for block_id in block_ids
            }

    def cancel(self, block_ids: Sequence[str]) -> None:
        with self._lock:
            self._cancel(self._blocks[block_id] for block_id in block_ids if block_id in self._blocks)

    def output(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
            if block is None:
                return ""
            state = block.state()
        printed = _tail(block.output)
        if state is BlockState.RUNNING:
            return printed
        return f"{printed}{'' if not printed or printed.endswith(chr(10)) else chr(10)}{_how_it_ended(block)}"

    def close(self) -> None:
        """End what is left, within seconds: wardens kill what does not end by itself."""
        with self._lock:
            self._cancel(self._blocks.values())
            for block in self._blocks.values():
                _wait_for(block)
            if self._write_end in _write_ends:
                _write_ends.discard(self._write_end)
                os.close(self._write_end)
                os.close(self._read_end)

    def _start(self, shell: str, spec: BlockSpec, output: Path) -> subprocess.Popen[bytes]:
        script = f"{spec.worker_init}\n{spec.command}\n"
        # -I and -S: the warden needs nothing but the standard library and must start fast.
        argv = [sys.executable, "-I", "-S", str(_WARDEN), str(self._read_end), str(spec.walltime_s or 0), shell, script]
        with output.open("ab") as sink:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                pass_fds=(self._read_end,),
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name not in _SECRETS},
            )

    def _cancel(self, blocks: Iterable[_Block]) -> None:
        for block in blocks:
            if block.state() is BlockState.RUNNING and not block.cancelled:
                block.cancelled = True
                block.process.terminate()

    def _forget_old_blocks(self) -> None:
        ended = [block_id for block_id, block in self._blocks.items() if block.state().has_ended]
        for block_id in ended[:-_ENDED_BLOCKS_KEPT]:
            del self._blocks[block_id]

    def _remove_old_outputs(self, folder: Path) -> None:
        living = {block.output for block in self._blocks.values() if block.state() is BlockState.RUNNING}
        outputs = sorted(set(folder.glob("*.log")) - living, key=lambda path: path.stat().st_mtime)
        for path in outputs[:-_OUTPUTS_KEPT]:
            path.unlink(missing_ok=True)


def _has_exited(pid: int) -> bool:
    """Whether it has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _wait_for(block: _Block) -> None:
    try:
        # The warden itself gives the block two seconds after the first signal.
        block.process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        log.warning("block process %s does not end; killing it", block.process.pid)
        block.process.kill()
    block.state()


def _how_it_ended(block: _Block) -> str:
    code = block.process.returncode
    number = -code if code < 0 else code - 128
    if number in signal.valid_signals() and number > 0:
        return f"[killed by {signal.Signals(number).name}]"
    return f"[exit code {code}]"


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as source:
            source.seek(max(0, path.stat().st_size - _OUTPUT_TAIL))
            return source.read().decode(errors="replace")
    except OSError:
        return ""
