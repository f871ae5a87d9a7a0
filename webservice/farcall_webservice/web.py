"""The command `web`: processes of gunicorn that answer requests. Any number may run at a time, on any machines."""

from __future__ import annotations

import contextlib
import os
import threading
from types import FrameType
from typing import Any, cast

from gunicorn.app.base import BaseApplication
from gunicorn.workers.gthread import ThreadWorker

from farcall_webservice import larger, listening, parts
from farcall_webservice.config import ServiceConfig
from farcall_webservice.waiting import Waiting

#: Each long-poll keeps a thread; so much of them are kept free for requests that do not wait.
SHARE_KEPT_FREE = 0.1
#: Proxies keep their connections for a minute; one that is closed from here could be in use at that moment.
KEEP_ALIVE_S = 75
#: A worker that has not shown for so long that it lives is replaced. It shows it whatever its threads do.
SILENCE_S = 60
#: Requests that a stop finds under way may take so long.
STOP_S = 20


def serve(config: ServiceConfig) -> None:
    """Run until SIGTERM or Ctrl-C; a worker that dies is replaced.

    Raises :class:`ConfigurationError` if it cannot start.
    """
    larger.check(config, "web")
    # Gunicorn would try for seconds, and then say so in many lines.
    listening.listen(config).close()
    larger.log_to_standard_error()
    _Application(config).run()


class _Application(BaseApplication):
    """Gunicorn's settings, and the application of each worker."""

    def __init__(self, config: ServiceConfig) -> None:
        self._config = config
        #: What was started in this worker.
        self._running = contextlib.ExitStack()
        self.waiting = Waiting(int(config.threads * (1 - SHARE_KEPT_FREE)))
        super().__init__()

    def load_config(self) -> None:
        config = self._config
        host = f"[{config.host}]" if ":" in config.host else config.host
        settings = {
            "bind": f"{host}:{config.port}",
            "workers": config.workers,
            "worker_class": _Worker,
            "threads": config.threads,
            "worker_connections": 4 * config.threads,
            "keepalive": KEEP_ALIVE_S,
            "timeout": SILENCE_S,
            "graceful_timeout": STOP_S,
            "proc_name": "farcall-webservice",
            # Gunicorn's own console, which would be a file in the home of whoever runs this.
            "control_socket_disable": True,
            "post_worker_init": _say_when_ready,
            "worker_exit": _stop_worker,
        }
        for name, value in settings.items():
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Any:
        """The Flask application. Called in each worker, because connections and threads do not outlive a fork."""
        return self._running.enter_context(parts.web(self._config, self.waiting))

    def stop(self) -> None:
        self._running.close()


class _Worker(ThreadWorker):
    """Ends long-polls first when it is told to stop; they would hold it up."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # In a thread of its own, because the one that this signal interrupts may hold the lock.
        threading.Thread(target=cast(_Application, self.app).waiting.close, daemon=True).start()
        super().handle_exit(sig, frame)

    def is_parent_alive(self) -> bool:
        """Gunicorn's own question. Where the parent was killed, the next one waits for this worker's port."""
        alive: bool = super().is_parent_alive()
        if not alive:
            cast(_Application, self.app).waiting.close()
        return alive

    def handle_quit(self, sig: int, frame: FrameType | None) -> None:
        """Ctrl-C: as SIGTERM, which takes no longer."""
        self.handle_exit(sig, frame)


def _say_when_ready(worker: Any) -> None:
    # The first one speaks for all, once: those that replace another have higher numbers.
    if worker.age == 1:
        host, port, *_ = worker.sockets[0].getsockname()
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        # To the descriptor: should the process be replaced by another at once, nothing is left in a buffer.
        os.write(1, f"Farcall is ready at {url} (documentation: {url}/docs)\n".encode())


def _stop_worker(_server: Any, worker: Any) -> None:
    # Gunicorn calls this in the parent too, for a worker that it has missed.
    if worker.pid == os.getpid():
        worker.app.stop()
