"""An endpoint's configuration: what may stand in it, and what is said of a mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from farcall.errors import ConfigurationError
from farcall_endpoint.config import EngineConfig, seconds_of
from farcall_endpoint.launchers import Launcher
from farcall_endpoint.loading import load_config

# As somebody who comes from Globus Compute has it.
GLOBUS = """
display_name: Midway
heartbeat_period: 15
allowed_functions:
  - 3E0A4D5C-0B4B-4B4C-8E5A-000000000001
engine:
  type: GlobusComputeEngine
  max_workers_per_node: 2
  cores_per_worker: 2
  available_accelerators: 4
  encrypted: false
  address: 10.0.0.1
  max_retries_on_system_failure: 5
  job_status_kwargs:
    max_idletime: 60.0
    strategy_period: 1
  provider:
    type: SlurmProvider
    partition: caslake
    init_blocks: 0
    min_blocks: 0
    max_blocks: 3
    nodes_per_block: 2
    walltime: 00:30:00
    worker_init: module load python
    launcher:
      type: SrunLauncher
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "mine"
    directory.mkdir()
    return directory


def complaint(directory: Path, text: str, name: str = "config.yaml") -> str:
    (directory / name).write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load_config(directory)
    return str(caught.value)


def test_an_empty_file_means_the_defaults(directory: Path) -> None:
    (directory / "config.yaml").write_text("")

    config = load_config(directory)

    assert config.name == "mine"
    assert config.engine == EngineConfig()
    assert config.provider.type == "local"


def test_a_configuration_of_globus_compute_is_understood(directory: Path) -> None:
    (directory / "config.yaml").write_text(GLOBUS)

    config = load_config(directory)

    assert (config.display_name, config.heartbeat_period_s, config.max_retries) == ("Midway", 15, 5)
    assert config.allowed_functions == ("3e0a4d5c-0b4b-4b4c-8e5a-000000000001",)
    assert config.engine == EngineConfig(
        max_workers_per_node=2,
        cores_per_worker=2.0,
        available_accelerators=4,
        encrypted=False,
        address="10.0.0.1",
        max_idletime_s=60.0,
        strategy_period_s=1.0,
        init_blocks=0,
        max_blocks=3,
        nodes_per_block=2,
        walltime_s=1800,
        worker_init="module load python",
        launcher=Launcher("SrunLauncher"),
    )
    assert (config.provider.type, dict(config.provider.options)) == ("slurm", {"partition": "caslake"})


def test_the_text_of_the_file_is_kept_for_the_service(directory: Path) -> None:
    (directory / "config.yaml").write_text(GLOBUS)

    assert load_config(directory).text == GLOBUS


def test_a_config_py_says_the_same_in_python(directory: Path) -> None:
    (directory / "config.py").write_text(
        "from farcall_endpoint.config import Config, Engine, Provider\n"
        "config = Config(display_name='Mine', engine=Engine(cores_per_worker=0.5,"
        " provider=Provider(type='local', max_blocks=2, shell='sh')))\n"
    )

    config = load_config(directory)

    assert (config.display_name, config.engine.cores_per_worker, config.engine.max_blocks) == ("Mine", 0.5, 2)
    assert dict(config.provider.options) == {"shell": "sh"}


def test_a_misspelt_key_is_answered_with_line_and_nearest_key(directory: Path) -> None:
    said = complaint(directory, "display_name: x\nengine:\n  max_workers_per_nod: 2\n")

    assert f"{directory}/config.yaml, line 3: engine.max_workers_per_nod: " in said
    assert "did you mean 'max_workers_per_node'?" in said


def test_a_key_like_no_other_is_answered_with_those_that_there_are(directory: Path) -> None:
    assert "display_name" in complaint(directory, "zzzzzz: 1\n")


@pytest.mark.parametrize("key", ["max_blocks: 2", "max_idletime: 2"])
def test_a_key_in_the_wrong_place_is_told_where_it_belongs(directory: Path, key: str) -> None:
    assert "one level down, under engine." in complaint(directory, f"engine:\n  {key}\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("engine:\n  max_workers_per_node: two\n", "expected a whole number, got str 'two'"),
        ("engine:\n  max_workers_per_node: 0\n", "must be at least 1, got 0"),
        ("engine:\n  max_workers_per_node: true\n", "expected a whole number, got bool True"),
        ("engine:\n  cores_per_worker: .nan\n", "expected a number, got float nan"),
        ("engine:\n  encrypted: 1\n", "expected true or false, got int 1"),
        ("engine:\n  worker_port_range: [55000, 54000]\n", "the lower first"),
        ("engine:\n  cpu_affinity: tight\n", "expected none, block"),
        ("engine:\n  type: ThreadPoolEngine\n", "there is no engine called 'ThreadPoolEngine'"),
        ("engine:\n  provider:\n    walltime: soon\n", "expected HH:MM:SS"),
        ("engine:\n  provider:\n    min_blocks: 2\n", "2 is more than max_blocks, 1"),
        ("engine:\n  provider:\n    init_blocks: 2\n", "2 is more than max_blocks, 1"),
        ("engine:\n  provider:\n    parallelism: 2\n", "must be between 0 and 1"),
        ("engine:\n  provider:\n    launcher: {name: x}\n", "the name of a launcher"),
        ("engine:\n  provider: local\n", "expected keys with values, got str 'local'"),
        ("engine:\n  provider:\n    type: [x]\n", "expected the name of a provider"),
        ("allowed_functions: [add]\n", "expected a list of function ids"),
        ("heartbeat_period: null\n", "expected a whole number, got nothing"),
        ("display_name: a\ndisplay_name: b\n", "line 2: display_name is there twice, first on line 1"),
        ("- a\n- b\n", "expected keys with values, got list"),
        ("engine: [\n", "this is not YAML"),
    ],
)
def test_a_wrong_value_is_named_with_its_file(directory: Path, text: str, said: str) -> None:
    answer = complaint(directory, text)

    assert said in answer
    assert str(directory / "config.yaml") in answer


def test_an_address_has_to_be_one_that_the_engine_can_bind_to(directory: Path) -> None:
    (directory / "config.yaml").write_text("engine: {address: localhost}")

    assert load_config(directory).engine.address == "127.0.0.1"
    assert "nonsense.invalid" in complaint(directory, "engine: {address: nonsense.invalid}")


def test_a_file_that_is_no_text_is_named(directory: Path) -> None:
    (directory / "config.yaml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_config(directory)


def test_a_config_py_that_raises_is_named_with_its_line(directory: Path) -> None:
    assert "config.py, line 2: ZeroDivisionError" in complaint(directory, "x = 1\nx / 0\n", "config.py")


def test_a_config_py_that_is_not_python_is_named_with_its_line(directory: Path) -> None:
    assert "config.py, line 1: " in complaint(directory, "config = (\n", "config.py")


def test_a_config_py_without_a_config_is_told_what_to_write(directory: Path) -> None:
    assert "config = Config(" in complaint(directory, "x = 1\n", "config.py")


def test_two_configurations_are_one_too_many(directory: Path) -> None:
    (directory / "config.py").write_text("")

    assert "a config.yaml and a config.py" in complaint(directory, "")


def test_no_configuration_is_answered_with_the_command_that_makes_one(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape("farcall-endpoint configure mine")):
        load_config(directory)


def test_a_walltime_that_yaml_reads_as_a_number_of_seconds_is_one(directory: Path) -> None:
    (directory / "config.yaml").write_text("engine: {provider: {walltime: 1:00:00}}\n")

    assert load_config(directory).engine.walltime_s == 3600


def test_a_walltime_may_have_days() -> None:
    assert seconds_of("1-02:00:00") == 26 * 3600
