"""A start of a user endpoint survives what happens to the broker meanwhile."""

from __future__ import annotations

from typing import Any

import pytest
from foreign_support import CORE, CoreEndpoint, World

from farcall_webservice.publisher import Publisher


def test_a_start_that_was_broken_off_is_carried_out_over_the_next_connection(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = world.person("ada")
    core = CoreEndpoint(world, ada.ask("POST", "/v3/endpoints", {"endpoint_name": "core", "metadata": CORE}))
    function_id = ada.function()
    ids = ada.submit(core.id, function_id, 2)["tasks"][function_id]
    world.wait_until(lambda: {world.task(each).state for each in ids} == {"waiting-for-ep"})
    publish_command, broken_off = Publisher.publish_command, []

    def break_off_once(self: Publisher, *arguments: Any) -> None:
        if not broken_off:
            broken_off.append(True)
            raise ConnectionResetError("the broker has gone")
        publish_command(self, *arguments)

    monkeypatch.setattr(Publisher, "publish_command", break_off_once)
    core.heartbeat()
    child = core.start_child()

    assert broken_off
    assert sorted(child.take(2)) == sorted(ids)
    assert child.tasks.is_quiet()
    core.close()
