"""What is decided about user endpoints, and what asking for their accounts may cost."""

from __future__ import annotations

import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert, select, update

from farcall import wire
from farcall_webservice import children
from farcall_webservice.accounts import SharedAccount
from farcall_webservice.children import Children, Circumstances, Phase, TooMany, Verdict, adopt, verdict
from farcall_webservice.management import ManagementError
from farcall_webservice.models import Endpoint
from farcall_webservice.reports import Reports

if TYPE_CHECKING:
    from conftest import Service

NOW = 1000.0
CORE = {"endpoint_version": "4.19.0"}
LONG = children.SECOND_LOOK_S


def child(phase: Phase, **more: Any) -> Any:
    """A user endpoint whose parent is online."""
    parent = {
        "parent_deleted_at": None,
        "parent_locked_until": None,
        "parent_last_heartbeat_at": NOW - 1,
        "parent_heartbeat_period": 30.0,
    }
    return SimpleNamespace(phase=phase, awaited_since=NOW - 1, attempts=1, **parent, **more)


def seen(consumers: int = 0, publishing: bool = False, settled: bool = True) -> Circumstances:
    return Circumstances(consumers, publishing, settled)


@pytest.mark.parametrize("publishing", [False, True])
def test_one_that_should_be_there_counts_as_gone_at_the_second_look_only(publishing: bool) -> None:
    up = child(Phase.UP)

    assert verdict(up, seen(publishing=publishing), 0.0, NOW) == Verdict.LOOK_AGAIN
    assert verdict(up, seen(publishing=publishing, settled=False), LONG, NOW) == Verdict.LOOK_AGAIN
    assert verdict(up, seen(publishing=publishing), LONG, NOW) == Verdict.START
    assert verdict(up, seen(1, publishing), LONG, NOW) == Verdict.LEAVE


def test_one_that_has_ended_is_started_at_the_first_look() -> None:
    assert verdict(child(Phase.DOWN), seen(publishing=True, settled=False), 0.0, NOW) == Verdict.START


class NoAccounts(SharedAccount):
    """A management API that does not answer."""

    def __init__(self) -> None:
        super().__init__("amqp://localhost")
        self.asked = 0

    def for_endpoint(self, endpoint_id: str, reached_as: str | None, *, renewed: bool = False) -> str:
        self.asked += 1
        raise ManagementError("it does not answer")


class Family:
    """A core endpoint that is online, and its user."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.database = service.database
        self.user_id = service.person("ada").id
        self.core_id = str(uuid.uuid4())
        row = {
            "id": self.core_id,
            "owner_id": self.user_id,
            "name": "core",
            "details": CORE,
            "created_at": 0.0,
            "registered_at": 0.0,
            "last_heartbeat_at": 1e12,
            "heartbeat_period": 30.0,
        }
        with self.database.writing() as connection:
            connection.execute(insert(Endpoint), row)

    def adopt(self, **config: Any) -> str:
        with self.database.reading() as connection:
            core = connection.execute(select(Endpoint).where(Endpoint.id == self.core_id)).one()
        return adopt(self.database, core, self.user_id, config)

    def has(self, child_id: str, **values: Any) -> None:
        with self.database.writing() as connection:
            connection.execute(update(Endpoint).where(Endpoint.id == child_id).values(**values))

    def phase(self, child_id: str) -> str:
        with self.database.reading() as connection:
            return str(connection.execute(select(Endpoint.phase).where(Endpoint.id == child_id)).scalar_one())

    def submit(self, child_id: str) -> str:
        receipt = self.service.ledger.submit(
            owner_id=self.user_id, endpoint_id=self.core_id, runner_id=child_id, payloads={str(uuid.uuid4()): ["p"]}
        )
        self.service.ledger.mark_dispatched([receipt.request_id])
        ((task_id,),) = receipt.tasks.values()
        return task_id


@pytest.fixture
def family(service: Service) -> Family:
    return Family(service)


def test_an_account_is_asked_for_only_where_it_is_needed_and_after_a_failure_not_at_once(family: Family) -> None:
    accounts = NoAccounts()
    looks: list[tuple[str, float]] = []
    kept = Children(accounts, family.database, family.service.ledger, lambda *look: looks.append(look))
    first, second = family.adopt(a=1), family.adopt(a=2)

    assert kept.start(first, seen()) is None
    assert accounts.asked == 0
    assert kept.start(first, seen(publishing=True)) is None
    assert kept.start(second, seen(publishing=True)) is None
    assert accounts.asked == 1
    assert [looked_at for looked_at, _ in looks] == [first, second]
    assert family.phase(first) == "down"


def test_a_goodbye_from_before_a_start_and_a_second_giving_up_change_nothing(family: Family) -> None:
    kept = Children(SharedAccount("amqp://localhost"), family.database, family.service.ledger)
    child_id = family.adopt()
    family.has(child_id, phase="awaited", awaited_since=1.0, attempts=children.MOST_ATTEMPTS)

    kept.heard(child_id, goodbye=True)
    assert family.phase(child_id) == "awaited"

    kept.heard(child_id, goodbye=False)
    family.submit(child_id)
    assert kept.give_up(child_id) == set()
    assert family.phase(child_id) == "up"


def test_a_user_can_have_only_so_many_that_run_or_have_tasks(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MOST_ACTIVE", 2)
    first, second = family.adopt(a=1), family.adopt(a=2)
    third = family.adopt(a=3)
    family.has(first, phase="up")
    family.submit(second)

    assert family.adopt(a=3) == third
    with pytest.raises(TooMany, match="2 user endpoints"):
        family.adopt(a=4)


def test_only_those_with_unfinished_tasks_are_looked_after(family: Family) -> None:
    kept = Children(SharedAccount("amqp://localhost"), family.database, family.service.ledger)
    busy, idle = family.adopt(a=1), family.adopt(a=2)
    family.submit(busy)
    family.service.finish(family.submit(idle))

    assert kept.with_unfinished_tasks(family.core_id) == [busy]


class Queued:
    """A dispatcher that knows what is queued, and is asked to send again."""

    def __init__(self, results: int) -> None:
        self.results = results
        self.room_to_send_again = 1000
        self.sent: list[str] = []

    def queued_messages(self, _: str) -> int:
        return 0

    def queued_results(self) -> int:
        return self.results

    def heed(self, _: str, *, held: bool) -> None:
        pass

    def send_again(self, outgoing: Any) -> None:
        self.sent += [task.task_id for batch in outgoing for task in batch.tasks]


@pytest.mark.parametrize("kind", ["ours", "a user endpoint"])
@pytest.mark.parametrize("results", [0, 1])
def test_nothing_is_sent_again_while_its_result_may_wait_for_a_collector(
    family: Family, kind: str, results: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.reports.GRACE_S", -1e12)
    monkeypatch.setattr("farcall_webservice.reports.BELIEVED_AFTER_S", 0.0)
    child_id = family.adopt()
    idle = {"heartbeat_period": 30, "outstanding_tasks": 0, "pending_tasks": 0}
    family.has(child_id, phase="up", last_heartbeat_at=1.0, heartbeat_period=30.0, last_report=idle)
    task_id = family.submit(child_id)
    dispatcher = Queued(results)
    kept = Children(SharedAccount("amqp://localhost"), family.database, family.service.ledger)
    reports = Reports(family.database, family.service.ledger, dispatcher, kept, lambda _: None)  # type: ignore[arg-type]

    holds = [] if kind == "ours" else None
    reports.note(child_id, [wire.StatusReport(child_id, idle, holds=holds)])

    assert dispatcher.sent == ([] if results else [task_id])
