"""For those who write a provider: the tests that every provider passes, and a batch system that is not there.

``ProviderContract`` is inherited by a plugin's own tests. ``FakePbs`` puts ``qsub``, ``qstat`` and so on into a folder;
they run jobs as processes of this machine, and can be told to fail in the ways real ones do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import ProviderContract
    from .fakepbs import FakePbs

__all__ = ["FakePbs", "ProviderContract"]


def __getattr__(name: str) -> Any:
    # The commands of the fake batch system are started many times, and need no pytest.
    if name == "ProviderContract":
        from .contract import ProviderContract

        return ProviderContract
    if name == "FakePbs":
        from .fakepbs import FakePbs

        return FakePbs
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
