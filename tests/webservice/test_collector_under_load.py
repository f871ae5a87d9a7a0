"""Results come faster than they are written, after a long absence, or through a broker that has lost its queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from carrying import FUNCTION, Loop
from kombu import Connection

from farcall import wire
from farcall_webservice import collector, queues

RESULT_CHARACTERS = 100_000


def test_what_has_gathered_in_a_long_absence_is_taken_in_bounded_rounds(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    most_bytes, most_messages = 10 * RESULT_CHARACTERS, 20
    monkeypatch.setattr(collector, "BYTES_PER_ROUND", most_bytes)
    monkeypatch.setattr(collector, "MESSAGES_PER_ROUND", most_messages)
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    large, small = loop.submit(endpoint_id, 50).tasks[FUNCTION], loop.submit(endpoint_id, 100).tasks[FUNCTION]
    loop.collector.stop()
    for task_id in large:
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "x" * RESULT_CHARACTERS)))
    for task_id in small:
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "x")))
    rounds: list[list[int]] = []

    loop.collector = loop.another_collector()
    record = loop.collector._record

    def noting(messages: Sequence[Any]) -> None:
        rounds.append([len(message.body) for message in messages])
        record(messages)

    monkeypatch.setattr(loop.collector, "_record", noting)
    loop.collector.start()
    loop.wait_until(lambda: {row.state for row in loop.ledger.tasks([*large, *small])} == {"success"})

    assert max(map(len, rounds)) <= most_messages
    # The message that fills a round is part of it.
    assert max(map(sum, rounds)) <= most_bytes + 2 * RESULT_CHARACTERS
    loop.wait_until(lambda: loop.dispatcher.queued_results() == 0)


def test_a_broker_that_has_lost_everything_is_given_its_queues_anew(loop: Loop) -> None:
    endpoint_id = loop.add_endpoint(accepts=["task_batch"])
    (before,) = loop.submit(endpoint_id).tasks[FUNCTION]
    loop.wait_until(lambda: loop.state_of(before) == "waiting-for-ep")

    _wipe(loop.broker_url, endpoint_id)
    if queues.speaks_amqp(loop.broker_url):
        loop.wait_until(lambda: queues.consumers(loop.broker_url, queues.RESULTS) == 1)
    (after,) = loop.submit(endpoint_id).tasks[FUNCTION]
    for task_id in (before, after):
        loop.say(endpoint_id, queues.RESULTS, wire.encode(wire.Result(task_id, "value")))

    loop.wait_until(lambda: {row.state for row in loop.ledger.tasks([before, after])} == {"success"})


def _wipe(broker_url: str, endpoint_id: str) -> None:
    """Let the broker forget all that is there, and keep its connections."""
    if queues.speaks_amqp(broker_url):
        queues.delete(broker_url, queues.RESULTS, queues.HEARTBEATS, queues.tasks_queue(endpoint_id))
        with Connection(broker_url) as connection:
            for queue in (queues.RESULTS, queues.HEARTBEATS):
                queue.exchange(connection.default_channel).delete()
    else:
        with Connection(broker_url) as connection:
            connection.default_channel.client.flushall()
