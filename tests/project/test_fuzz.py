"""Mutated files and random arguments end in success or one sentence: the short form of tests/fuzz.py."""
import pytest
from fuzz import CONSTRUCTORS, fuzz_constructors, fuzz_readers

from minires.backends import use_backend
from minires.errors import UserError


def test_mutated_files(tmp_path):
    with use_backend("reference"):
        results = dict(fuzz_readers(tmp_path, 60))
    assert all(counts["UserError"] for counts in results.values())


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_random_arguments(name):
    with use_backend("reference"):
        assert sum(dict(fuzz_constructors(40, {name}))[name].values()) == 40


@pytest.mark.parametrize(("message", "line"), [
    ("a name\nof two lines", "a name\\nof two lines"), ("a\tb\x1b[31m", "a\\tb\\x1b[31m"),
    ("bad \udc80 byte", "bad \\udc80 byte"),
    ("für 10 µs, 東京", "für 10 µs, 東京"), ("", "")])
def test_an_error_is_a_line_that_can_be_printed(message, line):
    assert str(UserError(message)) == line
    str(UserError(message)).encode()
