"""Runs that are killed go on to the same bits: the short form of tests/kills.py, which kills a hundred."""
from kills import Harness


def test_killed_runs_go_on_to_the_same_bits(tmp_path):
    counts = Harness(tmp_path, "reference", seed=1, fork=True).run(kills=3)
    assert counts.kills == 3
    assert (counts.unreadable, counts.not_resumable, counts.different) == (0, 0, 0)
