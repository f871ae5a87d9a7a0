"""User endpoints live and die while several processes of a service act on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_support import World
from servers import PrivatePostgres

from farcall_webservice import queues


@pytest.fixture
def worlds(
    tmp_path: Path, postgres: PrivatePostgres, postgres_with_tables: str, broker_of_worlds: str
) -> Iterator[list[World]]:
    """Two processes, as it were, of one service."""
    url = postgres.database(like=postgres_with_tables)
    made = [World(tmp_path / name, url, broker_of_worlds, alone=False) for name in ("one", "two")]
    for world in made:
        world.start()
    yield made
    for world in made:
        world.stop()
        world.database.close()
    postgres.drop(url)


def test_two_processes_start_a_user_endpoint_once_whenever_it_has_gone(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farcall_webservice.publisher.SETTLED_AFTER_S", 0.0)
    monkeypatch.setattr("farcall_webservice.children.SECOND_LOOK_S", 0.01)
    world = worlds[0]
    ada = world.person("ada")
    adas = [ada, worlds[1].known_person("ada", ada.id)]
    core = world.core_endpoint(ada)
    world.wait_until(lambda: ada.ask("GET", f"/v2/endpoints/{core.id}/status")["status"] == "online")
    function_id = ada.function()

    def submit_to_both() -> list[str]:
        return [each.submit(core.id, function_id)["tasks"][function_id][0] for each in adas]

    expected = submit_to_both()
    for life in range(4):
        child = core.start_child()
        taken = child.take(len(expected))
        assert sorted(taken) == sorted(expected)
        # Neither process has anything else to say to its parent: what they are asked for now comes first.
        for number, each in enumerate(adas * 2):
            marker = {"marker": f"{life}.{number}"}
            each.submit(core.id, function_id, user_endpoint_config=marker)
            assert core.take_command()[0]["kwargs"]["user_opts"] == marker
        # It says goodbye, or it is killed with all that it has taken.
        says_goodbye = life % 2 == 0
        if says_goodbye:
            child.answer(*taken)
            world.wait_until(lambda ids=taken: all(world.task(each).completed_at for each in ids))
            expected = []
            child.heartbeat(active=False)
            world.wait_until(lambda of=child.id: world.phase(of) == "down")
        child.die()
        # There was nothing else for it.
        with queues.connect(world.broker_url) as connection:
            assert queues.look_at(connection, queues.tasks_queue(child.id)).message_count == 0
        expected = expected + submit_to_both()

    child = core.start_child()
    child.answer(*child.take(len(expected)))
    world.wait_until(lambda: all(world.task(each).completed_at for each in expected))
    core.close()
