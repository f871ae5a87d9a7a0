"""What `deploy/` holds fits this version of the commands."""

from __future__ import annotations

import configparser
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import needs
from typer.testing import CliRunner

from farcall_webservice.cli import app
from farcall_webservice.config import ServiceConfig

DEPLOY = Path(__file__).parents[1] / "deploy"
UNITS = sorted(DEPLOY.glob("*.service"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
VARIABLES = {f"FARCALL_{field.name.upper()}" for field in dataclasses.fields(ServiceConfig)}


def assert_is_a_command(words: list[str]) -> None:
    assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, words


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    needs("systemd", lambda: None if shutil.which("systemd-analyze") else "systemd-analyze is not installed")
    here = tmp_path / unit.name
    here.write_text(unit.read_text().replace("/opt/farcall/bin/farcall-webservice", sys.executable))

    done = subprocess.run(["systemd-analyze", "verify", here], check=False, capture_output=True, text=True)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_starts_a_command_that_there_is(unit: Path) -> None:
    parser = configparser.ConfigParser()
    parser.read(unit)

    assert_is_a_command(parser["Service"]["ExecStart"].split()[1:])


def test_the_composed_services_run_commands_that_there_are_with_settings_that_there_are() -> None:
    ours = {name: service for name, service in COMPOSE["services"].items() if service.get("image") == "farcall"}

    assert set(ours) == {"upgrade", "web", "collect"}
    for service in ours.values():
        assert_is_a_command(service["command"])
        assert set(service["environment"]) <= VARIABLES
        assert set(service["depends_on"]) <= set(COMPOSE["services"])


def test_the_example_of_an_environment_names_settings_that_there_are() -> None:
    named = re.findall(r"^#?(FARCALL_\w+)=", (DEPLOY / "environment.example").read_text(), re.MULTILINE)

    assert named
    assert set(named) <= VARIABLES


def test_the_database_and_the_broker_have_passwords_of_their_own_and_users_get_none_of_them() -> None:
    composed = COMPOSE["services"]["web"]["environment"]
    lines = (DEPLOY / "environment.example").read_text().splitlines()
    example = dict(line.lstrip("#").split("=", 1) for line in lines if re.match("#?FARCALL_", line))

    for settings in (composed, example):
        database, broker = (passwords(settings[f"FARCALL_{name}_URL"]) for name in ("DATABASE", "BROKER"))
        assert database and broker and database != broker
        assert passwords(settings["FARCALL_BROKER_ADMIN_URL"])
        assert not passwords(settings["FARCALL_BROKER_PUBLIC_URL"])


def passwords(url: str) -> list[str]:
    return re.findall("://[^/@:]*:([^/@]*)@", url)
