"""`exercises.json`: what a student has done in a folder."""
from pathlib import Path

import pytest

from minires.cli import main
from minires.study.exercises import find_exercises
from minires.study.exercises.checker.words import BLANK


def test_what_was_done_is_remembered(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["exercise", *arguments])
        return stop.value.code or 0, *capsys.readouterr()

    monkeypatch.chdir(tmp_path)
    assert "check" not in command("list")[1]
    command("start", "relu")
    command("check", "relu.py")
    assert "the rectifier (1 check, the last: blank)" in command("list")[1]
    blank_file = Path("relu.py").read_text()
    for body, last in [("dy", "2 checks, the last: mask missing"), ("dy * (y > 0)", "passed"), ("dy", "passed")]:
        Path("relu.py").write_text(blank_file.replace(BLANK, f"return {body}"))
        command("check", "relu.py")
        assert f"the rectifier ({last})" in command("list")[1]
    assert command("list")[1].splitlines()[-1] == f"1 of {len(find_exercises())} passed, by exercises.json in this folder"
    command("check", "relu.py", "--exercise", "linear")
    assert "linear" not in Path("exercises.json").read_text()
    Path("exercises.json").write_text("[1]")
    for arguments in (("list",), ("check", "relu.py")):
        code, out, error = command(*arguments)
        assert (code, out) == (2, "") and "exercises.json, the record of your exercises, cannot be read" in error
