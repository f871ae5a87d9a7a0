"""Tests that every provider passes; the author of a plugin inherits them.

A whole test module of a plugin::

    class TestAtdProvider(ProviderContract):
        def make_provider(self) -> Provider:
            return AtdProvider(AtdConfig())
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from ..provider import BlockSpec, BlockState, Provider


class ProviderContract:
    """What the engine relies on, with real blocks on the real system."""

    #: How long a block may take to start, or to be gone.
    patience_s: ClassVar[float] = 60.0

    @abstractmethod
    def make_provider(self) -> Provider:
        """A provider that is ready to use; the tests close it."""

    @pytest.fixture
    def provider(self) -> Iterator[Provider]:
        provider = self.make_provider()
        yield provider
        provider.close()

    def spec(self, run_dir: Path, command: str, *, worker_init: str = "") -> BlockSpec:
        """One short block; a subclass may add what its system demands."""
        return BlockSpec(command=command, name="contract", run_dir=run_dir, worker_init=worker_init)

    def wait_for(self, provider: Provider, block_id: str, wanted: Callable[[BlockState], bool]) -> BlockState:
        """The block's state once it is as wanted. Schedulers can only be asked, so this asks again and again."""
        deadline = time.monotonic() + self.patience_s
        while not wanted(state := provider.states([block_id])[block_id]):
            assert time.monotonic() < deadline, f"block {block_id} is still {state}"
            time.sleep(0.02)
        return state

    def test_a_block_that_ends_well_is_done(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "exit 0"))

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.DONE

    def test_a_block_that_ends_badly_has_failed(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "exit 3"))

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.FAILED

    def test_what_a_failed_block_printed_can_be_read(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "echo to stdout; echo to stderr >&2; exit 3"))

        self.wait_for(provider, block_id, lambda state: state.has_ended)

        assert "to stdout" in provider.output(block_id)
        assert "to stderr" in provider.output(block_id)

    def test_worker_init_runs_first_in_the_same_shell(self, provider: Provider, tmp_path: Path) -> None:
        spec = self.spec(tmp_path, 'test "$PREPARED" = yes', worker_init="PREPARED=yes")

        block_id = provider.submit(spec)

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.DONE

    def test_a_running_block_is_running_until_it_is_cancelled(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "sleep 600"))
        self.wait_for(provider, block_id, lambda state: state is BlockState.RUNNING)

        provider.cancel([block_id])

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.CANCELLED

    def test_cancelling_twice_is_no_error(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "sleep 600"))

        provider.cancel([block_id])
        provider.cancel([block_id])
        self.wait_for(provider, block_id, lambda state: state.has_ended)
        provider.cancel([block_id])

        assert provider.states([block_id]) == {block_id: BlockState.CANCELLED}

    def test_cancelling_a_block_that_is_done_leaves_it_done(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "exit 0"))
        self.wait_for(provider, block_id, lambda state: state.has_ended)

        provider.cancel([block_id])

        assert provider.states([block_id]) == {block_id: BlockState.DONE}

    def test_an_unknown_block_is_unknown_and_not_done(self, provider: Provider) -> None:
        assert provider.states(["999999999"]) == {"999999999": BlockState.UNKNOWN}

    def test_cancelling_an_unknown_block_is_no_error(self, provider: Provider) -> None:
        provider.cancel(["999999999"])

    def test_no_ids_give_no_states(self, provider: Provider) -> None:
        assert provider.states([]) == {}

    def test_two_blocks_have_two_ids_and_states_of_their_own(self, provider: Provider, tmp_path: Path) -> None:
        first = provider.submit(self.spec(tmp_path, "exit 0"))
        second = provider.submit(self.spec(tmp_path, "exit 1"))

        for block_id in (first, second):
            self.wait_for(provider, block_id, lambda state: state.has_ended)

        assert provider.states([first, second]) == {first: BlockState.DONE, second: BlockState.FAILED}
