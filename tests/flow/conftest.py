"""The same stories in every setting of the service."""

from __future__ import annotations

import pytest

SETTINGS = ("embedded", "larger")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that uses the shared service in each setting, or in those that its mark ``settings`` names."""
    if "service" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("settings")
        metafunc.parametrize("service", mark.args if mark else SETTINGS, indirect=True, scope="session")
