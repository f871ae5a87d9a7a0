"""The manager of one node: Parsl's, with a ``crew`` instead of queues that all workers share, and a line to the agent.

``python3 -P -m farcall_endpoint.pool`` takes the arguments of Parsl's ``process_worker_pool.py``, and two of its own.
"""

from __future__ import annotations

import argparse
import os
import pickle
import platform
import queue
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from parsl.executors.high_throughput import process_worker_pool as parsl_pool
from parsl.logconfigs.base import LogConfig, oneshot_initialize_logging
from parsl.multiprocessing import SpawnContext

from .accelerators import given_to_us
from .agentline import AgentLine
from .crew import Crew
from .killing import adopt_orphans
from .nodes import Nodes, names_of_nodes
from .nodetalk import News
from .sightings import Node
from .steady import steady
from .walltime import end_of_block
from .workerend import Uncounted, WorkerEnd


class Pool(parsl_pool.Manager):  # type: ignore[misc]  # Parsl brings no types
    """Talks to the interchange as Parsl's manager does, and to its workers through their own pipes."""

    def __init__(
        self,
        *,
        logdir: str,
        debug: bool,
        nodes: Nodes | None,
        line_port: int | None,
        walltime_s: float | None,
        **options: Any,
    ) -> None:
        with _unshared():
            super().__init__(**options)
        adopt_orphans()
        self._logdir = logdir
        self._debug = debug
        ends_at = end_of_block(self.start_time, walltime_s)
        self._crew = Crew(self._start_process, nodes, ends_at=ends_at, on_news=self._ring)
        self.task_scheduler = self.pending_task_queue = self.pending_result_queue = self._crew
        self._line = None if line_port is None else self._line_to_agent(line_port, ends_at)

    def start(self) -> None:
        if self._line is not None:
            self._line.start()
        super().start()

    def worker_watchdog(self, procs: dict[int, SpawnProcess]) -> None:
        self._crew.processes = procs
        while not self._stop_event.wait(self.heartbeat_period):
            self._crew.look_after()
            self._crew.reap_orphans()
        self._crew.close()
        if self._line is not None:
            self._line.close()

    def _line_to_agent(self, port: int, ends_at: float | None) -> AgentLine:
        return AgentLine(
            Node(self.uid, self.block_id, platform.node(), self.worker_count, ends_at),
            # Where the interchange was found, the agent is.
            f"{self._ix_url.rpartition(':')[0]}:{port}",
            self.cert_dir,
            period_s=self.heartbeat_period,
            gather=lambda: News(None, *self._crew.listener.gather()),
            obey=lambda unwanted: self._crew.cancel(unwanted.call_ids, unwanted.grace_s),
        )

    def _ring(self) -> None:
        if self._line is not None:
            self._line.ring()

    def _start_worker(self, worker_id: int) -> SpawnProcess:
        return self._crew.hire(worker_id)

    def _start_process(self, number: int, end: WorkerEnd) -> SpawnProcess:
        process: SpawnProcess = SpawnContext.Process(
            target=_work,
            name=f"worker-{number}",
            args=(end,),
            kwargs={
                "worker_id": number,
                "pool_id": self.uid,
                "pool_size": self.worker_count,
                "monitoring_queue": None,
                "ready_worker_count": Uncounted(),
                "tasks_in_progress": {},
                "cpu_affinity": self.cpu_affinity,
                "accelerator": self.available_accelerators[number] if self.accelerators_available else None,
                "block_id": self.block_id,
                "task_queue_timeout": self.heartbeat_period,
                "manager_pid": os.getpid(),
                "logdir": self._logdir,
                "log_config": self.log_config,
                "debug": self._debug,
                "mpi_launcher": self.mpi_launcher,
            },
        )
        process.start()
        return process


def _work(end: WorkerEnd, **options: Any) -> None:
    """The life of a worker."""
    # Here, since the manager has no need of it; and now, since the first task would have to wait for it.
    # Where that cannot be imported, each task says so.
    with suppress(ImportError):
        from . import worker  # noqa: F401
    end.settle()
    parsl_pool.worker(task_queue=end, result_queue=end, **options)


class _Alone:
    """What Parsl's manager asks of multiprocessing, as far as it is still needed: nothing that crosses processes."""

    cpu_count = staticmethod(SpawnContext.cpu_count)

    def Manager(self) -> _Alone:  # noqa: N802 - multiprocessing's name
        return self

    def dict(self) -> dict[int, Any]:
        return {}

    def Queue(self) -> queue.SimpleQueue[Any]:  # noqa: N802 - multiprocessing's name
        return queue.SimpleQueue()

    def Value(self, typecode: str, value: int) -> Uncounted:  # noqa: N802 - multiprocessing's name
        return Uncounted()


@contextmanager
def _unshared() -> Iterator[None]:
    """Parsl's manager makes its queues, and a process that serves a dictionary, when it is made; we need neither."""
    parsl_pool.SpawnContext = _Alone()
    try:
        yield
    finally:
        parsl_pool.SpawnContext = SpawnContext


def _log_config(args: argparse.Namespace) -> LogConfig | None:
    if args.logconf in (None, "None"):
        return None
    config = pickle.loads(Path(args.logconf).read_bytes())
    directory = Path(args.logdir, f"block-{args.block_id}", args.uid)
    oneshot_initialize_logging(log_config=config, log_dir=directory, log_name="manager")
    return config


def _number(text: Any) -> float | None:
    return None if text in (None, "None") else float(text)


def _whole(text: Any) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def main() -> None:
    steady(parsl_pool)
    parser = parsl_pool.get_arg_parser()
    parser.add_argument("--line-port", help="Where the agent listens, beside the interchange")
    parser.add_argument("--walltime", help="Seconds after which the block is ended")
    args = parser.parse_args()
    Pool(
        logdir=args.logdir,
        debug=args.debug,
        line_port=_whole(args.line_port),
        walltime_s=_number(args.walltime),
        nodes=Nodes(names_of_nodes()) if args.enable_mpi_mode else None,
        mpi_launcher=args.mpi_launcher,
        addresses=args.addresses,
        address_probe_timeout=int(args.address_probe_timeout),
        port=args.port,
        cores_per_worker=float(args.cores_per_worker),
        mem_per_worker=_number(args.mem_per_worker),
        max_workers_per_node=args.max_workers_per_node
        if args.max_workers_per_node == float("inf")
        else int(args.max_workers_per_node),
        prefetch_capacity=int(args.prefetch_capacity),
        uid=args.uid,
        block_id=args.block_id,
        heartbeat_threshold=int(args.hb_threshold),
        heartbeat_period=int(args.hb_period),
        poll_period=int(args.poll),
        cpu_affinity=args.cpu_affinity,
        available_accelerators=given_to_us(args.available_accelerators, os.environ),
        cert_dir=None if args.cert_dir == "None" else args.cert_dir,
        drain_period=_whole(args.drain_period),
        log_config=_log_config(args),
    ).start()


if __name__ == "__main__":
    main()
