"""What the machine lends to this process: a container's share of processors, and a system that is not supported."""
import subprocess
import sys
from pathlib import Path

import pytest

import minires
from minires import machine

WSL = "minires: error: minires runs on Linux and macOS and not on Windows: install it in WSL, whose Linux it can use\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(("groups", "files", "cores"), [
    ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # docker run --cpus 1.5
    ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
    ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "300000 100000\n"}, 3),  # a quota of a group above
    ("0::/docker/0123\n", {"cpu.max": "50000 100000\n"}, 1),  # the path is that outside
    ("7:cpuset:/\n4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "400000\n",
                                        "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 4),
    ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
    ("0::/\n", {"cpu.max": "rubbish\n"}, 8), ("0::/\n", {"cpu.max": "1\n"}, 8), ("no group\n", {}, 8), (None, {}, 8)])
def test_a_containers_share_counts(groups, files, cores, tmp_path, monkeypatch):
    root = tmp_path / "groups"
    for name, text in files.items():
        write(root / name, text)
    if groups is not None:
        write(tmp_path / "cgroup", groups)
    places = {"/proc/self/cgroup": tmp_path / "cgroup", "/sys/fs/cgroup": root}
    monkeypatch.setattr(machine, "Path", lambda name: places[name])
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert machine.cores() == cores


@pytest.mark.parametrize("what", ["import minires", "from minires.cli import main"])
def test_windows_is_refused_in_a_sentence(what):
    script = f"import sys; sys.platform = 'win32'; {what}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False,
                          cwd=Path(minires.__file__).parents[1])
    assert (done.returncode, done.stdout, done.stderr) == (1, "", WSL)
