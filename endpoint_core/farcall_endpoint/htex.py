"""Parsl's HighThroughputExecutor without the rest of Parsl: what has to be different in it for an endpoint."""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import zmq
from parsl.executors import HighThroughputExecutor, status_handling
from parsl.executors.high_throughput.errors import CommandClientTimeoutError
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD
from parsl.executors.high_throughput.zmq_pipes import CommandClient
from parsl.jobs import strategy

from farcall.errors import ConfigurationError, FarcallError

from .blocks import Blocks
from .breaker import Breaker
from .config import EngineConfig
from .mpi import LAUNCHERS
from .nodeline import NodeLine
from .provider import Access
from .quietlogs import QuietLogs
from .sightings import Watcher
from .steady import steady

log = logging.getLogger(__name__)

steady(status_handling, strategy)

#: Parsl's threads and its interchange look up this often whether they are to end; it delays nothing else.
POLL_PERIOD_MS = 200

#: A command that the interchange has not answered by then will not be answered: it is dead or stuck.
COMMAND_TIMEOUT_S = 10

#: Ended blocks that are remembered.
ENDED_BLOCKS_KEPT = 50


#: Found through PATH, so that worker_init can choose another environment. Without -P, a file that a task leaves in the
#: directory where it runs could stand in for a module.
_POOL_COMMAND = f"python3 -P -m {__package__}.pool"
_LAUNCH_COMMAND = DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", _POOL_COMMAND, 1)


class InterchangeFailed(FarcallError, RuntimeError):
    """It has died, or says nothing, before it could do anything."""


class Executor(HighThroughputExecutor):  # type: ignore[misc]  # Parsl brings no types
    """One life of the engine: an interchange, and the blocks whose managers connect to it.

    It is started, used for scaling and stopped by one thread, which must live as long: the interchange dies with it.
    """

    def __init__(
        self,
        config: EngineConfig,
        blocks: Blocks,
        breaker: Breaker,
        *,
        address: str | None,
        run_dir: Path,
        watcher: Watcher | None = None,
    ) -> None:
        accelerators = config.available_accelerators
        mpi = config.mpi_launcher is not None
        super().__init__(
            label="htex",
            provider=blocks,
            # Without an address Parsl asks a site on the internet what ours is.
            address=address or "127.0.0.1",
            worker_port_range=config.worker_port_range,
            # MPI tasks run beside their worker, which only waits for them.
            cores_per_worker=1e-9 if mpi else config.cores_per_worker,
            mem_per_worker=config.mem_per_worker,
            max_workers_per_node=config.workers_per_manager,
            cpu_affinity=config.cpu_affinity,
            available_accelerators=accelerators if isinstance(accelerators, int) else list(accelerators),
            prefetch_capacity=config.prefetch_capacity,
            heartbeat_period=config.heartbeat_period_s,
            heartbeat_threshold=config.heartbeat_threshold_s,
            poll_period=POLL_PERIOD_MS,
            interchange_launch_cmd=_interchange_command(),
            block_error_handler=False,
            encrypted=config.encrypted,
        )
        if address is None:
            self.address = None
            self.all_addresses = own_addresses()
        self.enable_mpi_mode = mpi
        self.mpi_launcher = config.mpi_launcher or LAUNCHERS[0]
        self.blocks = blocks
        self.breaker = breaker
        self.demand: Callable[[], int] = lambda: 0
        self.run_dir = str(run_dir)
        self.run_id = str(uuid.uuid4())
        self.log_config = QuietLogs()
        self._walltime_s = config.walltime_s
        self._watcher = watcher
        self._line: NodeLine | None = None
        self._observed_workers: int | None = None

    def start(self) -> None:
        find_our_python()
        Path(self.logdir).mkdir(parents=True, exist_ok=True)
        try:
            super().start()
        except BaseException:
            # Part of it may be there, such as an interchange that has no way to its nodes.
            self.shutdown(timeout=2.0)
            raise
        # Parsl waits for ever for an interchange that has died, and so would we.
        self.command_client.run = partial(_answer, self.command_client, self.command_client.run)
        for pipe in (self.outgoing_q.zmq_socket, self.command_client.zmq_socket):
            pipe.setsockopt(zmq.LINGER, 0)
            pipe.setsockopt(zmq.SNDTIMEO, 1000 * COMMAND_TIMEOUT_S)

    def _start_local_interchange_process(self) -> None:
        """Parsl's own, which would wait two minutes for an interchange that has died while it began."""
        later, self.command_client.run = self.command_client.run, self._first_answer
        try:
            super()._start_local_interchange_process()
        finally:
            self.command_client.run = later

    def _first_answer(self, message: Any, timeout_s: float) -> Any:
        pipe = self.command_client.zmq_socket
        deadline = time.monotonic() + timeout_s
        # Without anybody at the other end the question cannot even be asked.
        self._wait_for_interchange(pipe, zmq.POLLOUT, deadline)
        pipe.send_pyobj(message)
        self._wait_for_interchange(pipe, zmq.POLLIN, deadline)
        return pipe.recv_pyobj()

    def _wait_for_interchange(self, pipe: zmq.Socket[bytes], direction: int, deadline: float) -> None:
        while not pipe.poll(POLL_PERIOD_MS, direction):
            code = self.interchange_proc.poll()
            if code is not None or time.monotonic() > deadline:
                why = "it says nothing" if code is None else f"it ended with exit code {code}"
                raise InterchangeFailed(f"Parsl's interchange did not start: {why}")

    def initialize_scaling(self) -> None:
        # Now there are certificates, and no block yet.
        self._line = NodeLine(
            self._watcher,
            address=self.address,
            ports=self.worker_port_range,
            cert_dir=self.cert_dir,
            silence_s=self.heartbeat_threshold,
            is_awaited=self.tasks.__contains__,
        )
        access = self.blocks.give_access([self.worker_port, self._line.port])
        line_port = access.ports[self._line.port] if access else self._line.port
        own_options = f" --line-port={line_port} --walltime={self._walltime_s}"
        command = _LAUNCH_COMMAND.replace(_POOL_COMMAND, _POOL_COMMAND + own_options, 1)
        self.launch_cmd = self._through(access, command) if access else command
        super().initialize_scaling()

    def _through(self, access: Access, command: str) -> str:
        """The launch command for nodes that neither reach our addresses nor see our files."""
        if self.cert_dir is None:
            raise ConfigurationError("where workers connect as their provider says, engine.encrypted must be true")
        if not self.blocks.needs_network and self.address != "127.0.0.1":
            raise ConfigurationError(
                f"workers connect through a login node, which brings them to 127.0.0.1 here and not to {self.address}; "
                "leave engine.address out"
            )

        def over_there(path: str) -> str:
            return f"{access.directory}/{os.path.relpath(path, self.run_dir)}"

        values = {
            "addresses": access.address,
            "worker_port": str(access.ports[self.worker_port]),
            "cert_dir": over_there(self.cert_dir),
            "logdir": over_there(self.logdir),
            "logconf": over_there(self.logconf_path),
        }
        for name, value in values.items():
            # What is not filled in here is filled in by Parsl.
            command = command.replace(f"{{{name}}}", shlex.quote(value).replace("{", "{{").replace("}", "}}"))
        return command

    @property
    def access_is_lost(self) -> bool:
        """Whether nodes can reach us no more; what was on its way to or from them may be lost, too."""
        return self.blocks.access_is_lost

    def shutdown(self, timeout: float = 10.0) -> None:
        try:
            super().shutdown(timeout)
        finally:
            if self._line is not None:
                self._line.close()

    def cancel_calls(self, call_ids: Collection[int]) -> None:
        """Have calls ended on whatever node they are, or come to; each comes back as WorkerEnded, or with its result.

        A call's id is its future's ``parsl_executor_task_id``. Returns at once.
        """
        if self._line is not None:
            self._line.cancel(call_ids)

    @property
    def takes_results(self) -> bool:
        """Whether Parsl's thread for them lives: it ends for good at the first message it does not understand."""
        return self._result_queue_thread is not None and self._result_queue_thread.is_alive()

    def outstanding(self) -> int:
        """All that waits for a worker, also what has not been handed to Parsl yet: scaling must see it."""
        return self.demand()

    @property
    def workers_per_node(self) -> int | float:
        """As many as a node turned out to have; until one has connected, what its configuration lets us expect."""
        if self._observed_workers is not None:
            return self._observed_workers
        if self.max_workers_per_node != float("inf"):
            return float(self._workers_per_node)
        return max(1, int((os.cpu_count() or 1) / self.cores_per_worker))

    def managers(self) -> list[dict[str, Any]]:
        """Who is connected. Raises Parsl's CommandClientTimeoutError if the interchange does not answer."""
        managers: list[dict[str, Any]] = self.connected_managers()
        counts = [manager["worker_count"] for manager in managers]
        if counts:
            self._observed_workers = max(*counts, 1)
        return managers

    def scale_in(self, blocks: int, max_idletime: float | None = None) -> list[str]:
        # Asked for none, Parsl ends all that are idle, and takes those for idle whose managers have not come yet.
        if blocks <= 0:
            return []
        ended: list[str] = super().scale_in(blocks, max_idletime)
        return ended

    def scale_out_facade(self, n: int) -> list[str]:
        started: list[str] = []
        for _ in range(n):
            # What became of the last one may be a reason to ask for no other.
            if not self.breaker.allows_blocks():
                break
            started += super().scale_out_facade(1)
        return started

    def note_connected(self, managers: Collection[Mapping[str, Any]]) -> None:
        """Tell the blocks whose workers have connected, and whose are here now."""
        present = {manager["block_id"] for manager in managers}
        ever = {*self.connected_blocks(), *present}
        self.blocks.connected(
            *({self.blocks_to_job_id[key] for key in keys if key in self.blocks_to_job_id} for keys in (ever, present))
        )

    def forget_ended_blocks(self) -> None:
        """Parsl would ask about every block there ever was, for ever."""
        ended = [block_id for block_id, status in self._status.items() if status.terminal]
        for block_id in sorted(ended, key=int)[:-ENDED_BLOCKS_KEPT]:
            job_id = self.blocks_to_job_id.pop(block_id, None)
            self.job_ids_to_block.pop(job_id, None)
            self._status.pop(block_id, None)
            self._simulated_status.pop(block_id, None)
            self.blocks.forget([job_id])

    def _launch_block(self, block_id: str) -> Any:
        try:
            return super()._launch_block(block_id)
        except Exception as error:
            # Parsl keeps it as the block's state; the administrator wants to read it.
            log.warning("a block was refused: %s: %s", type(error).__name__, error)
            raise


def _answer(client: CommandClient, run: Callable[..., Any], message: Any) -> Any:
    """The interchange's answer to a command. Raises CommandClientTimeoutError if there is none in time."""
    began = time.monotonic()
    try:
        return run(message, timeout_s=COMMAND_TIMEOUT_S)
    except CommandClientTimeoutError:
        overdue_s = time.monotonic() - began - COMMAND_TIMEOUT_S
        # Where that took longer than it may, it was we who had stopped. The answer is there, or about to be read.
        if overdue_s < 1 or client.ok or not client.zmq_socket.poll(1000 * COMMAND_TIMEOUT_S):
            raise
        client.ok = True
        return client.zmq_socket.recv_pyobj()


def _interchange_command() -> list[str]:
    lifeline = [sys.executable, "-m", f"{__package__}.lifeline", str(os.getpid())]
    return [*lifeline, sys.executable, "-m", f"{__package__}.interchange"]


def find_our_python() -> None:
    """A block on this machine finds ``python3`` through PATH; ours must come before anybody else's."""
    ours = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != ours:
        os.environ["PATH"] = os.pathsep.join([ours, path]) if path else ours


def own_addresses() -> set[str]:
    """Every address by which this machine may be reached from elsewhere; managers find out which one works."""
    found = {
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family == socket.AF_INET and not address.address.startswith("127.")
    }
    return found or {"127.0.0.1"}
