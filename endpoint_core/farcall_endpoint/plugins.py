"""Find the installed plugins, and load the one that brings the wanted provider.

Listing reads the metadata of installed distributions and imports nothing. Loading imports the wanted plugin alone: a
login node never imports a Kubernetes client, and a broken plugin troubles only those who chose it.
"""

from __future__ import annotations

import dataclasses
import difflib
from importlib import metadata

import pluggy

from farcall.errors import ConfigurationError

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


def installed_providers() -> list[InstalledProvider]:
    """All that is installed, by name, without importing any of it."""
    found = {
        InstalledProvider(entry_point.name, distribution.name, distribution.version)
        for distribution in metadata.distributions()
        for entry_point in distribution.entry_points
        if entry_point.group == hookspecs.GROUP
    }
    return sorted(found)


def load_provider(name: str) -> type[Provider]:
    """The class of the provider with this name. Raises ConfigurationError if there is none, or it does not load."""
    installed = sorted({provider.name for provider in installed_providers()})
    if name not in installed:
        near = difflib.get_close_matches(name, installed, n=1)
        advice = f" (did you mean {near[0]!r}?)" if near else ""
        raise ConfigurationError(
            f"no installed plugin brings a provider called {name!r}; "
            f"installed: {', '.join(installed) or 'none'}{advice}"
        )
    try:
        brought = _ask_plugin(name)
    except Exception as error:  # a stranger's code is imported here
        raise ConfigurationError(
            f"the plugin of provider {name!r} does not load: {type(error).__name__}: {error}"
        ) from error
    if name not in brought:
        names = ", ".join(sorted(brought)) or "none"
        raise ConfigurationError(f"the plugin {name!r} brings no provider of that name; its providers are: {names}")
    return brought[name]


def provider_config(section: ProviderSection) -> tuple[type[Provider], ProviderConfig]:
    """The provider's class and its options, checked; nothing is started."""
    provider = load_provider(section.type)
    return provider, read_options(provider, section)


def build_provider(section: ProviderSection) -> Provider:
    """The provider that an endpoint's configuration asks for, ready to use."""
    provider, options = provider_config(section)
    return provider(options)


def read_options(provider: type[Provider], section: ProviderSection) -> ProviderConfig:
    """A provider's options out of its section of the configuration. Raises ConfigurationError for a wrong one."""
    # The scaling keys stand in the same section of the file: somebody who misspelt one means one of those.
    fields = dataclasses.fields(provider.Config)
    refuse_unknown_keys(section.options, [*map(key_of, fields), *keys_of("provider"), "type"], section.place)
    return provider.Config(**read_fields(provider.Config, fields, section.options, section.place))


def _ask_plugin(name: str) -> dict[str, type[Provider]]:
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    manager.load_setuptools_entrypoints(hookspecs.GROUP, name=name)
    # A misspelt hook is an error, not silence.
    manager.check_pending()
    return {key: value for brought in manager.hook.farcall_providers() for key, value in brought.items()}
