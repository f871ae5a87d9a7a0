"""Why a task waits, in words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import update

from farcall.wire import Transition
from farcall_webservice.models import Endpoint, Task

if TYPE_CHECKING:
    from conftest import Person, Service


class Waiting:
    """An endpoint of an agent of ours with two tasks; the second one is asked about."""

    def __init__(self, service: Service, person: Person) -> None:
        self._service, self._person = service, person
        self.endpoint_id, function_id = person.endpoint(metadata={"accepts": ["task_batch"]}), person.function()
        receipt = person.submit(self.endpoint_id, function_id, 2)
        self.submission_id = receipt["request_id"]
        self.first, self.second = receipt["tasks"][function_id]

    def arrive(self) -> None:
        (batch,) = self._service.ledger.undispatched(alone=True)
        self._service.ledger.mark_dispatched([batch.submission_id])

    def say(self, state: str, *task_ids: str, note: str = "") -> None:
        transition = Transition(time.time_ns(), state, "endpoint", note)
        ids = task_ids or (self.first, self.second)
        self._service.ledger.record_states(self.endpoint_id, {task_id: [transition] for task_id in ids})

    def heartbeat(self, *, age_s: float = 0.0, **report: Any) -> None:
        heard = {"last_heartbeat_at": time.time() - age_s, "heartbeat_period": 30.0, "last_report": report}
        with self._service.database.writing() as connection:
            connection.execute(update(Endpoint).where(Endpoint.id == self.endpoint_id).values(**heard))

    def reason(self) -> str:
        return str(self._person.get(f"/v2/tasks/{self.second}").done()["reason"])


@pytest.fixture
def waiting(service: Service, ada: Person) -> Waiting:
    return Waiting(service, ada)


def test_a_task_that_was_just_written_is_about_to_be_sent(waiting: Waiting) -> None:
    assert "about to be sent" in waiting.reason()


def test_a_task_that_the_broker_does_not_take_waits_for_it(service: Service, waiting: Waiting) -> None:
    with service.database.writing() as connection:
        connection.execute(update(Task).values(created_at=time.time() - 60))

    assert "The broker has not taken it since" in waiting.reason()


def test_a_task_that_is_held_back_says_so(service: Service, waiting: Waiting) -> None:
    waiting.heartbeat()
    service.ledger.hold_back([waiting.submission_id])

    assert "kept back until there is room, behind 1 others" in waiting.reason()


def test_a_task_of_an_endpoint_that_was_never_heard_of_says_so(waiting: Waiting) -> None:
    waiting.arrive()

    assert "has not been heard of since" in waiting.reason()


def test_a_task_of_an_offline_endpoint_says_since_when_it_is(waiting: Waiting) -> None:
    waiting.arrive()
    waiting.heartbeat(age_s=3600)

    assert "offline since" in waiting.reason()
    assert "behind 1 others" in waiting.reason()
    waiting.say("waiting-for-nodes")
    assert "It has the task" in waiting.reason()


def test_a_task_on_the_queue_of_an_endpoint_that_is_online_is_behind_others(waiting: Waiting) -> None:
    waiting.arrive()
    waiting.heartbeat()
    assert "online, behind 1 others" in waiting.reason()

    waiting.say("waiting-for-nodes", waiting.first)

    assert waiting.reason() == "It waits on the queue of its endpoint, which is online"


def test_without_workers_the_words_of_the_scheduler_are_told(waiting: Waiting) -> None:
    waiting.say("waiting-for-nodes")
    block = {"id": "17", "state": "pending", "message": "Resources"}
    waiting.heartbeat(total_workers=0, idle_workers=0, blocks=[block, "nonsense"])

    assert "No worker is there yet: block 17 is pending (Resources), behind 1 others" in waiting.reason()

    waiting.heartbeat(total_workers=0, idle_workers=0, blocks=[block], troubles=["sbatch said: no such partition"])
    assert "No worker is there yet: sbatch said: no such partition" in waiting.reason()
    waiting.heartbeat(total_workers=0)
    assert "not said yet" in waiting.reason()


def test_busy_workers_are_counted(waiting: Waiting) -> None:
    waiting.say("waiting-for-launch")
    waiting.heartbeat(total_workers=8, idle_workers=0)

    assert waiting.reason() == "All 8 workers of the endpoint are busy, behind 1 others"


def test_a_task_that_is_tried_again_says_what_ended_the_attempt_before(waiting: Waiting) -> None:
    waiting.say("running", note="on n1")
    waiting.say("waiting-for-nodes", note="attempt 1 of 3 ended: worker 2 was killed")
    waiting.heartbeat(total_workers=8, idle_workers=1)

    assert "Before that: attempt 1 of 3 ended: worker 2 was killed" in waiting.reason()


def test_a_running_task_says_where_and_since_when(waiting: Waiting) -> None:
    waiting.say("running", note="on n1")
    waiting.heartbeat(total_workers=1, idle_workers=0)

    assert waiting.reason().startswith("Running on n1 since 20")


def test_a_task_whose_history_has_no_room_for_it_runs_since_it_changed(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.collecting.MAX_CHARACTERS", 0)
    waiting.say("running", note="on n1")
    waiting.heartbeat(total_workers=1, idle_workers=0)

    assert waiting.reason().startswith("Running since 20")


def test_a_report_that_says_nothing_of_use_does_no_harm(waiting: Waiting) -> None:
    waiting.say("waiting-for-nodes")
    waiting.heartbeat(total_workers="many", blocks=7, troubles={"a": 1})

    assert "about to start it" in waiting.reason()


def test_no_more_are_counted_than_is_cheap(
    service: Service, ada: Person, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(service.ledger), "MOST_COUNTED", 0)
    waiting.arrive()
    waiting.heartbeat()

    assert "behind more than 0 others" in waiting.reason()


def test_only_an_unfinished_task_has_such_a_reason(service: Service, ada: Person, waiting: Waiting) -> None:
    service.finish(waiting.second)

    assert "reason" not in ada.get(f"/v2/tasks/{waiting.second}").done()
