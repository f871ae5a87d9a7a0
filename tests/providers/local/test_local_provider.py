"""The local provider: the tests that every provider passes, and what is its own."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from farcall_endpoint.plugins import load_provider
from farcall_endpoint.provider import BlockSpec, BlockState, Provider, ProviderError
from farcall_endpoint.testing import ProviderContract
from farcall_provider_local import LocalConfig, LocalProvider
from farcall_provider_local import provider as provider_module

# An agent that starts one block and then waits to be killed; it says when the block runs.
AGENT = """
import os, sys, time
from pathlib import Path
from farcall_endpoint.provider import BlockSpec
from farcall_provider_local import LocalConfig, LocalProvider

provider = LocalProvider(LocalConfig())
provider.submit(BlockSpec(command=sys.argv[2], name="b", run_dir=Path(sys.argv[1])))
if os.fork() == 0:
    print("forked", os.getpid(), flush=True)
time.sleep(600)
"""


@pytest.fixture
def provider() -> Iterator[LocalProvider]:
    provider = LocalProvider(LocalConfig())
    yield provider
    provider.close()


def spec(run_dir: Path, command: str) -> BlockSpec:
    return BlockSpec(command=command, name="block", run_dir=run_dir)


def wait_for_line(path: Path, patience_s: float = 20) -> str:
    deadline = time.monotonic() + patience_s
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"nothing was written to {path}"
        time.sleep(0.01)
    return path.read_text().strip()


def wait_until_gone(pids: list[int], patience_s: float = 20) -> None:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=patience_s)
    assert alive == []


def wait_until_ended(provider: Provider, block_id: str) -> BlockState:
    return ProviderContract().wait_for(provider, block_id, lambda state: state.has_ended)


class TestLocalProvider(ProviderContract):
    def make_provider(self) -> Provider:
        return LocalProvider(LocalConfig())


def test_the_endpoint_finds_it_by_name() -> None:
    assert load_provider("local") is LocalProvider


def test_a_task_that_started_a_session_of_its_own_ends_with_its_block(provider: LocalProvider, tmp_path: Path) -> None:
    runaway = tmp_path / "runaway"
    block_id = provider.submit(spec(tmp_path, f"setsid sh -c 'echo $$ > {runaway}; sleep 600' & sleep 600"))
    pid = int(wait_for_line(runaway))

    provider.cancel([block_id])

    wait_until_gone([pid])
    assert wait_until_ended(provider, block_id) is BlockState.CANCELLED


def test_a_block_that_ignores_sigterm_is_killed(provider: LocalProvider, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    block_id = provider.submit(spec(tmp_path, f"trap '' TERM; echo $$ > {ready}; while :; do sleep 600; done"))
    pid = int(wait_for_line(ready))

    provider.cancel([block_id])

    wait_until_gone([pid])
    assert wait_until_ended(provider, block_id) is BlockState.CANCELLED


def test_what_a_block_left_in_the_background_ends_with_it(provider: LocalProvider, tmp_path: Path) -> None:
    left = tmp_path / "left"
    block_id = provider.submit(spec(tmp_path, f"setsid sleep 600 & echo $! > {left}"))
    pid = int(wait_for_line(left))

    state = wait_until_ended(provider, block_id)

    assert state is BlockState.DONE
    wait_until_gone([pid])


def test_a_block_dies_with_a_killed_agent_even_if_a_forked_child_of_that_lives_on(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    command = f"setsid sh -c 'echo $$ > {ready}; sleep 600' & sleep 600"
    with subprocess.Popen(
        [sys.executable, "-c", AGENT, str(tmp_path), command], stdout=subprocess.PIPE, text=True
    ) as agent:
        assert agent.stdout is not None
        child = int(agent.stdout.readline().split()[1])
        task = int(wait_for_line(ready))
        block = [process.pid for process in psutil.Process(agent.pid).children(recursive=True) if process.pid != child]

        agent.kill()

        wait_until_gone([*block, task])
        os.kill(child, signal.SIGKILL)


def test_a_killed_warden_takes_the_block_with_it(provider: LocalProvider, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    block_id = provider.submit(spec(tmp_path, f"echo $$ > {ready}; sleep 600"))
    pid = int(wait_for_line(ready))

    psutil.Process(pid).parent().kill()

    assert wait_until_ended(provider, block_id) is BlockState.FAILED
    wait_until_gone([pid])
    assert "SIGKILL" in provider.output(block_id)


def test_closing_ends_every_block(tmp_path: Path) -> None:
    provider = LocalProvider(LocalConfig())
    ready = tmp_path / "ready"
    provider.submit(spec(tmp_path, f"echo $$ > {ready}; sleep 600"))
    pid = int(wait_for_line(ready))

    provider.close()

    wait_until_gone([pid])


def test_the_output_says_how_a_block_ended(provider: LocalProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "echo something; exit 7"))

    wait_until_ended(provider, block_id)

    assert provider.output(block_id) == "something\n[exit code 7]"


def test_of_a_long_output_the_end_is_shown(provider: LocalProvider, tmp_path: Path) -> None:
    block_id = provider.submit(spec(tmp_path, "seq 1 100000; exit 1"))

    wait_until_ended(provider, block_id)

    assert provider.output(block_id).endswith("99999\n100000\n[exit code 1]")
    assert len(provider.output(block_id)) < 5000


def test_old_outputs_are_removed(provider: LocalProvider, tmp_path: Path) -> None:
    (tmp_path / "blocks").mkdir()
    for number in range(80):
        (tmp_path / "blocks" / f"old-{number}.log").touch()

    block_id = provider.submit(spec(tmp_path, "exit 0"))
    wait_until_ended(provider, block_id)

    assert len(list((tmp_path / "blocks").iterdir())) == 51


def test_the_walltime_ends_a_block(provider: LocalProvider, tmp_path: Path) -> None:
    block_id = provider.submit(BlockSpec(command="sleep 600", name="block", run_dir=tmp_path, walltime_s=1))

    assert wait_until_ended(provider, block_id) is BlockState.FAILED
    assert "walltime is over" in provider.output(block_id)


def test_blocks_do_not_inherit_the_secrets_of_the_agent(
    provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("FARCALL_TOKEN", "FARCALL_CLIENT_SECRET", "FUNCX_SDK_CLIENT_SECRET", "GLOBUS_COMPUTE_CLIENT_SECRET")
    for name in (*names, "SOMETHING_ELSE"):
        monkeypatch.setenv(name, f"value of {name}")

    block_id = provider.submit(spec(tmp_path, "env; exit 0"))
    wait_until_ended(provider, block_id)

    printed = (tmp_path / "blocks" / f"{block_id}.log").read_text()
    assert "value of SOMETHING_ELSE" in printed
    assert not [name for name in names if name in printed]


def test_of_blocks_that_have_ended_the_last_are_remembered(
    provider: LocalProvider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider_module, "_ENDED_BLOCKS_KEPT", 2)
    running = provider.submit(spec(tmp_path, "sleep 600"))
    ended = [provider.submit(spec(tmp_path, "exit 0")) for _ in range(4)]
    for block_id in ended:
        wait_until_ended(provider, block_id)

    provider.submit(spec(tmp_path, "exit 0"))

    states = list(provider.states([running, *ended]).values())
    assert states == [BlockState.RUNNING, *[BlockState.UNKNOWN] * 2, *[BlockState.DONE] * 2]


def test_another_system_than_linux_is_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")

    with pytest.raises(ProviderError, match=r"Linux only .* Darwin"):
        LocalProvider(LocalConfig())


def test_its_blocks_need_no_network() -> None:
    assert not LocalProvider.needs_network
    assert Provider.needs_network


def test_a_shell_that_is_not_there_is_named(tmp_path: Path) -> None:
    provider = LocalProvider(LocalConfig(shell="no-such-shell"))

    with pytest.raises(ProviderError, match="no-such-shell"):
        provider.submit(spec(tmp_path, "exit 0"))

    provider.close()


def test_two_nodes_are_refused(provider: LocalProvider, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="nodes_per_block"):
        provider.submit(BlockSpec(command="exit 0", name="block", run_dir=tmp_path, nodes=2))


def test_a_run_directory_that_cannot_be_made_is_named(provider: LocalProvider, tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ProviderError, match="file"):
        provider.submit(spec(tmp_path / "file", "exit 0"))
