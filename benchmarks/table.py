"""Put the table of results/vs_torch.json into the README, between its two marker comments."""
import json
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import RESULTS, run
from minires.bench.tables import markdown
from minires.errors import UserError
from minires.files import write_atomically

START, END = "<!-- bench:start -->", "<!-- bench:end -->"


def insert(text, table, start=START, end=END):
    """`text` with `table` between the markers. UserError unless each marker is there once, in order."""
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise UserError(f"the README has no place for the table: expected one line {start} and, after it, one {end}")
    return text[:text.index(start) + len(start)] + "\n" + table + "\n" + text[text.index(end):]


def main(
    results: Annotated[Path, typer.Option(help="What benchmarks.vs_torch wrote.")] = RESULTS / "vs_torch.json",
    readme: Annotated[Path, typer.Option(help="The file with the markers.")] = RESULTS.parents[1] / "README.md",
):
    """Write the benchmark table into the README."""
    for path in (results, readme):
        if not path.is_file():
            raise UserError(f"{path} is not there: run python -m benchmarks.vs_torch first, from the repository")
    table = markdown(json.loads(results.read_text(encoding="utf-8")))
    write_atomically(readme, insert(readme.read_text(encoding="utf-8"), table).encode())
    print(f"wrote the table into {readme}")


if __name__ == "__main__":
    run(main)
