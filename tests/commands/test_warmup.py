"""`minires warmup` compiles what training and inference need, once."""
import os
import subprocess
import sys
from pathlib import Path

import minires


def warmup(folder, *arguments):
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder), "PYTHONPATH": str(Path(minires.__file__).parents[1])}
    return subprocess.run([sys.executable, "-m", "minires", "warmup", *arguments], env=environment, capture_output=True,
                          text=True, check=False)


def test_kernels_are_compiled_once(tmp_path):
    first = warmup(tmp_path, "resnet8", "--batch-size", "8")
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("resnet8 on 8 images of 32 x 32: kernels compiled in ")
    assert list(tmp_path.rglob("*.nbc"))
    again = warmup(tmp_path, "resnet8", "--batch-size", "8")
    assert (again.stdout, again.stderr) == ("resnet8 on 8 images of 32 x 32: every kernel was compiled before\n", "")


def test_mistakes_are_a_sentence(tmp_path):
    mistakes = (("resnet9",), "unknown model 'resnet9'"), (("resnet8", "--batch-size", "0"), "batch size 0")
    for arguments, message in mistakes:
        done = warmup(tmp_path, *arguments)
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1
