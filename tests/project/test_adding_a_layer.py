"""Who follows the README's section "Adding a layer" to the letter has a layer that passes every check which it lists.

The section's blocks are applied to a copy of the project, so that README and project cannot part: a line that it names and
that is not there any more fails here.
"""
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("## Adding a layer\n")[2].partition("\n## ")[0]


def blocks(language):
    """The text of the section's blocks of a language, in order."""
    return [textwrap.dedent(text) for text in re.findall(rf"^ *```{language}\n(.*?)^ *```", SECTION, re.S | re.M)]


def follow(block, folder):
    """Change the files of a project as a block says: after `+++ file`, hunks of lines that are there, new, or replaced."""
    for part in re.split(r"^\+\+\+ ", block, flags=re.M)[1:]:
        name, *hunks = re.split(r"\n@@.*", part.rstrip("\n"))
        path = folder / name
        source = path.read_text(encoding="utf-8") if path.exists() else ""
        for hunk in hunks:
            lines = hunk.splitlines()[1:]
            before = "".join(f"\n{line[1:]}" for line in lines if line[:1] != "+")
            after = "".join(f"\n{line[1:]}" for line in lines if line[:1] != "-")
            if before:
                assert f"\n{source}".count(f"{before}\n") == 1, f"{name} has no such place, or several:{before}"
                source = f"\n{source}".replace(f"{before}\n", f"{after}\n")[1:]
            else:
                source += after[1:] + "\n"
        path.write_text(source, encoding="utf-8")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project in which somebody has followed the section."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("minires", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for block in blocks("diff"):
        follow(block, folder)
    return folder


CHECKS = [line for block in blocks("sh") for line in block.splitlines()]


@pytest.mark.parametrize("command", CHECKS)
def test_the_new_layer_passes(command, project):
    program, *arguments = shlex.split(command)
    alone = ["-n", "0"] if program == "pytest" else []
    done = subprocess.run([sys.executable, "-m", program, *arguments, *alone], cwd=project, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(project)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Softplus" in done.stdout or re.search(r"\d+ passed", done.stdout)
