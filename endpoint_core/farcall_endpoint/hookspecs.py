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
    the same name, so that nothing but the wanted plugin is loaded. A whole plugin; ``docs/writing_a_provider.md`` goes
    on from here::

        import subprocess

        from farcall_endpoint.hookspecs import hookimpl
        from farcall_endpoint.provider import BlockState, Provider

        class AtdProvider(Provider):
            def __init__(self, config):
                super().__init__(config)
                self.processes = {}

            def submit(self, spec):
                process = subprocess.Popen(["sh", "-c", spec.command])
                self.processes[str(process.pid)] = process
                return str(process.pid)

            def states(self, block_ids):
                return {block_id: self.state(block_id) for block_id in block_ids}

            def cancel(self, block_ids):
                for block_id in self.processes.keys() & set(block_ids):
                    self.processes[block_id].terminate()

            def state(self, block_id):
                if block_id not in self.processes:
                    return BlockState.UNKNOWN
                code = self.processes[block_id].poll()
                return {None: BlockState.RUNNING, 0: BlockState.DONE}.get(code, BlockState.FAILED)

        @hookimpl
        def farcall_providers():
            return {"atd": AtdProvider}
    """
    raise NotImplementedError
