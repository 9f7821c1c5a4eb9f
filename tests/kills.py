"""Kill `minires train` at random instants, go on with what it left, and hold the end against that of a run left alone.

    python tests/kills.py [--kills 100] [--seed 0] [--backend reference|cpu] [--cifar10 DIR]

By default a few small pictures, with --cifar10 those of CIFAR-10's files in a folder: the first 512 of them, two epochs.

Half of the kills fall inside a save (before, between and after the writes and renames of files), the others at a random
time, some within the first second. Counts folders that cannot be read, that cannot be resumed, and ends that differ by a
bit.
tests/training/test_kills.py runs the short form.
"""
import argparse
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

PROJECT = Path(__file__).parents[1]
EPOCHS, BATCH, IMAGES = 2, 8, 24
FEW = 512  # of CIFAR-10's images, in batches of 128
SAVE_EVERY = "0.05s"  # after nearly every step
LONGEST = 300  # seconds that one process may take


class Forked:
    """A process like subprocess.Popen's, forked off one that has imported all: it starts in no time."""

    modules = ("numpy", "minires.cli", "minires.training.run", "minires.plots", "minires.backends.cpu")

    def __init__(self, arguments, cwd, output):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(self.modules))
        self.process = context.Process(target=forked_child, args=(arguments, cwd, output))
        self.process.start()

    returncode = property(lambda self: self.process.exitcode)

    def wait(self, timeout=None):
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("kills", timeout)

    def kill(self):
        self.process.kill()


def forked_child(arguments, cwd, output):
    """The command line in a forked process, its output in a file."""
    os.chdir(cwd)
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    child(arguments[0], int(arguments[1]), arguments[2:])


def child(backend, crash_at, arguments):
    """Run the command line; die by SIGKILL at crash point number `crash_at` of the saves, and count them on the way."""
    from minires import files
    from minires.backends import use_backend
    from minires.cli import main

    passed = 0

    def point():
        nonlocal passed
        passed += 1
        if passed == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def call(*arguments, **options):
            point()
            result = function(*arguments, **options)
            point()
            return result
        return call

    class Halfway:
        """A file that is written in two halves."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def write(self, content):
            self.file.write(content[:len(content) // 2])
            self.file.flush()
            point()
            self.file.write(content[len(content) // 2:])

        def flush(self):
            self.file.flush()

        def fileno(self):
            return self.file.fileno()

    opened = os.fdopen
    files.os.fdopen = lambda handle, mode="r", *rest: Halfway(opened(handle, mode, *rest)) if mode == "wb" else opened(
        handle, mode, *rest)
    files.tempfile.mkstemp = around(files.tempfile.mkstemp)
    Path.replace, Path.rename, os.fsync = around(Path.replace), around(Path.rename), around(os.fsync)
    with use_backend(backend):
        try:
            main(arguments)
        finally:
            print(f"crash points {passed}", flush=True)


def small_pictures():
    """(part, class, image) of noise."""
    pixels = np.random.default_rng(0)
    for index in range(IMAGES + 8):
        yield "train" if index < IMAGES else "test", "abcd"[index % 4], pixels.integers(0, 256, (8, 8, 3), np.uint8)


def few_of_cifar10(folder):
    """(part, class, image) of the first images in CIFAR-10's binary files."""
    from minires.data.cifar10 import read_records

    for part, files, most in (("train", "data_batch_1*.bin", FEW), ("test", "test_batch*.bin", FEW // 4)):
        data = read_records(next(Path(folder).rglob(files)))
        for image, label in zip(data.images[:most], data.labels[:most], strict=True):
            yield part, data.classes[label], image


@dataclass
class Counts:
    """What came of the kills."""

    kills: int = 0
    in_saves: int = 0
    first_second: int = 0
    too_late: int = 0
    without_folder: int = 0
    unreadable: int = 0
    not_resumable: int = 0
    different: int = 0
    runs: int = 0


class Harness:
    """Runs and kills in a folder of its own."""

    def __init__(self, folder, backend, seed, fork=False, cifar10=None):
        self.fork, self.output = fork, Path(folder) / "output.txt"
        self.folder, self.backend, self.random, self.counts = Path(folder), backend, random.Random(seed), Counts()
        images = small_pictures() if cifar10 is None else few_of_cifar10(cifar10)
        self.batch = BATCH if cifar10 is None else 128
        for index, (part, name, image) in enumerate(images):
            place = self.folder / "data" / part / name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index}.png")
        if fork:
            Forked([backend, "0", "--help"], self.folder, self.output).wait()  # imports all that the others have
        began = time.perf_counter()
        process = self._start("whole", 0)
        process.wait(timeout=LONGEST)
        output = self.output.read_text()
        self.seconds = time.perf_counter() - began
        assert process.returncode == 0, output
        self.points = int(output.rsplit("crash points ", 1)[1])
        self.expected = self._end("whole")

    def _start(self, name, crash_at):
        path = self.folder / name
        arguments = ["train", "--resume", path, "--save-every", SAVE_EVERY] if path.exists() else [
            "train", "--dataset", self.folder / "data", "--epochs", EPOCHS, "--batch-size", self.batch, "--lr", "0.02",
            "--save-every", SAVE_EVERY, "--out", path]
        arguments = [self.backend, str(crash_at), *map(str, arguments)]
        if self.fork:
            return Forked(arguments, self.folder, self.output)
        with self.output.open("w") as output:
            return subprocess.Popen([sys.executable, __file__, "--child", *arguments], stdout=output, cwd=self.folder,
                                    stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(PROJECT)})

    def _end(self, name):
        from minires.files import load_tensors
        from minires.training import read_metrics

        run = self.folder / name
        (tensors, about), rows = load_tensors(run / "state.safetensors"), read_metrics(run / "metrics.jsonl")
        times = ("seconds", "images_per_second")
        rows = [{key: value for key, value in row.items() if key not in times} for row in rows]
        return ([(run / file).read_bytes() for file in ("last.safetensors", "best.safetensors")], about["random"], rows,
                {key: array.tobytes() for key, array in tensors.items()})

    def _is_readable(self, path):
        from minires.files import load_tensors
        from minires.training import read_metrics
        from minires.training.run import read_config

        try:
            read_config(path)
            read_metrics(path / "metrics.jsonl")
            for file in path.glob("*.safetensors"):
                load_tensors(file)
            return (path / "state.safetensors").exists()
        except ValueError as error:
            print(f"unreadable: {error}")
            return False

    def kill(self, name):
        """Start or go on with a run and kill it; returns whether it was alive still."""
        counts, in_save = self.counts, self.random.random() < 0.5
        after = self.random.uniform(0, 1 if self.random.random() < 0.2 else self.seconds)
        process = self._start(name, self.random.randint(1, self.points) if in_save else 0)
        try:
            process.wait(timeout=LONGEST if in_save else after)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.returncode != -signal.SIGKILL:
            counts.too_late += 1
            return False
        counts.kills += 1
        counts.in_saves += in_save
        counts.first_second += not in_save and after < 1
        path = self.folder / name
        if not path.exists():
            counts.without_folder += 1  # nothing was begun: it begins anew
        elif not self._is_readable(path):
            counts.unreadable += 1
        return True

    def run(self, kills):
        """Kill until there were so many; each run is killed once or a few times, then left to end."""
        while self.counts.kills < kills:
            name = f"run{self.counts.runs}"
            self.counts.runs += 1
            alive = True
            while alive and self.counts.kills < kills:
                alive = self.kill(name) and self.random.random() < 0.6
            process = self._start(name, 0)
            process.wait(timeout=LONGEST)
            output = self.output.read_text()
            if process.returncode and "nothing is left to resume" not in output:
                print(f"{name} cannot be resumed: {output}")
                self.counts.not_resumable += 1
            elif self._end(name) != self.expected:
                print(f"{name} differs")
                self.counts.different += 1
            leftovers = [path.name for path in (self.folder / name).iterdir() if path.name.startswith(".")]
            if leftovers:
                print(f"{name} keeps {leftovers}")
                self.counts.unreadable += 1
        return self.counts


def main():
    """The command."""
    if sys.argv[1:2] == ["--child"]:
        return child(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="reference", choices=("reference", "cpu"))
    parser.add_argument("--cifar10", type=Path, help="a folder with data_batch_1*.bin and test_batch*.bin, or one above it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = Harness(folder, options.backend, options.seed, cifar10=options.cifar10).run(options.kills)
    print(counts)
    return int(bool(counts.unreadable + counts.not_resumable + counts.different))


if __name__ == "__main__":
    sys.exit(main())
