"""Lets any ``ExecutionProvider`` of Parsl start the blocks of an endpoint: LSF, HTCondor, Grid Engine, clouds."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import logging
import shlex
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import (
    BlockSpec,
    BlockState,
    Provider,
    ProviderConfig,
    ProviderError,
    SystemUnavailable,
    setting,
)

log = logging.getLogger(__name__)

#: Of what a block printed, for people.
TAIL_CHARACTERS = 4096

#: Parsl's names of states. What has ended there may say so because it is not listed any more.
_LIVING = {"PENDING": BlockState.PENDING, "HELD": BlockState.PENDING, "RUNNING": BlockState.RUNNING}
_FAILED = ("FAILED", "TIMEOUT", "CANCELLED", "MISSING")


def _options(raw: Any) -> dict[str, Any]:
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected options by name, got {raw!r}")
    return {str(key): value for key, value in raw.items()}


@dataclasses.dataclass(frozen=True)
class ParslConfig(ProviderConfig):
    """What an administrator can set beside ``type: parsl``."""

    class_name: str = setting(
        "parsl.providers.LocalProvider", key="class", help="The class, such as parsl.providers.GridEngineProvider."
    )
    options: dict[str, Any] | None = setting(  # noqa: RUF009 - what it makes is a field, as above
        None, parse=_options, help="What its constructor takes, by name, such as: {queue: long, cmd_timeout: 60}"
    )


@dataclasses.dataclass
class _Block:
    output: Path
    #: It leaves its exit code here.
    exit_code: Path
    is_cancelled: bool = False
    said: str = ""


class ParslProvider(Provider):
    """Parsl's provider does what only it can; how a block ended, the block itself leaves in a file."""

    Config = ParslConfig

    def __init__(self, config: ParslConfig) -> None:
        super().__init__(config)
        self._parsl = _made(config.class_name, config.options or {})
        # Parsl's providers are called by one thread.
        self._lock = threading.Lock()
        self._blocks: dict[str, _Block] = {}

    def submit(self, spec: BlockSpec) -> str:
        stem = spec.run_dir / "blocks" / f"{spec.name}-{uuid.uuid4().hex[:8]}"
        block = _Block(stem.with_name(f"{stem.name}.out"), stem.with_name(f"{stem.name}.exit"))
        with self._lock:
            try:
                stem.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ProviderError(f"the block's directory cannot be made: {error}") from error
            self._parsl.script_dir = str(stem.parent)
            self._parsl.nodes_per_block = spec.nodes
            if spec.walltime_s is not None and hasattr(self._parsl, "walltime"):
                self._parsl.walltime = _clock(spec.walltime_s)
            with _listening() as heard:
                try:
                    job_id = self._parsl.submit(_script(spec, block), 1, spec.name)
                # Whatever its classes raise, the block was not taken.
                except Exception as error:
                    raise ProviderError(_sentence(f"{type(error).__name__}: {error}", heard)) from error
            if job_id is None:
                raise ProviderError(_sentence(f"{type(self._parsl).__name__} took no job", heard))
            self._blocks[str(job_id)] = block
        return str(job_id)

    def states(self, block_ids: Sequence[str]) -> dict[str, BlockState]:
        with self._lock:
            known = [block_id for block_id in block_ids if block_id in self._blocks]
            statuses = dict(zip(known, self._statuses(known), strict=True))
            return {
                block_id: self._state(self._blocks[block_id], statuses[block_id])
                if block_id in statuses
                else BlockState.UNKNOWN
                for block_id in block_ids
            }

    def cancel(self, block_ids: Sequence[str]) -> None:
        with self._lock:
            known = [block_id for block_id in block_ids if block_id in self._blocks]
            living = [
                block_id
                for block_id, status in zip(known, self._statuses(known), strict=True)
                if not self._state(self._blocks[block_id], status).has_ended
            ]
            if not living:
                return
            for block_id in living:
                self._blocks[block_id].is_cancelled = True
            with _listening() as heard:
                try:
                    self._parsl.cancel(living)
                except Exception as error:
                    raise SystemUnavailable(_sentence(f"{type(error).__name__}: {error}", heard)) from error

    def output(self, block_id: str) -> str:
        with self._lock:
            block = self._blocks.get(block_id)
        if block is None:
            return ""
        code = _read(block.exit_code).strip()
        how = f"exit code {code}" if code else block.said
        return "\n".join(filter(None, [_read(block.output)[-TAIL_CHARACTERS:].strip(), f"[{how}]" if how else ""]))

    def _statuses(self, block_ids: list[str]) -> list[Any]:
        if not block_ids:
            return []
        try:
            return list(self._parsl.status(block_ids))
        except Exception as error:
            raise SystemUnavailable(f"{type(self._parsl).__name__}: {type(error).__name__}: {error}") from error

    def _state(self, block: _Block, status: Any) -> BlockState:
        code = _read(block.exit_code).strip()
        block.said = status.message or f"Parsl says {status.state.name}"
        if code == "0":
            return BlockState.DONE
        if not code and status.state.name in _LIVING:
            return _LIVING[status.state.name]
        if code or block.is_cancelled or status.state.name in _FAILED:
            return BlockState.CANCELLED if block.is_cancelled else BlockState.FAILED
        # Some of Parsl's providers say COMPLETED of every job that their system does not list.
        return BlockState.UNKNOWN


def _made(class_name: str, options: Mapping[str, Any]) -> Any:
    from parsl.launchers import SimpleLauncher
    from parsl.providers.base import ExecutionProvider

    module, _, name = class_name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ProviderError(f"there is no class {class_name!r}: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, ExecutionProvider)):
        raise ProviderError(f"{class_name} is no ExecutionProvider of Parsl")
    if "launcher" in options:
        raise ProviderError("the launcher stands one level up: set engine.provider.launcher, and none in options")
    # The command that it is given starts the workers on every node by itself.
    takes_launcher = "launcher" in inspect.signature(kind).parameters
    return kind(**options, **({"launcher": SimpleLauncher()} if takes_launcher else {}))


def _script(spec: BlockSpec, block: _Block) -> str:
    output, exit_code = shlex.quote(str(block.output)), shlex.quote(str(block.exit_code))
    return (
        f"(\n{spec.worker_init}\n{spec.command}\n) > {output} 2>&1\n"
        f"code=$?; echo $code > {exit_code}.new && mv {exit_code}.new {exit_code}; exit $code"
    )


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """What Parsl logs of failures meanwhile: it is there that a provider tells what its system said."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("parsl").addHandler(handler)
    try:
        yield heard
    finally:
        logging.getLogger("parsl").removeHandler(handler)


def _sentence(what: str, heard: Sequence[str]) -> str:
    return ": ".join([what, *heard])


def _clock(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"parsl": ParslProvider}
