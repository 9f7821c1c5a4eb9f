"""Fixtures every test may use: a seeded generator, and the back ends that NumPy arrays can be computed by."""
from pathlib import Path

import numpy as np
import pytest

from minires.backends import HOST_BACKENDS, use_backend

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=HOST_BACKENDS)
def backend(request):
    """The test runs once inside each back end; the value is its name."""
    with use_backend(request.param):
        yield request.param


@pytest.fixture
def published():
    """The folder with the published weights and the lossless images."""
    if not DATA.is_dir():
        pytest.skip(f"needs the published weights and images in {DATA}, which is not there")
    return DATA


def relative_error(found, expected):
    """max |found - expected| / max |expected|; infinite when shape, dtype or the places of NaN or inf differ."""
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return np.inf
    finite = np.isfinite(expected)
    if not np.array_equal(found[~finite], expected[~finite], equal_nan=True) or not np.isfinite(found[finite]).all():
        return np.inf
    scale = np.abs(expected[finite]).max(initial=0)
    return np.abs(found[finite] - expected[finite]).max(initial=0) / (scale or 1)
