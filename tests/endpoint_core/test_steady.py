"""Parsl's durations do not depend on the time of day."""

from __future__ import annotations

import time
from types import ModuleType

import pytest

from farcall_endpoint.steady import steady


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_a_clock_that_jumps_makes_no_duration_longer_or_shorter(monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    module = ModuleType("of_parsl")
    steady(module)
    began = module.time.time()
    assert abs(began - time.time()) < 1

    monkeypatch.setattr(time, "time", lambda now=time.time: now() + jump_s)

    assert 0 <= module.time.time() - began < 60
    assert module.time.sleep is time.sleep
