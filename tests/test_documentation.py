"""What the documentation shows works, and what it points to exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from farcall_endpoint.loading import read_config_file
from farcall_endpoint.plugins import provider_config

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "providers").glob("*/README.md"),
        *(ROOT / "examples").glob("*/README.md"),
    ]
)


def examples_of(page: Path) -> str:
    """The Python blocks of a page that are marked as examples, as one program."""
    return "\n".join(re.findall(r"<!-- example -->\n```python\n(.*?)```", page.read_text(), re.DOTALL))


def configurations_of(page: Path) -> list[str]:
    """The endpoints' configurations that a page shows, apart from those for a plugin that is only an example."""
    if page.is_relative_to(ROOT / "examples"):
        return []
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
    return [block for block in blocks if re.search(r"^engine:", block, re.MULTILINE)]


def names_of_tests(page: Path) -> list[tuple[str, str]]:
    """File and function of each test that a page points to."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())


NAMING_TESTS = [page for page in PAGES if names_of_tests(page)]
WITH_EXAMPLES = [page for page in PAGES if examples_of(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text())

    missing = [link for link in links if not (page.parent / link).exists()]

    assert not missing


@pytest.mark.parametrize("page", NAMING_TESTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    def is_there(file: str, test: str) -> bool:
        path = ROOT / file
        return path.exists() and re.search(rf"^ *def {test}\(", path.read_text(), re.MULTILINE) is not None

    missing = [f"{file}::{test}" for file, test in names_of_tests(page) if not is_there(file, test)]

    assert not missing


@pytest.mark.parametrize(
    ("page", "text"),
    [
        pytest.param(page, text, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, text in enumerate(configurations_of(page))
    ],
)
def test_a_configuration_that_a_page_shows_is_one(page: Path, text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)

    provider_config(read_config_file(path, tmp_path).provider)


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run(page: Path, service, endpoint, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    program = tmp_path / "example.py"
    program.write_text(examples_of(page).replace("YOUR-ENDPOINT-ID", endpoint.id))

    done = subprocess.run(
        [sys.executable, program], env=service.environment, check=False, capture_output=True, text=True, timeout=100
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert "Traceback" not in done.stderr


def test_the_tour_in_the_examples_runs(service, endpoint) -> None:  # type: ignore[no-untyped-def]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "tutorial.py", endpoint.id],
        env=service.environment,
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stderr
    assert "Hello World!" in done.stdout
    assert "0 1 4 9 16 25 36 49 64 81" in done.stdout


@pytest.mark.parametrize("command", ["farcall", "farcall-webservice", "farcall-endpoint"])
def test_every_command_that_the_documentation_names_exists(command: str) -> None:
    named = {word for page in PAGES for word in re.findall(rf"^\$ {command} ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert named

    for word in sorted(named):
        done = subprocess.run(
            [Path(sys.executable).parent / command, word, "--help"],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{command} {word}: {done.stderr}"
