"""What a worker can say of the machine it runs on."""

from __future__ import annotations


def hardware_report() -> str:
    """Host, system, processors, memory, disk and accelerators of the machine that runs this."""
    import os
    import platform
    import shutil
    import subprocess
    from pathlib import Path

    lines = [
        f"host: {platform.node()}",
        f"system: {platform.platform()}",
        f"python: {platform.python_version()}",
        f"processors: {os.cpu_count()} ({platform.processor() or platform.machine()})",
    ]
    if hasattr(os, "sched_getaffinity"):
        lines.append(f"processors usable by this worker: {len(os.sched_getaffinity(0))}")
    if "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        lines.append(f"memory: {memory / 2**30:.1f} GiB")
    disk = shutil.disk_usage(Path.cwd())
    lines.append(f"disk at {Path.cwd()}: {disk.free / 2**30:.1f} of {disk.total / 2**30:.1f} GiB free")
    if shutil.which("nvidia-smi"):
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=30)
        lines.append("accelerators:\n" + listing.stdout.strip())
    return "\n".join(lines)
