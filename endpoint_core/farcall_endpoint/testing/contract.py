"""Tests that every provider passes; the author of a plugin inherits them.

A whole test module of a plugin::

    class TestAtdProvider(ProviderContract):
        def make_provider(self) -> Provider:
            return AtdProvider(AtdConfig())

Where a test knows how to keep blocks waiting, or to have the system go away, it says so with :meth:`held` and
:meth:`away`; what needs them is skipped otherwise.
"""

from __future__ import annotations

import dataclasses
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

import pytest

from ..provider import BlockSpec, BlockState, Provider, ProviderError, SystemUnavailable

#: Everything that may be in a block's name, and whose block it is.
ODD_NAME, OWNER, SOMEBODY_ELSE = "farcall.My_end-point.2.0", "0a1b2c3d4e5f", "0a1b2c3d4e5e"


class ProviderContract:
    """What the engine relies on, with real blocks on the real system."""

    #: How long a block may take to start, or to be gone.
    patience_s: ClassVar[float] = 60.0

    #: What is hard to take in the name of a directory.
    odd_directory: ClassVar[str] = "run of today"

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

    def impossible_spec(self, run_dir: Path) -> BlockSpec:
        """A block that the system refuses at once."""
        pytest.skip("nobody has said what this system refuses: override impossible_spec")

    def held(self) -> AbstractContextManager[object]:
        """Within, blocks wait and do not start."""
        pytest.skip("nobody has said how to have blocks wait: override held")

    def away(self) -> AbstractContextManager[object]:
        """Within, the system cannot be asked."""
        pytest.skip("nobody has said how to have the system go away: override away")

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

    def test_what_a_silent_block_ended_with_can_be_read(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "exit 3"))

        self.wait_for(provider, block_id, lambda state: state.has_ended)

        assert "3" in provider.output(block_id)

    def test_of_an_unknown_block_there_is_nothing_to_tell(self, provider: Provider) -> None:
        assert provider.output("999999999") == ""
        assert provider.reason("999999999") == ""

    def test_the_command_is_taken_as_it_is(self, provider: Provider, tmp_path: Path) -> None:
        odd = """'a' "b" \\ %j $HOME `c` ä #d"""
        command = f"cat > '{tmp_path}/said' <<'END'\n{odd}\nEND\n"

        block_id = provider.submit(self.spec(tmp_path, command))

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.DONE
        assert (tmp_path / "said").read_text() == f"{odd}\n"

    def test_a_name_may_have_every_character_that_is_allowed(self, provider: Provider, tmp_path: Path) -> None:
        spec = dataclasses.replace(self.spec(tmp_path, "exit 0"), name=ODD_NAME, owner=OWNER)

        block_id = provider.submit(spec)

        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.DONE

    def test_the_run_directory_need_not_exist(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path / "runs" / self.odd_directory, "echo something; exit 1"))

        self.wait_for(provider, block_id, lambda state: state.has_ended)

        assert "something" in provider.output(block_id)

    def test_two_blocks_may_have_one_name(self, provider: Provider, tmp_path: Path) -> None:
        # Not the number of a process: in a container each is the first.
        spec = self.spec(tmp_path, "cat /proc/sys/kernel/random/uuid; exit 1")

        first, second = provider.submit(spec), provider.submit(spec)
        for block_id in (first, second):
            self.wait_for(provider, block_id, lambda state: state.has_ended)

        assert first != second
        assert provider.output(first) != provider.output(second)

    def test_a_reason_is_a_text_whatever_a_block_does(self, provider: Provider, tmp_path: Path) -> None:
        block_id = provider.submit(self.spec(tmp_path, "sleep 600"))
        self.wait_for(provider, block_id, lambda state: state is BlockState.RUNNING)

        assert isinstance(provider.reason(block_id), str)
        provider.cancel([block_id])
        self.wait_for(provider, block_id, lambda state: state.has_ended)

    def test_a_waiting_block_is_pending_for_a_reason_until_it_is_cancelled(
        self, provider: Provider, tmp_path: Path
    ) -> None:
        with self.held():
            block_id = provider.submit(self.spec(tmp_path, f"touch '{tmp_path}/began'"))
            self.wait_for(provider, block_id, lambda state: provider.reason(block_id) != "")

            assert provider.states([block_id]) == {block_id: BlockState.PENDING}
            provider.cancel([block_id])
            assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.CANCELLED

        assert not (tmp_path / "began").exists()

    def test_a_refusal_is_told_in_the_words_of_the_system(self, provider: Provider, tmp_path: Path) -> None:
        spec = self.impossible_spec(tmp_path)

        with pytest.raises(ProviderError, match=r"\w+") as caught:
            provider.submit(spec)

        assert not isinstance(caught.value, SystemUnavailable)

    def test_a_system_that_is_away_says_nothing_against_a_block(self, provider: Provider, tmp_path: Path) -> None:
        # Before there is a block, as the test may end here.
        away = self.away()
        block_id = provider.submit(self.spec(tmp_path, "sleep 600"))
        self.wait_for(provider, block_id, lambda state: state is BlockState.RUNNING)

        with away:
            for ask in (
                lambda: provider.submit(self.spec(tmp_path, "exit 0")),
                lambda: provider.states([block_id]),
                lambda: provider.owned(OWNER),
                lambda: provider.cancel([block_id]),
            ):
                with pytest.raises(SystemUnavailable):
                    ask()

        assert provider.states([block_id]) == {block_id: BlockState.RUNNING}
        provider.cancel([block_id])
        assert self.wait_for(provider, block_id, lambda state: state.has_ended) is BlockState.CANCELLED

    def test_a_later_agent_finds_the_blocks_of_an_earlier_one_and_ends_them(
        self, provider: Provider, tmp_path: Path
    ) -> None:
        if type(provider).owned is Provider.owned:
            pytest.skip("no block of this provider outlives its agent")
        mine, ended, others = (
            provider.submit(dataclasses.replace(self.spec(tmp_path, command), name=ODD_NAME, owner=owner))
            for command, owner in (("sleep 600", OWNER), ("exit 0", OWNER), ("sleep 600", SOMEBODY_ELSE))
        )
        self.wait_for(provider, ended, lambda state: state.has_ended)
        later = self.make_provider()

        try:
            assert later.owned(OWNER) == [mine]
            self.wait_for(later, mine, lambda state: state is BlockState.RUNNING)
            later.cancel([mine])
            assert self.wait_for(later, mine, lambda state: state.has_ended) is BlockState.CANCELLED
            assert later.owned(OWNER) == []
        finally:
            later.close()
            provider.cancel([others])
        self.wait_for(provider, others, lambda state: state.has_ended)

    def test_closing_twice_is_no_error(self, provider: Provider) -> None:
        provider.close()
        provider.close()
