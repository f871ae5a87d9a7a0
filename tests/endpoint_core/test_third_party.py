"""The plugins of the examples, installed as anybody's would be: pip builds them, and nothing of ours knows them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Each folder of the examples that is a plugin, and what its provider is called.
PLUGINS = {"third_party_provider": "detached", "parsl_bridge": "parsl"}


@pytest.fixture(scope="module", params=sorted(PLUGINS))
def plugin(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def installed(plugin: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the plugin is installed, beside everything of ours."""
    folder = tmp_path_factory.mktemp(plugin)
    # Building leaves files among the sources.
    sources = Path(shutil.copytree(ROOT / "examples" / plugin, folder / "sources"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    pip(*options, "--target", str(folder / "site"), str(sources))
    return {**os.environ, "PYTHONPATH": str(folder / "site"), "FARCALL_HOME": str(folder / "home")}


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr


def run(environment: dict[str, str], *command: str | Path) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_plugin_is_listed_with_where_it_came_from(plugin: str, installed: dict[str, str]) -> None:
    listed = run(installed, Path(sys.executable).parent / "farcall-endpoint", "providers", "--json")

    assert f'"name": "{PLUGINS[plugin]}"' in listed
    assert "/sources" in listed


def test_it_can_be_configured_with_its_options_explained(plugin: str, installed: dict[str, str]) -> None:
    command = Path(sys.executable).parent / "farcall-endpoint"
    run(installed, command, "configure", "mine", "--provider", PLUGINS[plugin])

    written = Path(installed["FARCALL_HOME"], "mine", "config.yaml").read_text()

    assert f'type: "{PLUGINS[plugin]}"' in written
    assert {"third_party_provider": "nice:", "parsl_bridge": "options:"}[plugin] in written


def test_its_own_tests_pass(plugin: str, installed: dict[str, str]) -> None:
    tests = ROOT / "examples" / plugin / "tests"

    said = run(installed, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tests, tests)

    assert "passed" in said
