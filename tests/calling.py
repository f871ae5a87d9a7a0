"""A real executor with one block on this machine, and calls for it: what the tests of nodes stand on."""

from __future__ import annotations

import inspect
import json
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from farcall.serialize import deserialize, serialize
from farcall.wire import BatchedTask, FunctionCode, Output, Result, pack_buffers, read_result
from farcall_endpoint.blocks import Blocks
from farcall_endpoint.breaker import Breaker
from farcall_endpoint.calls import Setting, read_outcome, write_call
from farcall_endpoint.config import EngineConfig
from farcall_endpoint.htex import Executor
from farcall_endpoint.sightings import Node, Started
from farcall_provider_local.provider import LocalConfig, LocalProvider

PATIENCE_S = 60


class Recorder:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.nodes: list[list[Node]] = []
        self.sightings: list[Started] = []
        self.pieces: list[Output] = []
        self._news = threading.Condition()

    def nodes_changed(self, nodes: Sequence[Node]) -> None:
        with self._news:
            self.nodes.append(list(nodes))
            self._news.notify_all()

    def started(self, sightings: Sequence[Started]) -> None:
        with self._news:
            self.sightings += sightings
            self._news.notify_all()

    def printed(self, pieces: Sequence[Output]) -> None:
        with self._news:
            self.pieces += pieces
            self._news.notify_all()

    def wait_for(self, what: Callable[[], Any]) -> None:
        with self._news:
            assert self._news.wait_for(what, timeout=PATIENCE_S), "the nodes did not tell of it in time"

    def has_started(self, task_id: str) -> bool:
        return any(sighting.task_id == task_id for sighting in self.sightings)

    def text_of(self, task_id: str, stream: str = "stdout") -> str:
        """What of a stream has come; a gap is shown as an ellipsis."""
        text, end = "", 0
        for piece in self.pieces:
            if (piece.task_id, piece.stream) == (task_id, stream):
                text += ("…" if piece.start != end else "") + piece.text
                end = piece.start + len(piece.text)
        return text


class Bench:
    """An executor, what its nodes tell of, and how to call it."""

    def __init__(self, executor: Executor, recorder: Recorder) -> None:
        self.executor = executor
        self.recorder = recorder

    def call(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        task_id: str = "task",
        timeout_s: float | None = None,
        resources: Mapping[str, Any] | None = None,
        **setting: Any,
    ) -> Future[bytes]:
        options = {} if timeout_s is None else {"timeout_s": timeout_s}
        payload = pack_buffers([serialize(arguments), serialize({})])
        tasks = [BatchedTask(task_id, function.__qualname__, payload, options)]
        # As source, also that of a test's inner function: the workers do not have the module of the test.
        source = textwrap.dedent(inspect.getsource(function))
        code = FunctionCode(pack_buffers([f"st\n{function.__name__}:{source}"]))
        context: dict[str, Any] = {
            "task_executor": {"f": "farcall_endpoint.worker.run_batch"},
            "farcall": {"task_ids": [task_id], "timeout_s": timeout_s},
        }
        if resources is not None:
            context["resource_spec"] = dict(resources)
        buffer = write_call(Setting("some-endpoint", **setting), {function.__qualname__: code}, tasks)
        future: Future[bytes] = self.executor.submit_payload(context, buffer)
        return future

    def cancel(self, future: Future[bytes]) -> None:
        self.executor.cancel_calls([future.parsl_executor_task_id])  # type: ignore[attr-defined]

    def wait_for_start(self, task_id: str = "task") -> None:
        self.recorder.wait_for(lambda: self.recorder.has_started(task_id))


def result_of(future: Future[bytes]) -> Result:
    ((_, text),) = read_outcome(future.result(PATIENCE_S)).results
    return read_result(json.loads(text))


def value_of(future: Future[bytes]) -> Any:
    result = result_of(future)
    assert result.error_details is None, result.data
    return deserialize(result.data)


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """For what nobody tells of."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.02)


@contextmanager
def bench(run_dir: Path, **settings: Any) -> Iterator[Bench]:
    config = EngineConfig(**{"max_workers_per_node": 1, "heartbeat_period_s": 1, **settings})
    provider = LocalProvider(LocalConfig())
    blocks = Blocks(provider, config, name="test", run_dir=run_dir, working_dir=run_dir / "work", poll_period_s=1)
    recorder = Recorder()
    executor = Executor(config, blocks, Breaker(), address="127.0.0.1", run_dir=run_dir, watcher=recorder)
    executor.start()
    try:
        executor.scale_out_facade(1)
        yield Bench(executor, recorder)
    finally:
        blocks.cancel_all()
        executor.shutdown(timeout=2.0)
