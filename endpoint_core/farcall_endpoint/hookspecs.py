"""Where a plugin meets the endpoint. One hook, so that one page explains it."""

from __future__ import annotations

import pluggy

from .provider import Provider

#: The entry-point group in which an installed plugin names itself; also pluggy's name of the project.
GROUP = "farcall"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def farcall_providers() -> dict[str, type[Provider]]:
    """Name the providers this plugin brings.

    The name is what an administrator writes under ``engine.provider.type`` in ``config.yaml``; the entry point has
    the same name, so that nothing but the wanted plugin is loaded. A whole plugin, beside the provider's class::

        @hookimpl
        def farcall_providers() -> dict[str, type[Provider]]:
            return {"atd": AtdProvider}
    """
    raise NotImplementedError
