"""What is removed when its time is over, and what goes with it."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import func, select, update

from farcall.wire import Command, Output, Transition
from farcall_webservice.ledger import Ledger, UnknownGroup
from farcall_webservice.models import Base, Cancellation, Endpoint, Submission, Task, TaskGroup, TaskOutput
from farcall_webservice.sweeping import Sweeper

if TYPE_CHECKING:
    from conftest import Person, Service

DAY = 86_400.0
AGENT = {"metadata": {"accepts": ["task_batch"]}}


class Old:
    """A person's tasks, which can be made older than they are."""

    def __init__(self, service: Service, person: Person) -> None:
        self.service, self.person = service, person
        self.endpoint_id, self.function_id = person.endpoint(**AGENT), person.function()
        self.told: list[str] = []
        self.commanded: list[tuple[str, Command]] = []
        self.sweeper = Sweeper(
            service.config,
            service.ledger,
            tell=self.told.extend,
            command=lambda agent_id, command: self.commanded.append((agent_id, command)),
        )

    def submit(self, count: int = 1, **more: Any) -> tuple[str, list[str]]:
        receipt = self.person.submit(self.endpoint_id, self.function_id, count, **more)
        return receipt["task_group_id"], receipt["tasks"][self.function_id]

    def age(self, days: float) -> None:
        """Everything that is there is so many days older from now on."""
        by = days * DAY
        with self.service.database.writing() as connection:
            for kind, columns in (
                (Task, ("created_at", "changed_at", "completed_at")),
                (Submission, ("created_at",)),
                (TaskGroup, ("created_at",)),
                (Cancellation, ("created_at",)),
            ):
                older = {name: getattr(kind, name) - by for name in columns}
                connection.execute(update(kind).values(**older))

    def count(self, kind: type[Base]) -> int:
        with self.service.database.reading() as connection:
            return int(connection.execute(select(func.count()).select_from(kind)).scalar_one())

    def state(self, task_id: str) -> str:
        return str(self.person.get(f"/v2/tasks/{task_id}").done()["status"])


@pytest.fixture
def old(service: Service, ada: Person, monkeypatch: pytest.MonkeyPatch) -> Old:
    monkeypatch.setattr("farcall_webservice.sweeping.PAUSE_S", 0.0)
    return Old(service, ada)


def test_a_result_can_be_read_any_number_of_times_until_its_time_is_over(service: Service, old: Old) -> None:
    group_id, (task_id,) = old.submit()
    service.finish(task_id)
    service.ledger.record_output(old.endpoint_id, [Output(task_id, "stdout", 0, "x")])
    old.age(29)
    old.sweeper.sweep()
    for _ in range(3):
        assert old.state(task_id) == "success"

    old.age(2)
    old.sweeper.sweep()

    assert "30 days" in old.person.get(f"/v2/tasks/{task_id}").refused(404, "TASK_NOT_FOUND")
    assert "30 days" in old.person.get(f"/v2/taskgroup/{group_id}/results").refused(404, "TASK_GROUP_NOT_FOUND")
    for kind in (Task, TaskOutput, Submission, TaskGroup):
        assert old.count(kind) == 0, kind


def test_a_task_that_nothing_was_heard_of_is_given_up_and_its_agent_told(service: Service, old: Old) -> None:
    group_id, (task_id,) = old.submit()
    old.age(13)
    old.sweeper.sweep()
    assert old.state(task_id) == "received"

    old.age(2)
    old.sweeper.sweep()

    task = old.person.get(f"/v2/tasks/{task_id}").done()
    assert (task["status"], task["error_code"]) == ("failed", "TASK_EXPIRED")
    assert "14 days" in task["exception"]
    assert (old.told, old.commanded) == ([group_id], [(old.endpoint_id, Command("cancel"))])
    assert service.ledger.cancellations(old.endpoint_id, limit=10) == [task_id]


def test_a_task_that_runs_is_heard_of_for_as_long_as_its_endpoint_is(service: Service, old: Old) -> None:
    _, (running, waiting) = old.submit(2)
    transition = Transition(time.time_ns(), "running", "endpoint")
    service.ledger.record_states(old.endpoint_id, {running: [transition]})
    with service.database.writing() as connection:
        connection.execute(update(Endpoint).values(last_heartbeat_at=time.time()))
    old.age(20)

    old.sweeper.sweep()

    assert (old.state(running), old.state(waiting)) == ("running", "failed")

    with service.database.writing() as connection:
        connection.execute(update(Endpoint).values(last_heartbeat_at=time.time() - 20 * DAY))
    old.sweeper.sweep()
    assert old.state(running) == "failed"


def test_everything_goes_in_small_parts(service: Service, old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farcall_webservice.ledger.removing.AT_ONCE", 3)
    monkeypatch.setattr("farcall_webservice.sweeping.AT_ONCE", 3)
    ids = [task_id for _ in range(5) for task_id in old.submit(2)[1]]
    old.age(15)
    assert len(service.ledger.expire(14 * DAY).task_ids) == 3
    old.sweeper.sweep()
    assert {old.state(task_id) for task_id in ids} == {"failed"}
    old.age(31)

    assert service.ledger.remove_tasks(time.time() - 30 * DAY) == 3
    old.sweeper.sweep()

    for kind in (Task, Submission, TaskGroup):
        assert old.count(kind) == 0, kind
    # Until the agent has heard of it, or its endpoint is deleted.
    assert old.count(Cancellation) == 10


def test_an_old_group_with_tasks_stays(service: Service, old: Old) -> None:
    group_id, (task_id,) = old.submit()
    service.finish(task_id)
    old.age(40)
    _, (young,) = old.submit(task_group_id=group_id)

    old.sweeper.sweep()

    old.person.get(f"/v2/tasks/{task_id}").refused(404, "TASK_NOT_FOUND")
    assert old.state(young) == "received"
    service.finish(young)
    assert old.state(young) == "success"


def test_what_comes_for_a_group_that_was_removed_is_refused(service: Service, old: Old) -> None:
    group_id, (task_id,) = old.submit()
    service.finish(task_id)
    old.age(40)
    # Another process removes it, so that this one still knows its owner.
    Sweeper(service.config, Ledger(service.database), tell=print, command=print).sweep()

    body = {"tasks": {old.function_id: ["x"]}, "task_group_id": group_id}
    message = old.person.post(f"/v3/endpoints/{old.endpoint_id}/submit", body).refused(404, "TASK_GROUP_NOT_FOUND")

    assert "30 days" in message
    with pytest.raises(UnknownGroup):
        service.ledger.submit(
            owner_id=old.person.id,
            endpoint_id=old.endpoint_id,
            payloads={old.function_id: ["x"]},
            task_group_id=group_id,
        )


def test_an_agent_that_was_away_for_longer_than_anything_is_kept_still_hears_what_was_cancelled(
    service: Service, old: Old
) -> None:
    _, (task_id,) = old.submit()
    service.ledger.cancel([task_id])
    old.age(400)

    old.sweeper.sweep()

    assert old.count(Task) == 0
    assert service.ledger.cancellations(old.endpoint_id, limit=10) == [task_id]
    assert service.ledger.confirm_cancellations(old.endpoint_id, [task_id]) == 1


def test_cancellations_go_with_their_endpoint(service: Service, old: Old) -> None:
    _, (task_id,) = old.submit()
    service.ledger.cancel([task_id])
    with service.database.writing() as connection:
        connection.execute(update(Endpoint).values(deleted_at=time.time()))

    old.sweeper.sweep()

    assert service.ledger.cancellations(old.endpoint_id, limit=10) == []
    assert old.state(task_id) == "cancelled"


def test_a_clock_that_jumps_ahead_by_more_than_a_lifetime_makes_nothing_old(
    service: Service, old: Old, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (ended, waiting) = old.submit(2)
    service.finish(ended)
    now = time.time()
    monkeypatch.setattr("farcall_webservice.sweeping.time.time", lambda: now + 400 * DAY)

    old.sweeper.sweep()

    monkeypatch.setattr("farcall_webservice.sweeping.time.time", lambda: now)
    assert (old.state(ended), old.state(waiting)) == ("success", "received")


def test_several_sweep_at_once_without_harm(service: Service, old: Old) -> None:
    ids = [task_id for _ in range(10) for task_id in old.submit(10)[1]]
    service.finish(*ids[:50])
    old.age(40)
    failures: list[Exception] = []

    def sweep() -> None:
        try:
            Sweeper(service.config, Ledger(service.database), tell=lambda _: None, command=lambda *_: None).sweep()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=sweep) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    old.sweeper.sweep()
    assert {row.state for row in service.ledger.tasks(ids)} == {"failed"}
    assert old.count(Task) == 50


def test_limits_tell_the_lifetimes(old: Old) -> None:
    limits = old.person.get("/v2/limits").done()

    assert (limits["result_lifetime_s"], limits["task_lifetime_s"]) == (30 * DAY, 14 * DAY)
    assert limits["max_log_characters"] == 256 * 1024
