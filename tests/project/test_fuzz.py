"""Mutated files and random arguments end in success or one sentence: the short form of tests/fuzz.py."""
import pytest
from fuzz import CONSTRUCTORS, fuzz_constructors, fuzz_readers

from minires.backends import use_backend


def test_mutated_files(tmp_path):
    with use_backend("reference"):
        results = fuzz_readers(tmp_path, 60)
    assert all(counts["UserError"] for reader, counts in results.items() if reader != "model card")


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_random_arguments(name):
    with use_backend("reference"):
        assert sum(fuzz_constructors(40, {name})[name].values()) == 40
