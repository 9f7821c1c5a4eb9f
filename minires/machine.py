"""The machine this process runs on: processor, cores, memory."""
import math
import os
import platform
import subprocess
from pathlib import Path


def processor():
    """The processor's name, as the system calls it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    if platform.system() == "Darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True,
                              check=False).stdout.strip()
    return platform.processor() or platform.machine()


def cores():
    """Processors this process may use: those that it may run on, and of a container no more than its share of time."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(found, _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _quota(groups, root):
    """Processors' worth of time that Linux gives to this process's control group and those above it, or infinity.

    groups: lines "number:controllers:path". Version 2 keeps "quota period" in one file, version 1 each in its own.
    """
    quota = math.inf
    try:
        lines = groups.read_text().splitlines()
    except (OSError, ValueError):
        return quota
    for _, controllers, place in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / controllers if controllers else root
        folder = top / place.strip("/")  # in a container the path is often that outside, and the group lies at the top
        for each in {top, *(part for part in (folder, *folder.parents) if part.is_relative_to(top))}:
            try:
                most, period = (each / "cpu.max").read_text().split() if not controllers else (
                    (each / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
                if most != "max" and int(most) > 0 < int(period):
                    quota = min(quota, int(most) / int(period))
            except (OSError, ValueError):
                continue
    return quota


def memory_bytes():
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
