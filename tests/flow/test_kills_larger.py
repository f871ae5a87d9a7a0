"""The larger setting while its processes and servers are killed in turn: every task ends once, with the right value."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from contextlib import ExitStack, closing, contextmanager

import psutil
import pytest
from running import RunningEndpoint, RunningService, running_endpoint, running_larger_service, running_part
from servers import (
    PrivatePostgres,
    PrivateRabbitMQ,
    free_ports,
    needs,
    private_postgres,
    private_rabbitmq,
)

from farcall import Client, Executor

TASKS = 600
TIMEOUT_S = 100


class Larger:
    """A service in the larger setting on servers of its own, and an endpoint. Every test leaves all of it running."""

    def __init__(self, rabbitmq: PrivateRabbitMQ, postgres: PrivatePostgres, service: RunningService) -> None:
        self.rabbitmq = rabbitmq
        self.postgres = postgres
        self.service = service
        self.web = service.process
        #: What tests have started.
        self.started = ExitStack()
        self.client = Client(service_url=service.url, token=service.token)

    def start_web(self) -> None:
        port = self.service.url.rpartition(":")[2]
        arguments = ("web", "--port", port)
        self.web, _ = self.started.enter_context(running_part(self.service.home, self.service.environment, *arguments))

    def start_collector(self) -> None:
        process, _ = self.started.enter_context(running_part(self.service.home, self.service.environment, "collect"))
        self.service.collectors.append(process)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.web.pid).children()


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Larger]:
    needs("rabbitmq")
    needs("postgres")
    with ExitStack() as stack:
        rabbitmq = stack.enter_context(private_rabbitmq(tmp_path_factory.mktemp("rabbitmq")))
        postgres = stack.enter_context(private_postgres(tmp_path_factory.mktemp("postgres")))
        service = stack.enter_context(
            running_larger_service(
                tmp_path_factory.mktemp("home"),
                database_url=postgres.database(),
                broker_url=rabbitmq.url,
                port=free_ports(1)[0],
            )
        )
        made = Larger(rabbitmq, postgres, service)
        stack.enter_context(made.started)
        yield made


@pytest.fixture(scope="module")
def own_endpoint(larger: Larger) -> Iterator[RunningEndpoint]:
    with running_endpoint(larger.service) as endpoint:
        yield endpoint


@pytest.fixture
def executor(larger: Larger, own_endpoint: RunningEndpoint) -> Iterator[Executor]:
    with Executor(endpoint_id=own_endpoint.id, client=larger.client) as executor:
        assert executor.submit(slow_double, 1).result(TIMEOUT_S) == 2
        yield executor


def slow_double(x):
    import time

    time.sleep(0.005)
    return 2 * x


@contextmanager
def held_request(service: RunningService, task_id: str) -> Iterator[http.client.HTTPConnection]:
    """A long-poll for a task, which the service has taken."""

    def ask(path: str) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=60)
        connection.request("GET", path, headers={"Authorization": f"Bearer {service.token}"})
        return connection

    with closing(ask(f"/v2/tasks/{task_id}?wait=25")) as held:
        # Connections are taken in their order, so with this one answered the one before is a worker's.
        with closing(ask("/v2/version")) as later:
            later.getresponse().read()
        yield held


def submit_and_strike(executor: Executor, strike: Callable[[], None]) -> list[int]:
    """Submit tasks, do the harm when a tenth has come back, and return all values in the order of submission."""
    futures: list[Future[int]] = [executor.submit(slow_double, x) for x in range(TASKS // 2)]
    for done, _ in enumerate(as_completed(futures, TIMEOUT_S)):
        if done == TASKS // 10:
            strike()
            break
    futures += [executor.submit(slow_double, x) for x in range(TASKS // 2, TASKS)]
    return [future.result(TIMEOUT_S) for future in futures]


EXPECTED = [2 * x for x in range(TASKS)]


def test_a_killed_worker_of_the_web_is_replaced(larger: Larger, executor: Executor) -> None:
    victim, *_ = larger.workers()

    assert submit_and_strike(executor, victim.kill) == EXPECTED

    assert victim.pid not in [worker.pid for worker in larger.workers()]


def test_the_web_may_be_killed_and_started_again(larger: Larger, executor: Executor) -> None:
    workers = larger.workers()

    def strike() -> None:
        larger.web.kill()
        larger.web.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
        larger.start_web()

    assert submit_and_strike(executor, strike) == EXPECTED


def test_a_killed_collector_leaves_its_results_to_the_others(larger: Larger, executor: Executor) -> None:
    victim = larger.service.collectors.pop(0)

    assert submit_and_strike(executor, victim.kill) == EXPECTED

    larger.start_collector()


def test_all_collectors_may_be_killed_if_another_is_started(larger: Larger, executor: Executor) -> None:
    def strike() -> None:
        for victim in larger.service.collectors:
            victim.kill()
        larger.service.collectors.clear()
        larger.start_collector()

    assert submit_and_strike(executor, strike) == EXPECTED


def test_a_killed_rabbitmq_costs_no_task(larger: Larger, executor: Executor) -> None:
    def strike() -> None:
        larger.rabbitmq.kill()
        larger.rabbitmq.start()

    assert submit_and_strike(executor, strike) == EXPECTED


@pytest.mark.parametrize("ending", ["stop", "kill"])
def test_a_restarted_postgresql_costs_no_task(larger: Larger, executor: Executor, ending: str) -> None:
    def strike() -> None:
        getattr(larger.postgres, ending)()
        larger.postgres.start()

    assert submit_and_strike(executor, strike) == EXPECTED


def test_a_request_that_one_process_holds_is_answered_when_another_has_the_result(
    larger: Larger, executor: Executor, own_endpoint: RunningEndpoint
) -> None:
    def wait_for(path):
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.01)
        return "done"

    go_on = own_endpoint.directory / "go-on"
    function_id = larger.client.register_function(wait_for)
    task_id = larger.client.run(str(go_on), endpoint_id=own_endpoint.id, function_id=function_id)
    with held_request(larger.service, task_id) as held:
        go_on.touch()

        answer = json.loads(held.getresponse().read())

    # Had nobody been woken, this would be the answer to a request whose time is over: still pending.
    assert answer["status"] == "success"


def test_a_stop_ends_what_is_held_and_every_process(larger: Larger, executor: Executor) -> None:
    endpoint_id = larger.client.register_endpoint("nowhere", None)["endpoint_id"]
    task_id = larger.client.run(endpoint_id=endpoint_id, function_id=larger.client.register_function(len))
    with held_request(larger.service, task_id) as held:
        workers = larger.workers()

        larger.web.send_signal(signal.SIGTERM)

        assert json.loads(held.getresponse().read())["task_id"] == task_id
    assert larger.web.wait(timeout=30) == 0
    assert not any(worker.is_running() for worker in workers)
    collector = larger.service.collectors.pop()
    collector.send_signal(signal.SIGTERM)
    assert collector.wait(timeout=30) == 0
    larger.start_web()
    larger.start_collector()
