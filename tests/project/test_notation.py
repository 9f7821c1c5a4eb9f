"""Mathematics is written one way, in docstrings and notebooks alike; the glossary stands in minires/layer.py."""
import re
from pathlib import Path

import numpy as np
import pytest

import minires
from minires import layer
from minires.backends import reference
from minires.layers import BatchNorm2d

PACKAGE = Path(minires.__file__).parent
DERIVATIONS = [PACKAGE / "layer.py", PACKAGE / "losses.py", PACKAGE / "study" / "hessian.py",
               PACKAGE / "study" / "forward_mode" / "rules.py",
               *(PACKAGE / "layers").glob("*.py"),
               *(PACKAGE.parent / "examples").glob("*.ipynb")]
# A prime or a d(...) for a small change. relu'(.) and f' are slopes, and d(conv1.weight) in an exercise is a gradient.
OTHER_NOTATION = re.compile(r"\b(d?x|d?y|v|w|c|q|p|s|P|x_hat|mean|var|loss|d?weight|d?bias)'(?![\w'\"])"
                            r"|\bd\((x|y|s|x_hat|mean|var|log p_j)\)")


@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.name)
def test_a_small_change_is_a_delta(path):
    text = path.read_text()
    strings = "" if path.suffix == ".ipynb" else "\n".join(re.findall(r'"""(.*?)"""', text, re.DOTALL))
    assert [found[0] for found in OTHER_NOTATION.finditer(strings or "".join(re.findall(r"\$[^$]*\$", text)))] == []


def test_the_glossary_says_what_the_derivations_use():
    for sign in ("dy, dx", "δx", "<a, b>", "A^T", "adjoint", "x_hat"):
        assert sign in layer.__doc__, sign


def test_the_matrix_in_the_docstring_of_batch_normalisation(rng):
    """dx = J (weight * dy), J symmetric; without eps J / s is a projection that removes 1 and x_hat."""
    m = 6
    x, dy = rng.standard_normal((2, 1, m, 1, 1))
    _, mean, var = reference.batchnorm_forward(x, np.ones(1), np.zeros(1), 0.0)
    s, one = 1 / np.sqrt(var[0]), np.ones(m)
    x_hat = ((x - mean) * s).reshape(m)
    assert "J = s (I - 1 1^T / m - x_hat x_hat^T / m)" in BatchNorm2d.__doc__
    J = s * (np.eye(m) - np.outer(one, one) / m - np.outer(x_hat, x_hat) / m)
    dx = reference.batchnorm_backward(dy, x, mean, var, np.full(1, 2.0), 0.0, True)[0]
    np.testing.assert_allclose(dx.reshape(m), J @ (2 * dy.reshape(m)), atol=1e-12)
    np.testing.assert_allclose([J @ one, J @ x_hat], 0, atol=1e-12)
    np.testing.assert_allclose((J / s) @ (J / s), J / s, atol=1e-12)
