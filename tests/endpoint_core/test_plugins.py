"""Provider plugins: found by metadata, loaded by name, and not in each other's way."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint import hookspecs
from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import build_provider, installed_providers, load_provider, provider_config

PLUGIN = """
import dataclasses
from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import Provider, ProviderConfig, setting

@dataclasses.dataclass(frozen=True)
class AtdConfig(ProviderConfig):
    queue: str = setting(help="The queue.")
    shell: str = "/bin/sh"

class AtdProvider(Provider):
    Config = AtdConfig
    def submit(self, spec): return "1"
    def states(self, block_ids): return {}
    def cancel(self, block_ids): pass

@hookimpl
def farcall_providers():
    return {"atd": AtdProvider}
"""


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions, without pip."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def install(folder: Path, name: str, source: str) -> str:
    module = f"farcall_provider_{name}"
    (folder / f"{module}.py").write_text(source)
    sys.modules.pop(module, None)
    info = folder / f"{module}-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: farcall-provider-{name}\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text(f"[farcall]\n{name} = {module}\n")
    return module


def section(name: str, **options: object) -> ProviderSection:
    return ProviderSection(name, options)


def test_an_installed_plugin_is_listed_without_being_imported(plugins: Path) -> None:
    module = install(plugins, "atd", "raise RuntimeError('imported')")

    listed = [provider for provider in installed_providers() if provider.name == "atd"]

    assert [(provider.distribution, provider.version) for provider in listed] == [("farcall-provider-atd", "0.7")]
    assert module not in sys.modules


def test_a_strangers_provider_is_loaded_by_its_name(plugins: Path) -> None:
    install(plugins, "atd", PLUGIN)

    provider = build_provider(section("atd", queue="b"))

    assert type(provider).__name__ == "AtdProvider"
    assert (provider.config.queue, provider.config.shell) == ("b", "/bin/sh")  # type: ignore[attr-defined]


def test_an_unknown_provider_is_answered_with_those_installed() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no installed plugin brings a provider called 'nope'; installed: .*local"
    ):
        load_provider("nope")


def test_a_broken_plugin_troubles_only_those_who_chose_it(plugins: Path) -> None:
    install(plugins, "broken", "import no_such_module")

    load_provider("local")

    with pytest.raises(
        ConfigurationError, match=r"provider 'broken' does not load: ModuleNotFoundError: .*no_such_module"
    ):
        load_provider("broken")


def test_a_misspelt_hook_is_an_error(plugins: Path) -> None:
    install(plugins, "typo", PLUGIN.replace("def farcall_providers", "def farcall_provider"))

    with pytest.raises(ConfigurationError, match="farcall_provider"):
        load_provider("typo")


def test_a_plugin_without_the_provider_of_its_name_says_which_it_has(plugins: Path) -> None:
    install(plugins, "other", PLUGIN)

    with pytest.raises(ConfigurationError, match="its providers are: atd"):
        load_provider("other")


def test_a_misspelt_option_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="shel: there is no such key; did you mean 'shell'"):
        provider_config(section("local", shel="sh"))


def test_a_misspelt_scaling_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'max_blocks'"):
        provider_config(section("local", max_block=2))


def test_an_option_of_the_wrong_type_is_named() -> None:
    with pytest.raises(ConfigurationError, match="shell: expected a text, got int 7"):
        provider_config(section("local", shell=7))


def test_an_option_that_must_be_set_is_named_with_its_help(plugins: Path) -> None:
    install(plugins, "atd", PLUGIN)

    with pytest.raises(ConfigurationError, match="'queue' is missing: The queue"):
        provider_config(section("atd"))


def test_the_hook_is_explained_with_an_example() -> None:
    said = hookspecs.farcall_providers.__doc__ or ""

    assert "@hookimpl" in said
    assert "def farcall_providers()" in said
