"""The embedded service starts, says what is wrong, and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest
import urllib3
from running import BIN, RunningService, environment_for, running_endpoint, running_service
from servers import PrivatePostgres, PrivateRabbitMQ

from farcall import Client, Executor


def family_of(service: RunningService) -> list[psutil.Process]:
    """The service's process and those that it started."""
    process = psutil.Process(service.process.pid)
    return [process, *process.children(recursive=True)]


def serve(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A start that is expected to be refused."""
    return subprocess.run(
        [BIN / "farcall-webservice", "serve", *arguments],
        env=environment_for(home),
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_stops_everything_that_was_started(tmp_path: Path, number: signal.Signals) -> None:
    with running_service(tmp_path) as service:
        family = family_of(service)
        assert [process.name() for process in family] == ["farcall-webserv", "valkey-server"]

        assert service.stop(number) == 0

    assert not any(process.is_running() for process in family)


def test_a_stop_answers_who_waits_for_results_instead_of_waiting_with_them(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        client = Client(service_url=service.url, token=service.token)
        endpoint_id = client.register_endpoint("nowhere", None)["endpoint_id"]
        task_id = client.run(endpoint_id=endpoint_id, function_id=client.register_function(len))
        held = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=30)
        held.request("GET", f"/v2/tasks/{task_id}?wait=25", headers={"Authorization": f"Bearer {service.token}"})
        # Requests are taken in their order, so with this one answered the service is at the one before.
        client.get_endpoints()

        assert service.stop() == 0
        answer = held.getresponse()

        assert answer.status == 200
        assert json.loads(answer.read())["task_id"] == task_id
        held.close()
        assert service.process.stderr is not None
        assert "still running" not in service.process.stderr.read()


def test_one_process_serves_on_postgresql_and_rabbitmq_too(
    tmp_path: Path, postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ
) -> None:
    urls = {"FARCALL_DATABASE_URL": postgres.database(), "FARCALL_BROKER_URL": rabbitmq.vhost("one-process")}
    with running_service(tmp_path, **urls) as service:
        assert family_of(service) == [psutil.Process(service.process.pid)]
        with running_endpoint(service) as endpoint:
            client = Client(service_url=service.url, token=service.token)
            with Executor(endpoint_id=endpoint.id, client=client) as executor:
                assert executor.submit(pow, 2, 5).result(60) == 32

        assert service.stop() == 0


def test_a_killed_service_takes_its_broker_with_it_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        _, broker = family_of(service)
        token = service.token
        service.stop(signal.SIGKILL)
        broker.wait(timeout=30)

    with running_service(tmp_path) as again:
        assert again.token == token


@pytest.mark.settings("embedded")
def test_a_second_service_on_the_same_home_is_refused_with_a_reason(service: RunningService) -> None:
    done = serve(service.home, "--port", "0")

    assert done.returncode != 0
    assert "already runs" in done.stderr
    assert service.url in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        done = serve(tmp_path, "--port", str(port))

    assert done.returncode != 0
    assert str(port) in done.stderr
    assert "--port" in done.stderr


def test_the_owners_token_is_for_this_account_only_and_a_login_elsewhere_is_left_alone(tmp_path: Path) -> None:
    elsewhere = {"service_url": "https://farcall.example.org", "token": "a token of another service"}
    shared = tmp_path / "credentials.json"

    with running_service(tmp_path):
        assert shared.stat().st_mode & 0o777 == 0o600
        own = json.loads(shared.read_text())

    shared.write_text(json.dumps(elsewhere))
    environment = environment_for(tmp_path)
    with subprocess.Popen(
        [BIN / "farcall-webservice", "serve", "--port", "0"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        said = process.communicate(timeout=30)[1]
    assert json.loads(shared.read_text()) == elsewhere
    assert "left alone" in said
    assert json.loads((tmp_path / "service" / "credentials.json").read_text())["token"] == own["token"]


def test_health_version_and_documentation_need_no_token_and_all_else_does(service: RunningService) -> None:
    http = urllib3.PoolManager()
    document = http.request("GET", f"{service.url}/openapi.json").json()
    by_token = [{"bearer": []}]

    for path in ("/healthz", "/v2/version", "/openapi.json", "/docs"):
        assert http.request("GET", service.url + path).status == 200
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method in ("get", "post", "put", "delete") and operation.get("security", by_token) == by_token:
                answer = http.request(method.upper(), service.url + path.replace("{", "").replace("}", ""))
                assert answer.status == 401, f"{method} {path}"
                assert answer.json()["code"] == "USER_UNAUTHENTICATED"
