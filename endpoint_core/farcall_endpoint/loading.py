"""Read an endpoint's ``config.yaml`` or ``config.py``, and point at what is wrong in it."""

from __future__ import annotations

import dataclasses
import runpy
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import yaml

from farcall.errors import ConfigurationError

from .config import Config, EndpointConfig, EngineConfig, ProviderSection
from .mpi import LAUNCHERS
from .reading import Place, key_of, mapping_at, read_fields, refuse_unknown_keys


def config_path(directory: Path) -> Path:
    """The one configuration file of an endpoint. Raises ConfigurationError where there is none, or two."""
    found = [path for path in (directory / "config.yaml", directory / "config.py") if path.is_file()]
    if len(found) == 2:
        raise ConfigurationError(
            f"{directory}: there is a config.yaml and a config.py; remove the one that is not meant"
        )
    if not found:
        raise ConfigurationError(
            f"there is no endpoint called {directory.name!r} ({directory} has no config.yaml); "
            f"make it with: farcall-endpoint configure {directory.name}"
        )
    return found[0]


def load_config(directory: Path) -> EndpointConfig:
    """Read an endpoint's configuration. Raises ConfigurationError with file, line, key and what was wrong."""
    return read_config_file(config_path(directory), directory)


def read_config_file(path: Path, directory: Path) -> EndpointConfig:
    """Read one file as the configuration of the endpoint in that directory, wherever the file is."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: cannot be read: {error}") from error
    document, lines = (_run_python(path), {}) if path.suffix == ".py" else _parse_yaml(text, path)
    return _read_document(document, Place(str(path), lines=lines), directory, text)


_Lines: TypeAlias = dict[tuple[str, ...], int]

#: The one engine, and what Globus Compute calls it.
_ENGINE_TYPES = ("htex", "GlobusComputeEngine", "HighThroughputEngine")
_MPI_ENGINE_TYPES = ("mpi", "GlobusMPIEngine")
#: Globus Compute's names of the providers that have one of ours; ``LocalProvider`` is ``local`` and so on.
_PROVIDER_SYNONYMS = MappingProxyType(
    {"LocalProvider": "local", "SlurmProvider": "slurm", "PBSProProvider": "pbs", "KubernetesProvider": "k8s"}
)


def fields_of(section: str) -> list[tuple[type, dataclasses.Field[Any]]]:
    """The settings that stand in one section of the file, each with the dataclass that holds it."""
    return [
        (owner, field)
        for owner in (EndpointConfig, EngineConfig)
        for field in dataclasses.fields(owner)
        if field.metadata.get("section") == section
    ]


def keys_of(section: str) -> list[str]:
    """What the settings of one section are called in the file."""
    return [key_of(field) for _, field in fields_of(section)]


def _read_document(document: Any, place: Place, directory: Path, text: str) -> EndpointConfig:
    top = mapping_at(document, place)
    engine_place = place.at("engine")
    engine = mapping_at(top.get("engine"), engine_place)
    job_place, provider_place = engine_place.at("job_status_kwargs"), engine_place.at("provider")
    job = mapping_at(engine.get("job_status_kwargs"), job_place)
    provider = mapping_at(engine.get("provider"), provider_place)
    refuse_unknown_keys(top, [*keys_of("endpoint"), "engine"], place)
    _refuse_misplaced_keys(engine, engine_place)
    refuse_unknown_keys(job, keys_of("job_status_kwargs"), job_place)
    _check_engine_type(engine.get("type", "htex"), engine_place)
    values: dict[type, dict[str, Any]] = {EndpointConfig: {}, EngineConfig: {}}
    for section, mapping, where in (
        ("endpoint", top, place),
        ("engine", engine, engine_place),
        ("job_status_kwargs", job, job_place),
        ("provider", provider, provider_place),
    ):
        for owner, field in fields_of(section):
            values[owner].update(read_fields(owner, [field], mapping, where))
    return EndpointConfig(
        name=directory.name,
        directory=directory,
        engine=_with_mpi(
            _with_container(_consistent(EngineConfig(**values[EngineConfig]), provider_place), engine_place),
            engine.get("type", "htex"),
            engine_place,
            provider_place,
        ),
        provider=_provider_section(provider, provider_place),
        text=text,
        **values[EndpointConfig],
    )


def _refuse_misplaced_keys(engine: Mapping[str, Any], place: Place) -> None:
    for section in ("provider", "job_status_kwargs"):
        for key in keys_of(section):
            if key in engine:
                raise place.at(key).error(f"this belongs one level down, under engine.{section}")
    refuse_unknown_keys(engine, [*keys_of("engine"), "type", "provider", "job_status_kwargs"], place)


def _check_engine_type(name: Any, place: Place) -> None:
    if name not in (*_ENGINE_TYPES, *_MPI_ENGINE_TYPES):
        raise place.at("type").error(
            f"there is no engine called {name!r}; leave the key out, or write GlobusMPIEngine for tasks that use MPI"
        )


def _with_container(engine: EngineConfig, place: Place) -> EngineConfig:
    try:
        engine.container  # noqa: B018 - asked whether there can be one
    except ValueError as error:
        raise place.at("container_type").error(str(error)) from None
    return engine


def _with_mpi(engine: EngineConfig, name: Any, place: Place, provider_place: Place) -> EngineConfig:
    if name not in _MPI_ENGINE_TYPES:
        for key, value in (
            ("mpi_launcher", engine.mpi_launcher),
            ("max_workers_per_block", engine.max_workers_per_block),
        ):
            if value is not None:
                raise place.at(key).error("this goes with engine.type GlobusMPIEngine only")
        return engine
    if engine.max_workers_per_node is not None:
        raise place.at("max_workers_per_node").error(
            "with MPI, max_workers_per_block says how many tasks run at a time"
        )
    if engine.launcher is not None and not engine.launcher.is_single:
        raise provider_place.at("launcher").error(
            f"{engine.launcher.name} would start workers on every node; with MPI they are on the first one, and "
            "engine.mpi_launcher starts the ranks: leave this key out"
        )
    return dataclasses.replace(engine, mpi_launcher=engine.mpi_launcher or LAUNCHERS[0])


def _provider_section(provider: dict[str, Any], place: Place) -> ProviderSection:
    name = provider.get("type", "local")
    if not isinstance(name, str):
        raise place.at("type").error(f"expected the name of a provider, got {name!r}")
    options = {key: value for key, value in provider.items() if key not in (*keys_of("provider"), "type")}
    return ProviderSection(_PROVIDER_SYNONYMS.get(name, name), options, place)


def _consistent(engine: EngineConfig, place: Place) -> EngineConfig:
    if engine.min_blocks > engine.max_blocks:
        raise place.at("min_blocks").error(f"{engine.min_blocks} is more than max_blocks, {engine.max_blocks}")
    if engine.init_blocks > engine.max_blocks:
        raise place.at("init_blocks").error(f"{engine.init_blocks} is more than max_blocks, {engine.max_blocks}")
    if engine.parallelism > 1:
        raise place.at("parallelism").error(f"must be between 0 and 1, got {engine.parallelism:g}")
    return engine


def _parse_yaml(text: str, path: Path) -> tuple[Any, _Lines]:
    try:
        lines: _Lines = {}
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None:
            _note_lines(node, (), lines, path)
        return yaml.safe_load(text), lines
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{path}: this is not YAML: {error}") from error


def _note_lines(node: yaml.Node, prefix: tuple[str, ...], lines: _Lines, path: Path) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        here = (*prefix, str(key.value))
        line = key.start_mark.line + 1
        if here in lines:
            raise ConfigurationError(
                f"{path}, line {line}: {'.'.join(here)} is there twice, first on line {lines[here]}"
            )
        lines[here] = line
        _note_lines(value, here, lines, path)


def _run_python(path: Path) -> Any:
    try:
        names = runpy.run_path(str(path))
    except SyntaxError as error:
        raise ConfigurationError(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:  # whatever an administrator's own code may raise
        frames = traceback.extract_tb(error.__traceback__)
        line = max((frame.lineno or 0 for frame in frames if frame.filename == str(path)), default=0)
        raise ConfigurationError(f"{path}, line {line}: {type(error).__name__}: {error}") from error
    if not isinstance(names.get("config"), Config):
        raise ConfigurationError(
            f"{path}: it must assign to 'config': from farcall_endpoint.config import Config; config = Config(...)"
        )
    return names["config"]
