"""Provider plugins: found by metadata, loaded by name, and not in each other's way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint import hookspecs
from farcall_endpoint.config import ProviderSection
from farcall_endpoint.plugins import build_provider, installed_providers, load_provider, provider_config
from farcall_endpoint.provider import BlockSpec, BlockState
from farcall_endpoint.testing import ProviderContract

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


def install(
    folder: Path,
    name: str,
    source: str,
    *,
    brings: str | None = None,
    installer: str | None = None,
    origin: dict[str, object] | None = None,
) -> str:
    module = f"farcall_provider_{name}"
    (folder / f"{module}.py").write_text(source)
    sys.modules.pop(module, None)
    info = folder / f"{module}-0.7.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: farcall-provider-{name}\nVersion: 0.7\n")
    (info / "entry_points.txt").write_text(f"[farcall]\n{brings or name} = {module}\n")
    if installer is not None:
        (info / "INSTALLER").write_text(f"{installer}\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
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


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_module", "does not load: ModuleNotFoundError: .*no_such_module"),
        ("def broken(:", "does not load: SyntaxError: .*farcall_provider_broken.py, line 1"),
        ("raise SystemExit('no licence')", "does not load: SystemExit: no licence"),
        (
            PLUGIN.replace('    return {"atd"', '    raise OSError("no disk")\n    return {"atd"'),
            "does not load: OSError: no disk",
        ),
        (PLUGIN.replace("def farcall_providers", "def farcall_provider"), "unknown hook 'farcall_provider'"),
        (PLUGIN.replace("@hookimpl", ""), "has no hook: a function farcall_providers"),
        (PLUGIN.replace('{"atd": AtdProvider}', "7"), "with its providers by name, but with 7"),
        (PLUGIN, "brings no provider of that name; its providers are: atd"),
        (PLUGIN.replace('"atd": AtdProvider', '"broken": 7'), "brings 7, which is no subclass of .*Provider"),
        (
            PLUGIN.replace("    def cancel(self, block_ids): pass\n", "").replace('"atd"', '"broken"'),
            "brings AtdProvider, which lacks cancel",
        ),
        (PLUGIN.replace("= AtdConfig", "= dict").replace('"atd"', '"broken"'), "whose Config is no subclass"),
    ],
)
def test_a_broken_plugin_troubles_only_those_who_chose_it_and_is_named(plugins: Path, source: str, said: str) -> None:
    install(plugins, "broken", source)

    load_provider("local")

    with pytest.raises(ConfigurationError, match=said) as caught:
        load_provider("broken")
    assert str(caught.value).startswith("the plugin of provider 'broken', farcall-provider-broken 0.7, ")


def test_a_provider_that_cannot_be_made_is_named(plugins: Path) -> None:
    source = PLUGIN.replace("    def submit", "    def __init__(self, config): raise KeyError('x')\n    def submit")
    install(plugins, "atd", source)

    with pytest.raises(ConfigurationError, match=r"'atd', farcall-provider-atd 0\.7, cannot be used: KeyError: 'x'"):
        build_provider(section("atd", queue="b"))


def test_two_distributions_that_bring_one_name_are_told_apart(plugins: Path) -> None:
    install(plugins, "atd", PLUGIN)
    install(plugins, "other", PLUGIN, brings="atd", origin={"url": "https://example.org/o.git", "vcs_info": {}})

    with pytest.raises(ConfigurationError, match="several distributions bring a provider called 'atd'") as caught:
        load_provider("atd")

    assert f"farcall-provider-atd 0.7 (from {plugins})" in str(caught.value)
    assert "farcall-provider-other 0.7 (from https://example.org/o.git)" in str(caught.value)


def test_one_distribution_that_is_found_twice_is_one(
    plugins: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = tmp_path_factory.mktemp("sources")
    install(sources, "atd", PLUGIN)
    install(plugins, "atd", PLUGIN)
    monkeypatch.syspath_prepend(sources)

    assert load_provider("atd").__name__ == "AtdProvider"


@pytest.mark.parametrize(
    ("origin", "shown"),
    [
        ({"url": "file:///home/me/my%20work", "dir_info": {"editable": True}}, "/home/me/my work (editable)"),
        ({"url": "file:///home/me/work", "dir_info": {}}, "/home/me/work"),
        ({"url": "https://example.org/p.git", "vcs_info": {"commit_id": "f00"}}, "https://example.org/p.git at f00"),
        ({"url": "https://example.org/p.whl", "archive_info": {}}, "https://example.org/p.whl"),
        (None, "a package index"),
    ],
)
def test_where_a_plugin_was_installed_from_is_listed(
    plugins: Path, origin: dict[str, object] | None, shown: str
) -> None:
    install(plugins, "atd", PLUGIN, installer="pip", origin=origin)

    assert [provider.origin for provider in installed_providers() if provider.name == "atd"] == [shown]


def test_the_command_that_lists_providers_imports_none_of_them(plugins: Path) -> None:
    install(plugins, "atd", "raise RuntimeError('imported')", installer="pip")
    program = (
        "import sys\nfrom farcall_endpoint.cli import app\n"
        "try:\n    app(['providers'])\nfinally:\n"
        "    assert not [name for name in sys.modules if name.startswith('farcall_provider_')], 'imported'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(plugins)}

    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "farcall-provider-atd" in done.stdout
    assert "a package index" in done.stdout


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


def test_the_hook_is_explained_with_a_whole_plugin_that_works(plugins: Path, tmp_path: Path) -> None:
    said = hookspecs.farcall_providers.__doc__ or ""
    install(plugins, "atd", textwrap.dedent(said.partition("::\n")[2]))
    provider = build_provider(section("atd"))

    block_id = provider.submit(BlockSpec(command="exit 3", name="b", run_dir=tmp_path))

    ended = ProviderContract().wait_for(provider, block_id, lambda state: state.has_ended)
    assert ended is BlockState.FAILED
    assert provider.states(["1234"]) == {"1234": BlockState.UNKNOWN}
