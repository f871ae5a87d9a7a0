"""The manager of one node: Parsl's, with a ``crew`` instead of queues that all workers share.

``python3 -P -m farcall_endpoint.pool`` takes the arguments of Parsl's ``process_worker_pool.py``.
"""

from __future__ import annotations

import argparse
import os
import pickle
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from parsl.executors.high_throughput import process_worker_pool as parsl_pool
from parsl.logconfigs.base import LogConfig, oneshot_initialize_logging
from parsl.multiprocessing import SpawnContext

from .crew import Crew, Uncounted, WorkerEnd
from .nodes import Nodes, names_of_nodes


class Pool(parsl_pool.Manager):  # type: ignore[misc]  # Parsl brings no types
    """Talks to the interchange as Parsl's manager does, and to its workers through their own pipes."""

    def __init__(self, *, logdir: str, debug: bool, nodes: Nodes | None, **options: Any) -> None:
        with _unshared():
            super().__init__(**options)
        self._logdir = logdir
        self._debug = debug
        self._crew = Crew(self._start_process, nodes)
        self.task_scheduler = self.pending_task_queue = self.pending_result_queue = self._crew

    def worker_watchdog(self, procs: dict[int, SpawnProcess]) -> None:
        self._crew.processes = procs
        while not self._stop_event.wait(self.heartbeat_period):
            self._crew.look_after()

    def _start_worker(self, worker_id: int) -> SpawnProcess:
        return self._crew.hire(worker_id)

    def _start_process(self, number: int, end: WorkerEnd) -> SpawnProcess:
        process: SpawnProcess = SpawnContext.Process(
            target=parsl_pool.worker,
            name=f"worker-{number}",
            kwargs={
                "worker_id": number,
                "pool_id": self.uid,
                "pool_size": self.worker_count,
                "task_queue": end,
                "result_queue": end,
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
    args = parsl_pool.get_arg_parser().parse_args()
    Pool(
        logdir=args.logdir,
        debug=args.debug,
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
        available_accelerators=args.available_accelerators,
        cert_dir=None if args.cert_dir == "None" else args.cert_dir,
        drain_period=_whole(args.drain_period),
        log_config=_log_config(args),
    ).start()


if __name__ == "__main__":
    main()
