"""The losses' values, edges and errors (their gradients: test_gradients, their parity: test_torch_parity)."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.losses import CrossEntropyLoss, MSELoss


def test_cross_entropy_of_known_logits(backend):
    loss = CrossEntropyLoss()
    y = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25]]))
    assert loss.forward(y, np.array([0, 2])) == pytest.approx(-(np.log(0.7) + np.log(0.25)) / 2)
    np.testing.assert_allclose(loss.backward(), np.array([[-0.3, 0.2, 0.1], [0.5, 0.25, -0.75]]) / 2, atol=1e-15)


def test_label_smoothing_of_uniform_logits(backend):
    """Every distribution has cross-entropy log K against the uniform one, and the gradient pulls towards q."""
    for smoothing in (0.0, 0.3, 1.0):
        loss = CrossEntropyLoss(smoothing)
        assert loss.forward(np.zeros((2, 4)), np.array([1, 3])) == pytest.approx(np.log(4))
        q = np.full((2, 4), smoothing / 4)
        q[[0, 1], [1, 3]] += 1 - smoothing
        np.testing.assert_allclose(loss.backward(), (0.25 - q) / 2, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e4, 1e30])
def test_huge_logits_stay_finite(dtype, scale, backend):
    loss, y = CrossEntropyLoss(), np.array([[scale, -scale, 0]], dtype)
    assert loss.forward(y, np.array([0])) == 0
    np.testing.assert_array_equal(loss.backward(), np.zeros((1, 3), dtype))
    assert loss.forward(y, np.array([1])) == pytest.approx(2 * scale)
    np.testing.assert_array_equal(loss.backward(), np.array([[1, -1, 0]], dtype))


def test_rows_of_the_gradient_sum_to_zero(backend, rng):
    loss = CrossEntropyLoss(0.1)
    loss.forward(rng.standard_normal((33, 10)), rng.integers(0, 10, 33))
    np.testing.assert_allclose(loss.backward().sum(1), 0, atol=1e-15)


def test_mse(backend):
    loss = MSELoss()
    assert loss.forward(np.array([[1.0, 2.0]]), np.array([[0.0, 4.0]])) == 2.5
    np.testing.assert_array_equal(loss.backward(), [[1.0, -2.0]])


@pytest.mark.parametrize("loss", [CrossEntropyLoss(), MSELoss()])
def test_one_backward_a_forward(loss, backend):
    y = np.ones((2, 3))
    target = np.array([0, 1]) if isinstance(loss, CrossEntropyLoss) else y
    with pytest.raises(RuntimeError, match="backward needs a forward before it, one for each backward"):
        loss.backward()
    loss.forward(y, target)
    loss.backward()
    with pytest.raises(RuntimeError, match="backward needs a forward"):
        loss.backward()


@pytest.mark.parametrize(("y", "target", "reason"), [
    (np.ones((2, 3)), np.array([0, 3]), r"targets in 0 \.\. 2, got 0 \.\. 3"),
    (np.ones((2, 3)), np.array([-1, 0]), r"got -1 \.\. 0"),
    (np.ones((2, 3)), np.array([0.0, 1.0]), "2 integer targets, one per row of y, got shape .* of dtype float64"),
    (np.ones((2, 3)), np.array([[0], [1]]), r"got shape \(2, 1\)"),
    (np.ones((2, 3)), np.array([0]), r"got shape \(1,\)"),
    (np.ones((0, 3)), np.array([], int), r"at least one row, got \(0, 3\)"),
    (np.ones(3), np.array([0]), r"logits y of shape \(N, K\)"),
])
def test_wrong_targets(y, target, reason):
    with pytest.raises(UserError, match=reason):
        CrossEntropyLoss().forward(y, target)


def test_wrong_arguments():
    with pytest.raises(UserError, match=r"label_smoothing must be a number at least 0 and at most 1, got 1\.5"):
        CrossEntropyLoss(1.5)
    with pytest.raises(UserError, match="y and target alike"):
        MSELoss().forward(np.ones((2, 3)), np.ones((2, 2)))
    with pytest.raises(UserError, match="y and target alike"):
        MSELoss().forward(np.ones(2), np.ones(2, np.float32))
    with pytest.raises(UserError, match="empty y"):
        MSELoss().forward(np.ones((0, 2)), np.ones((0, 2)))
