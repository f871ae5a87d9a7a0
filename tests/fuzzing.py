"""How long the tests with invented data look for trouble.

The same data each time and quickly, unless ``FARCALL_TEST_EXAMPLES`` says how many examples each is to try: then others
each time.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_ASKED_FOR = os.environ.get("FARCALL_TEST_EXAMPLES")


def examples(usual: int) -> settings:
    """So many examples, however long one may take on a busy machine."""
    return settings(
        max_examples=int(_ASKED_FOR or usual),
        derandomize=_ASKED_FOR is None,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
