"""Runs each block as a group of processes on the agent's machine: an example of a provider."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderConfig, ProviderError, setting


@dataclasses.dataclass(frozen=True)
class DetachedConfig(ProviderConfig):
    """What an administrator can set beside ``type: detached``."""

    nice: int = setting(0, minimum=0, help="How far blocks give way to other processes, from 0 to 19.")


@dataclasses.dataclass
class _Block:
    process: subprocess.Popen[bytes]
    output: Path
    is_cancelled: bool = False


class DetachedProvider(Provider):
    """A block is a shell in a session of its own, with all that it starts."""

    Config = DetachedConfig
    #: Blocks are on this machine, so nothing needs to be reached from others.
    needs_network = False

    def __init__(self, config: DetachedConfig) -> None:
        super().__init__(config)
        self._nice = config.nice
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}

    def submit(self, spec: BlockSpec) -> str:
        if spec.nodes != 1:
            raise ProviderError(f"one machine is one node, not {spec.nodes}; set nodes_per_block to 1")
        block_id = f"{spec.name}-{uuid.uuid4().hex[:8]}"
        output = spec.run_dir / "blocks" / f"{block_id}.log"
        command = ["nice", "-n", str(self._nice), "bash", "-c", f"{spec.worker_init}\n{spec.command}"]
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("wb") as sink:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, start_new_session=True
                )
        except OSError as error:
            raise ProviderError(f"the block cannot be started: {error}") from error
        with self._lock:
            self._blocks[block_id] = _Block(process, output)
        return block_id

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        with self._lock:
            return {block_id: self._state(block_id) for block_id in block_ids}

    def cancel(self, block_ids: Sequence[str]) -> None:
        with self._lock:
            for block_id in block_ids:
                if self._state(block_id) is BlockState.RUNNING:
                    self._blocks[block_id].is_cancelled = True
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._blocks[block_id].process.pid, signal.SIGTERM)

    def output(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
            code = None if block is None else block.process.poll()
        if block is None:
            return ""
        printed = block.output.read_text(errors="replace")[-4096:]
        return printed if code is None else f"{printed}[exit code {code}]"

    def close(self) -> None:
        with self._lock:
            ids = list(self._blocks)
        self.cancel(ids)

    def _state(self, block_id: str) -> BlockState:
        block = self._blocks.get(block_id)
        if block is None:
            return BlockState.UNKNOWN
        code = block.process.poll()
        if code is None:
            return BlockState.RUNNING
        if block.is_cancelled:
            return BlockState.CANCELLED
        return BlockState.DONE if code == 0 else BlockState.FAILED


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"detached": DetachedProvider}
