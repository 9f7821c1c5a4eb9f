"""What the README shows is what the project has."""
import re
import textwrap

from paths import ROOT

import minires

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_block_that_it_shows_is_the_files_own_lines():
    path, code = re.search(r"\(`(minires/layers/residual\.py)`\):\n\n```python\n(.*?)```", README, re.S).groups()
    assert textwrap.indent(code, "    ") in (ROOT / path).read_text(encoding="utf-8")


def test_every_file_that_it_names_is_there():
    named = set(re.findall(r"[`(]((?:minires|examples|benchmarks|tests)/[\w./]+?)[`)]", README))
    missing = [path for path in named if not (ROOT / path).exists()]
    assert len(named) > 20 and not missing, missing


def test_python_blocks_are_python():
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        compile(block, "README.md", "exec")


def test_what_to_import_is_everything_that_is_public():
    table = README.partition("## What to import\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", table, re.M)
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert sorted(named) == sorted({*minires.__all__} - {"__version__"})
