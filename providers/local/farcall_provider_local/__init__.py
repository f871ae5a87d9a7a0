"""Runs blocks as processes of the machine that the agent is on."""

from __future__ import annotations

from farcall_endpoint.hookspecs import hookimpl
from farcall_endpoint.provider import Provider

from .provider import LocalConfig, LocalProvider

__all__ = ["LocalConfig", "LocalProvider", "farcall_providers"]


@hookimpl
def farcall_providers() -> dict[str, type[Provider]]:
    return {"local": LocalProvider}
