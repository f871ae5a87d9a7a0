"""What nobody can use is set aside on both brokers, with the reason, and holds up nothing."""

from __future__ import annotations

import os
import subprocess
import uuid
from pathlib import Path

import pytest
from carrying import FUNCTION, Loop
from kombu import Queue
from running import BIN, environment_for

from farcall import wire
from farcall_webservice import dead_letters, queues
from farcall_webservice.dead_letters import Letter
from farcall_webservice.valkey import Valkey


def letters_about(loop: Loop, count: int) -> list[Letter]:
    """The letters, when there are so many."""
    loop.wait_until(lambda: len(dead_letters.letters(loop.broker_url)) >= count)
    letters = dead_letters.letters(loop.broker_url)
    assert len(letters) == count
    return letters


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not a message: it begins with b''"),
        (b"garbage", "not a message: it begins with b'g'"),
        (b"\x01\xff\xfe", "not a message: "),
        (wire.encode(wire.Result("a", "value"))[:-5], "not a message: Unterminated string"),
        (b"\x01" + b"[" * 100_000, "not a message: "),
        (b'\x01{"message_type": "new", "data": {}}', "unknown message type 'new'"),
        (b'\x01{"message_type": "result", "data": {"task_id": 7}}', "malformed 'result' message"),
        (wire.encode(wire.Command("stop")), "a Command does not belong here"),
        (wire.encode(wire.StatusReport(str(uuid.uuid4()), {})), "in the name of another endpoint"),
    ],
)
def test_a_message_that_makes_no_sense_is_set_aside_with_the_reason(loop: Loop, body: bytes, reason: str) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])

    loop.say(endpoint_id, queues.RESULTS, body)

    (letter,) = letters_about(loop, 1)
    assert reason in letter.reason
    assert (letter.queue, letter.sender) == ("results", endpoint_id)
    assert (letter.body, letter.size) == (body[: 64 * 1024], len(body))
    assert letter.time


@pytest.mark.parametrize(
    "body",
    [b"garbage", b"\xff\xfe", b"{}", b"[1]", b'{"body": "x"}', b'{"body": "?", "properties": {"delivery_tag": "t"}}'],
)
@pytest.mark.parametrize("queue", [queues.RESULTS, queues.HEARTBEATS])
def test_what_was_pushed_into_a_list_of_valkey_is_set_aside_and_what_follows_is_read(
    loop: Loop, queue: Queue, body: bytes
) -> None:
    if queues.speaks_amqp(loop.broker_url):
        pytest.skip("RabbitMQ has no lists")
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    with queues.connect(loop.broker_url) as connection:
        connection.default_channel.client.lpush(queue.name, body)

    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))

    (letter,) = letters_about(loop, 1)
    assert (letter.queue, letter.body) == (queue.name, body)
    loop.wait_until(lambda: loop.state_of(task_id) == "success")


def test_neither_queue_takes_a_message_of_nobody(loop: Loop) -> None:
    stranger = str(uuid.uuid4())

    loop.say("someone", queues.RESULTS, wire.encode(wire.Result("a", "value")))
    loop.say(stranger, queues.HEARTBEATS, wire.encode(wire.StatusReport(stranger, {"heartbeat_period": 30})))

    found = {(letter.queue, letter.reason): letter.sender for letter in letters_about(loop, 2)}
    assert found == {
        ("results", "it does not say which endpoint sent it"): "someone.results",
        ("heartbeats", f"nobody has registered endpoint {stranger}"): stranger,
    }


def test_the_result_of_what_is_no_task_of_its_sender_is_set_aside_alone(loop: Loop) -> None:
    endpoint_id, thief = (loop.add_endpoint(accepts=["task_batch"]) for _ in range(2))
    own, others, unknown = loop.submit(thief).tasks[FUNCTION][0], loop.submit(endpoint_id).tasks[FUNCTION][0], "no id"
    results = [wire.Result(task_id, "value", task_statuses=[]) for task_id in (own, others, unknown)]

    loop.say(thief, queues.RESULTS, wire.encode(wire.ResultBatch(results)))

    assert {letter.reason: wire.decode(letter.body) for letter in letters_about(loop, 2)} == {
        f"task {others} is not a task of this endpoint": results[1],
        "there is no task no id": results[2],
    }
    assert loop.state_of(own) == "success"
    assert loop.state_of(others) != "success"


def test_what_the_database_refuses_is_set_aside_beside_its_failure(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    unstorable = wire.Result(task_id, "value", {"a number that no database takes": 2**70}, task_statuses=[])

    loop.say(endpoint_id, queues.RESULTS, wire.encode(unstorable))
    loop.say(endpoint_id, queues.HEARTBEATS, wire.encode(wire.StatusReport(endpoint_id, {"odd": 2**70})))

    first, second = sorted(letters_about(loop, 2), key=lambda letter: letter.queue)
    assert first.reason.startswith("this report cannot be noted: ")
    assert second.reason.startswith("The endpoint sent a result that cannot be kept: ")
    assert "UPDATE" not in first.reason + second.reason
    assert wire.decode(second.body) == unstorable
    assert loop.state_of(task_id) == "failed"


def test_an_agents_letter_is_filed_under_the_queue_from_which_it_took_the_message(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    queue = f"{endpoint_id}.tasks"

    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.DeadLetter(queue, "no \udcff \0 sense", b"\xff" * 10, 1000)))

    (letter,) = letters_about(loop, 1)
    assert (letter.queue, letter.sender) == (queue, endpoint_id)
    assert (letter.reason, letter.body, letter.size) == ("no \\udcff \\x00 sense", b"\xff" * 10, 1000)


def test_of_many_letters_the_newest_are_kept(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters, "MOST_LETTERS", 3)
    monkeypatch.setattr(dead_letters, "QUEUE", Queue("dead-letters", durable=True, max_length=3))
    letters = [Letter.of(str(n).encode(), reason="r", queue="q", sender=None) for n in range(5)]

    dead_letters.file(loop.broker_url, letters[:4])
    dead_letters.file(loop.broker_url, letters[4:])

    assert dead_letters.letters(loop.broker_url) == letters[2:]
    assert dead_letters.letters(loop.broker_url) == letters[2:], "looking removes none"
    assert dead_letters.purge(loop.broker_url) == 3
    assert dead_letters.letters(loop.broker_url) == []


def test_a_storm_of_garbage_holds_up_no_result(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (task_id,) = loop.submit(endpoint_id).tasks[FUNCTION]
    garbage = os.urandom(100_000)

    for _ in range(50):
        loop.say(endpoint_id, queues.RESULTS, garbage)
    loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))

    loop.wait_until(lambda: loop.state_of(task_id) == "success")
    assert {letter.size for letter in letters_about(loop, 50)} == {100_000}
    loop.wait_until(lambda: loop.dispatcher.queued_results() == 0)


def run(home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "farcall-webservice", "dead-letters", *arguments],
        env=environment_for(home, **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_administrator_looks_at_letters_and_removes_them(loop: Loop, tmp_path: Path) -> None:
    letter = Letter.of(b"\x01a\x1b[2J\xff", reason="two\nlines", queue="results", sender="x" * 36)
    dead_letters.file(loop.broker_url, [letter])

    listed = run(tmp_path, "list", FARCALL_BROKER_URL=loop.broker_url).stdout
    shown = run(tmp_path, "show", letter.id, FARCALL_BROKER_URL=loop.broker_url).stdout
    unknown = run(tmp_path, "show", "none", FARCALL_BROKER_URL=loop.broker_url)
    purged = run(tmp_path, "purge", "--broker-url", loop.broker_url).stdout

    assert listed == f"{letter.id}  {letter.time}  results  {letter.sender}  7  two lines\n"
    assert f"sender: {letter.sender}\n" in shown
    assert shown.endswith("\n\n\\x01a\\x1b[2J\\xff\n")
    assert unknown.returncode == 1
    assert unknown.stderr == "error: there is no dead letter none; `dead-letters list` shows those there are\n"
    assert purged == "1 dead letters were removed.\n"
    assert dead_letters.letters(loop.broker_url) == []
    none = run(tmp_path, "list", "--broker-url", loop.broker_url)
    assert (none.returncode, none.stdout, none.stderr) == (0, "", "There are no dead letters.\n")


def test_the_embedded_broker_is_found_by_its_home(tmp_path: Path) -> None:
    broker = Valkey(tmp_path / "service" / "valkey", "127.0.0.1")
    broker.start()
    try:
        dead_letters.file(broker.url, [Letter.of(b"body", reason="r", queue="q", sender=None)])

        assert run(tmp_path, "list").stdout.endswith("  q  unknown  4  r\n")
    finally:
        broker.stop()

    away = run(tmp_path, "list")
    assert away.returncode == 1
    assert "error: the broker cannot be used" in away.stderr
    assert "Traceback" not in away.stderr
    assert "--broker-url" in run(tmp_path / "elsewhere", "list").stderr
