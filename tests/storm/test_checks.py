"""The storm's checks see what they are there to see."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.storm import checks, losses, marks
from tests.storm.client import SecondThoughts, Seen
from tests.storm.marks import Marks
from tests.storm.report import Struck
from tests.storm.schedule import Strike
from tests.storm.tasks import KINDS, Task

from farcall.errors import ServiceUnavailable
from farcall_webservice.ledger.dispatching import NOT_TWICE

KEY = 7
AGENTS_WORDS = "The task may have started and is not started again, as max_retries is 0"


def seen(kind: str, *, ended_at: float = 110.0, said: str = "", cancelled_at: float | None = None) -> Seen:
    """A task that was submitted at 100 and has ended."""
    return Seen(
        Task(KEY, KINDS[kind], ()),
        100.0,
        SimpleNamespace(task_id="some-id"),
        ended_at=ended_at,
        has_value=not said and cancelled_at is None,
        said=said,
        was_cancelled=cancelled_at is not None,
        cancelled_at=cancelled_at,
    )


def noted(*, starts: Sequence[float] = (), ends: Sequence[float] = ()) -> Marks:
    def of_key(moments: Sequence[float]) -> Mapping[int, Sequence[float]]:
        return {KEY: moments} if moments else {}

    return Marks(of_key(starts), of_key(ends))


def struck(fault: str, began_at: float, over_at: float, number: int = 0) -> Struck:
    return Struck(Strike(number, fault, 0, 0, over_at - began_at, 0, False), "somebody", began_at, over_at)


def test_what_a_function_notes_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "marks"
    path.touch()
    before = time.monotonic()

    KINDS["once"].function(str(path), KEY)

    found = marks.read(path)
    assert found.counts() == {KEY: 1}
    assert before - 0.01 <= found.starts[KEY][0] < found.ends[KEY][0] <= time.monotonic() + 0.01


def test_a_loss_is_explained_by_a_fault_on_the_agents_side() -> None:
    lost = seen("once", said=AGENTS_WORDS)

    assert not losses.unexplained([lost], noted(starts=[105.0]), [struck("kill agent", 105.0, 106.0)])


@pytest.mark.parametrize(
    "fault",
    [
        struck("unplug agent", 105.0, 106.0),
        struck("kill collector", 105.0, 106.0),
        struck("empty the broker", 105.0, 106.0),
        struck("kill agent", 60.0, 62.0),
        struck("kill agent", 130.0, 131.0),
    ],
    ids=lambda fault: f"{fault.planned.fault} at {fault.began_at:.0f}",
)
def test_a_loss_is_not_explained_by_a_fault_elsewhere_or_at_another_time(fault: Struck) -> None:
    assert losses.unexplained([seen("once", said=AGENTS_WORDS)], noted(starts=[105.0]), [fault])


def test_a_computed_result_may_be_lost_only_on_its_way_to_the_journal() -> None:
    lost, computed = seen("once", said=AGENTS_WORDS, ended_at=140.0), noted(starts=[105.0], ends=[105.1])
    later = struck("kill agent", 120.0, 121.0)

    assert "had computed its result" in losses.unexplained([lost], computed, [later])[0]
    assert not losses.unexplained([lost], computed, [struck("kill agent", 106.0, 107.0)])
    # Nothing is written down while the disk is full.
    assert not losses.unexplained([lost], computed, [struck("fill disk of agent", 104.0, 119.0), later])


def test_the_service_has_no_reason_to_take_a_task_for_lost() -> None:
    lost = seen("once", said=NOT_TWICE)

    assert losses.unexplained([lost], noted(starts=[105.0]), [struck("kill agent", 105.0, 106.0)])


def test_one_fault_explains_no_more_losses_than_can_have_been_running() -> None:
    some = [seen("once", said=AGENTS_WORDS) for _ in range(losses.MOST_PER_FAULT)]
    marked, once, twice = noted(starts=[105.0]), struck("kill agent", 105, 106), struck("kill worker", 105, 106, 1)

    assert not losses.unexplained(some, marked, [once])
    assert len(losses.unexplained([*some, some[0]], marked, [once])) == 1
    assert not losses.unexplained([*some, some[0]], marked, [once, twice])


def test_what_came_back_as_it_should_is_no_loss() -> None:
    assert not losses.unexplained([seen("once"), seen("brief", said="it raised")], noted(starts=[105.0]), [])


def test_a_second_start_is_seen_where_there_must_be_none() -> None:
    assert checks.starts([seen("once")], noted(starts=[105.0, 106.0]))
    assert not checks.starts([seen("brief")], noted(starts=[105.0, 106.0]))
    assert checks.starts([seen("brief")], noted())


def test_a_cancelled_task_may_start_only_until_its_agent_must_have_heard_of_it() -> None:
    cancelled = seen("unwanted", cancelled_at=102.0)
    soon, late = 102.0 + checks.UNTOLD_S - 1, 102.0 + checks.UNTOLD_S + 1

    assert not checks.what_is_cancelled_stays_so([cancelled], noted(starts=[101.0]), [])
    assert not checks.what_is_cancelled_stays_so([cancelled], noted(starts=[soon]), [])
    assert checks.what_is_cancelled_stays_so([cancelled], noted(starts=[late]), [])
    assert checks.what_is_cancelled_stays_so([cancelled], noted(starts=[101.0, late]), [])


def test_an_agent_hears_nothing_while_something_is_broken() -> None:
    cancelled, late = seen("unwanted", cancelled_at=102.0), 102.0 + checks.UNTOLD_S + 5
    outage = [struck("unplug agent", 103.0, 108.0), struck("kill web", 104.0, 107.0), struck("kill web", 300.0, 310.0)]

    assert not checks.what_is_cancelled_stays_so([cancelled], noted(starts=[late]), outage)
    assert checks.what_is_cancelled_stays_so([cancelled], noted(starts=[late + 1]), outage)


def test_who_changes_its_mind_goes_on_after_an_error_and_tells_of_it() -> None:
    thoughts = SecondThoughts()
    answers: list[BaseException | bool] = [ServiceUnavailable("later"), RuntimeError("never"), True]

    def cancel() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    one, other = (seen("unwanted", said="not yet") for _ in range(2))
    future = SimpleNamespace(task_id="some-id", cancel=cancel)
    thoughts.have(one, future, 0.0)
    thoughts.have(other, future, 0.1)
    deadline = time.monotonic() + 60
    while one.cancelled_at is None and time.monotonic() < deadline:
        time.sleep(0.01)

    assert one.cancelled_at is not None
    assert thoughts.troubles == [f"task {KEY} could not be cancelled: RuntimeError: never"]
