"""Find the installed plugins, and load the one that brings the wanted provider.

Listing reads the metadata of installed distributions and imports nothing. Loading imports the wanted plugin alone: a
login node never imports a Kubernetes client, and a broken plugin troubles only those who chose it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any
from urllib.parse import unquote, urlsplit

import pluggy

from farcall.errors import ConfigurationError, FarcallError

from . import hookspecs
from .config import ProviderSection
from .loading import keys_of
from .provider import Provider, ProviderConfig
from .reading import key_of, read_fields, refuse_unknown_keys


@dataclasses.dataclass(frozen=True, order=True)
class InstalledProvider:
    """A provider that could be loaded, and the distribution that brings it."""

    name: str
    distribution: str
    version: str
    #: Where the distribution was installed from.
    origin: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


def installed_providers() -> list[InstalledProvider]:
    """All that is installed, by name, without importing any of it."""
    found: dict[tuple[str, str], InstalledProvider] = {}
    for distribution in metadata.distributions():
        for entry_point in distribution.entry_points:
            if entry_point.group == hookspecs.GROUP:
                key = (entry_point.name, re.sub(r"[-_.]+", "-", distribution.name).lower())
                # A distribution may be found twice, as where its sources are; the first is the one that is imported.
                found.setdefault(
                    key,
                    InstalledProvider(entry_point.name, distribution.name, distribution.version, _origin(distribution)),
                )
    return sorted(found.values())


def load_provider(name: str) -> type[Provider]:
    """The class of the provider with this name. Raises ConfigurationError if there is none, or it does not load."""
    return _load(name, _chosen(name))


def provider_config(section: ProviderSection) -> tuple[type[Provider], ProviderConfig]:
    """The provider's class and its options, checked; nothing is started."""
    provider = load_provider(section.type)
    return provider, read_options(provider, section)


def build_provider(section: ProviderSection) -> Provider:
    """The provider that an endpoint's configuration asks for, ready to use."""
    installed = _chosen(section.type)
    provider = _load(section.type, installed)
    options = read_options(provider, section)
    try:
        return provider(options)
    except FarcallError:
        raise
    except Exception as error:  # a stranger's code
        raise _broken(section.type, installed, f"cannot be used: {_told(error)}") from error


def read_options(provider: type[Provider], section: ProviderSection) -> ProviderConfig:
    """A provider's options out of its section of the configuration. Raises ConfigurationError for a wrong one."""
    # The scaling keys stand in the same section of the file: somebody who misspelt one means one of those.
    fields = dataclasses.fields(provider.Config)
    refuse_unknown_keys(section.options, [*map(key_of, fields), *keys_of("provider"), "type"], section.place)
    return provider.Config(**read_fields(provider.Config, fields, section.options, section.place))


# -- which one --------------------------------------------------------------------------------------------------------


def _chosen(name: str) -> InstalledProvider:
    installed = installed_providers()
    found = [provider for provider in installed if provider.name == name]
    if len(found) > 1:
        several = " and ".join(f"{provider} (from {provider.origin})" for provider in found)
        raise ConfigurationError(
            f"several distributions bring a provider called {name!r}: {several}; uninstall those that are not meant"
        )
    if not found:
        names = sorted({provider.name for provider in installed})
        near = difflib.get_close_matches(name, names, n=1)
        advice = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigurationError(
            f"no installed plugin brings a provider called {name!r}; installed: {', '.join(names) or 'none'}{advice}"
        )
    return found[0]


def _origin(distribution: metadata.Distribution) -> str:
    """Out of what the installer wrote down: https://packaging.python.org/en/latest/specifications/direct-url/."""
    try:
        source = json.loads(distribution.read_text("direct_url.json") or "null")
    except ValueError:
        source = None
    if not isinstance(source, Mapping) or not isinstance(source.get("url"), str):
        # What no installer has put there lies in somebody's folder.
        return "a package index" if distribution.read_text("INSTALLER") else str(distribution.locate_file(""))
    url = source["url"]
    if urlsplit(url).scheme == "file":
        url = unquote(urlsplit(url).path)
    commit = _inner(source, "vcs_info", "commit_id")
    is_editable = _inner(source, "dir_info", "editable") is True
    return f"{url}{f' at {commit}' if commit else ''}{' (editable)' if is_editable else ''}"


def _inner(source: Mapping[str, Any], section: str, key: str) -> Any:
    inner = source.get(section)
    return inner.get(key) if isinstance(inner, Mapping) else None


# -- loading it -------------------------------------------------------------------------------------------------------


def _load(name: str, installed: InstalledProvider) -> type[Provider]:
    try:
        brought = _ask_plugin(name)
    # A stranger's code is imported here, and some of it ends the program when something is missing.
    except (Exception, SystemExit) as error:
        raise _broken(name, installed, f"does not load: {_told(error)}") from error
    trouble = next(_troubles(name, brought), None)
    if trouble is not None:
        raise _broken(name, installed, trouble)
    provider: type[Provider] = _merged(brought)[name]
    return provider


def _ask_plugin(name: str) -> list[Any]:
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints(hookspecs.GROUP, name=name)
    # A misspelt hook is an error, not silence.
    manager.check_pending()
    return list(manager.hook.farcall_providers())


def _troubles(name: str, brought: list[Any]) -> Iterator[str]:
    """What is wrong with what a plugin has answered."""
    if not brought:
        yield "has no hook: a function farcall_providers, marked as @hookimpl, that names its providers"
    for answer in brought:
        if not isinstance(answer, Mapping):
            yield f"does not answer farcall_providers with its providers by name, but with {answer!r}"
    providers = _merged(brought)
    if name not in providers:
        names = ", ".join(sorted(map(str, providers))) or "none"
        yield f"brings no provider of that name; its providers are: {names}"
        return
    provider = providers[name]
    if not (isinstance(provider, type) and issubclass(provider, Provider)):
        yield f"brings {provider!r}, which is no subclass of farcall_endpoint.provider.Provider"
        return
    missing = sorted(getattr(provider, "__abstractmethods__", ()))
    if missing:
        yield f"brings {provider.__name__}, which lacks {', '.join(missing)}"
    config = provider.Config
    if not (isinstance(config, type) and issubclass(config, ProviderConfig)):
        yield f"brings {provider.__name__}, whose Config is no subclass of farcall_endpoint.provider.ProviderConfig"


def _merged(brought: list[Any]) -> dict[str, Any]:
    return {key: value for answer in brought for key, value in answer.items()}


def _broken(name: str, installed: InstalledProvider, what: str) -> ConfigurationError:
    return ConfigurationError(f"the plugin of provider {name!r}, {installed}, {what}")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
