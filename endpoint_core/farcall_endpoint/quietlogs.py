"""What Parsl's processes write down: warnings and errors, in files that exist only if there are any.

Left to itself every worker logs three lines a task, for as long as it lives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from parsl.logconfigs.base import LogConfig


class QuietLogs(LogConfig):  # type: ignore[misc]  # Parsl brings no types
    """Pickled, sent to interchange, managers and workers, and used there; hence a module with few imports."""

    def initialize_logging(self, *, log_dir: Path, log_name: str) -> Callable[[], None]:
        log_dir.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_dir / f"{log_name}.log", delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("parsl")
        # With the level on the logger, a call that is not wanted costs next to nothing.
        logger.setLevel(logging.WARNING)
        logger.addHandler(handler)

        def undo() -> None:
            logger.removeHandler(handler)
            handler.close()

        return undo
