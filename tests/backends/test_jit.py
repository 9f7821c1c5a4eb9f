"""How kernels are compiled and kept: never stale, never from a damaged file, and a word where that cannot be."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from numba import config, njit

import minires
from minires.backends import cpu
from minires.backends.cpu import environment, jit, numba_private
from minires.backends.cpu.ahead import ahead

PACKAGE = Path(minires.__file__).parent
POOL = """
import numpy as np
from minires.backends import cpu
print(cpu.global_avgpool_forward(np.ones((1, 2, 2, 16)))[0, 0])
"""
MEAN = """
import numpy as np
from minires.backends import cpu
print(cpu.batchnorm_forward(np.ones((4, 16)), np.ones(16), np.ones(16), 1e-5)[1][0])
"""
COMPILING = "minires: compiling CPU kernels for this machine (cached for the next time)\n"


def python(*arguments, package=PACKAGE, **environment):
    """Run Python with a package and changes of the environment (None: without); -> the process when it is done."""
    changed = {**os.environ, "PYTHONPATH": str(package.parent), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    changed = {name: value for name, value in changed.items() if value is not None}
    return subprocess.run([sys.executable, "-P", *arguments], env=changed, capture_output=True, text=True, check=False)


@pytest.fixture
def copied(tmp_path):
    return shutil.copytree(PACKAGE, tmp_path / "minires", ignore=shutil.ignore_patterns("__pycache__"))


def test_an_edit_of_another_file_is_seen_and_versions_share_a_folder(copied, tmp_path):
    """The kernel, in norm.py, stays as it is; a function that it calls, in moments.py, changes and changes back."""
    part, found = copied / "backends" / "cpu" / "moments.py", []
    as_it_is = part.read_text()
    for text in (as_it_is, as_it_is.replace("pivot + mean)", "pivot + pivot + mean)"), as_it_is):
        part.write_text(text)
        done = python("-c", MEAN, package=copied, NUMBA_CACHE_DIR=str(tmp_path / "kernels"))
        found.append((done.stdout, done.stderr))
    assert found == [("1.0\n", COMPILING), ("2.0\n", COMPILING), ("1.0\n", "")]


@pytest.mark.parametrize("folder", ["file/kernels", "/proc/kernels"])
def test_an_impossible_folder_is_told_in_one_line(folder, copied, tmp_path):
    (tmp_path / "file").touch()
    done = python("-c", POOL, package=copied, NUMBA_CACHE_DIR=str(tmp_path / folder))
    assert done.stdout == "1.0\n"
    assert done.stderr == (f"minires: compiled kernels cannot be kept in {tmp_path / folder}: they are compiled for this "
                           "process only; set NUMBA_CACHE_DIR to a folder that can be written\n")
    assert not list(tmp_path.rglob("*.nbc"))


def test_no_folder_at_all_is_told_in_one_line(copied, tmp_path):
    nowhere = tmp_path / "file"
    for file in (nowhere, copied / "backends" / "cpu" / "__pycache__"):
        file.touch()
    done = python("-c", POOL, package=copied, NUMBA_CACHE_DIR=None, XDG_CACHE_HOME=str(nowhere), HOME=str(nowhere),
                  LOCALAPPDATA=str(nowhere))
    assert done.stdout == "1.0\n"
    assert done.stderr.startswith("minires: compiled kernels cannot be kept in any of Numba's cache folders: they are")
    assert done.stderr.count("\n") == 1


def test_kernels_that_are_not_kept_are_not_compiled_by_a_second_process(monkeypatch):
    monkeypatch.setattr(jit, "kept", False)
    monkeypatch.setattr(ahead, "compiling", lambda: pytest.fail("it was started"))
    cpu._announce(cpu.relu_forward)


# --- files of the cache ---


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    """Compile `double` as a new process would; -> how often it was found on disk, and what was told of the folder."""
    monkeypatch.setattr(config, "CACHE_DIR", str(tmp_path))

    def compile_it(stamp="this"):
        told, function = [], njit(double)
        numba_private.keep_on_disk(function, stamp, told.append)
        assert function(3) == 6
        return sum(function.stats.cache_hits.values()), told

    return compile_it


def double(x):
    return 2 * x


DAMAGES = {
    **{f"cut off at {size}": lambda data, size=size: data[:size] for size in (0, 1, 31, 32, 33, 1000, -1)},
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: os.urandom(len(data)),
    "a byte of its hash": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "a byte in the middle": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "longer": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again(damage, compiled, tmp_path, capfd):
    assert compiled() == (0, [])
    file, = tmp_path.rglob("*.*")
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert compiled() == (0, [])
    assert compiled() == (1, [])  # and is whole again
    assert list(tmp_path.rglob("*.*")) == [file] and capfd.readouterr() == ("", "")


def test_what_cannot_be_read_or_written_is_told(compiled, tmp_path):
    compiled()
    file, = tmp_path.rglob("*.*")
    file.unlink()
    file.mkdir()
    assert compiled() == (0, [str(file.parent)])
    assert list(tmp_path.rglob("*.*")) == [file]  # nothing half written


def test_other_versions_are_removed_when_a_day_old(compiled, tmp_path):
    compiled("old")
    file, = tmp_path.rglob("*.*")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(file, (two_days_ago, two_days_ago))
    compiled("young")
    compiled("this")
    assert sorted(path.name.split(".")[-3] for path in tmp_path.rglob("*.nbc")) == ["this", "young"]
    assert compiled("young") == compiled("this") == (1, [])


# --- the environment ---


@pytest.mark.parametrize("value", ["", "abc", "0", "-2", "1.5"])
def test_a_wrong_number_of_threads_is_ignored_in_one_line(value, monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_NUM_THREADS", value)
    most = environment._most_threads()
    assert "NUMBA_NUM_THREADS" not in os.environ and most == environment._most_threads() >= 1
    assert capsys.readouterr().err == f"minires: NUMBA_NUM_THREADS={value!r} is ignored: it must be a whole number from 1\n"


def test_a_number_of_threads_is_a_limit(monkeypatch, capsys):
    monkeypatch.setenv("NUMBA_NUM_THREADS", " 1 ")
    assert environment._most_threads() == 1
    monkeypatch.setenv("NUMBA_NUM_THREADS", "100000")
    assert 1 <= environment._most_threads() < 100000
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["", "0"])
def test_numba_never_sees_a_wrong_number_of_threads(value):
    done = python("-c", "import minires.backends.cpu", NUMBA_NUM_THREADS=value)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr


def test_without_a_compiler_the_cpu_back_end_refuses_in_a_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = python("-m", "minires", "train", "--model", "resnet20", NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("minires: error: the CPU back end is compiled by Numba, which NUMBA_DISABLE_JIT forbids: unset "
                           'it, or compute within use_backend("reference")\n')
    assert not list(tmp_path.iterdir())


REFERENCE = """
import numpy as np
from minires import use_backend
from minires.layers import Conv2d
with use_backend("reference"):
    print(Conv2d(3, 4, 3, rng=np.random.default_rng(0))(np.ones((1, 5, 5, 3), np.float32)).shape)
"""


def test_without_a_compiler_what_needs_none_goes_on():
    for arguments, part in ((("-m", "minires", "summary", "resnet20"), "269,722"), (("-c", REFERENCE), "(1, 3, 3, 4)\n")):
        done = python(*arguments, NUMBA_DISABLE_JIT="1")
        assert (done.returncode, done.stderr) == (0, "") and part in done.stdout
