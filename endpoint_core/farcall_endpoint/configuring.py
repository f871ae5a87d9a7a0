"""Make a new endpoint: its directory, with a ``config.yaml`` that explains every key."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from farcall.config import home
from farcall.errors import ConfigurationError

from . import loading, plugins
from .directories import endpoint_directory
from .provider import Provider
from .reading import key_of


def configure(
    name: str, *, provider: str = "local", display_name: str | None = None, source: Path | None = None
) -> Path:
    """Make the endpoint and return its configuration file. ``source`` is a configuration to be copied."""
    directory = endpoint_directory(name)
    if directory.exists():
        raise ConfigurationError(f"{directory} exists already; choose another name, or edit the config in there")
    home().mkdir(mode=0o700, parents=True, exist_ok=True)
    # Made aside and then renamed, so that a mistake in it leaves nothing behind. mkdtemp makes it 0700.
    aside = Path(tempfile.mkdtemp(dir=home(), prefix=".new-"))
    try:
        if source is None:
            text = default_yaml(name, plugins.load_provider(provider), provider, display_name)
            (aside / "config.yaml").write_text(text, encoding="utf-8")
        else:
            _copy_checked(source, aside, directory)
        aside.rename(directory)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return loading.config_path(directory)


def default_yaml(name: str, provider: type[Provider], provider_name: str, display_name: str | None) -> str:
    """A ``config.yaml`` with every key at its default, under a comment that says what it is for."""
    lines = [
        f"# The endpoint {name!r}. After a change: farcall-endpoint restart {name}",
        "# null stands for: not set.",
        *_section("endpoint", 0, {"display_name": display_name}),
        "",
        "# How tasks are run.",
        "engine:",
        *_section("engine", 1),
        "",
        "  job_status_kwargs:",
        *_section("job_status_kwargs", 2),
        "",
        "  # Where the workers run; farcall-endpoint providers lists what is installed.",
        "  provider:",
        f"    type: {json.dumps(provider_name)}",
        *_section("provider", 2),
        *_settings(list(dataclasses.fields(provider.Config)), 2, {}),
    ]
    return "\n".join(lines) + "\n"


def _section(section: str, depth: int, values: dict[str, Any] | None = None) -> Iterator[str]:
    return _settings([field for _, field in loading.fields_of(section)], depth, values or {})


def _settings(fields: list[dataclasses.Field[Any]], depth: int, values: dict[str, Any]) -> Iterator[str]:
    margin = "  " * depth
    for field in fields:
        help = field.metadata.get("help", "")
        value = values.get(field.name, field.default)
        if value is dataclasses.MISSING:
            help, value = f"{help} It must be set.".strip(), None
        yield ""
        yield from textwrap.wrap(help, 110, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# ")
        # JSON is YAML too, and quotes what has to be quoted.
        yield f"{margin}{key_of(field)}: {json.dumps(value, ensure_ascii=False)}"


def _copy_checked(source: Path, aside: Path, directory: Path) -> None:
    if source.suffix not in (".yaml", ".yml", ".py"):
        raise ConfigurationError(f"{source}: expected a .yaml or .py file")
    loading.read_config_file(source, directory)
    shutil.copyfile(source, aside / ("config.py" if source.suffix == ".py" else "config.yaml"))
