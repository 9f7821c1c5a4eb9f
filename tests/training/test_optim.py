"""The optimisers by hand, step for step (beside PyTorch on a whole network: test_sgd_parity), and their state."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.layer import Parameter
from minires.layers import BatchNorm2d, Conv2d
from minires.optim import SGD, AdamW


def parameter(value, grad, decays=True, dtype=np.float64):
    made = Parameter(np.full(3, value, dtype), decays)
    made.grad[...] = grad
    return made


def test_sgd_by_hand(backend):
    p = parameter(1.0, 0.5)
    optimiser = SGD([p], lr=0.1, momentum=0.9, weight_decay=0.2)
    optimiser.step()  # g = 0.5 + 0.2 = 0.7 = velocity
    np.testing.assert_allclose(p.data, 0.93)
    optimiser.step()  # g = 0.5 + 0.186, velocity = 0.63 + 0.686
    np.testing.assert_allclose(p.data, 0.93 - 0.1 * 1.316)


def test_nesterov_by_hand(backend):
    p = parameter(1.0, 0.5)
    SGD([p], lr=0.1, momentum=0.9, nesterov=True).step()
    np.testing.assert_allclose(p.data, 1 - 0.1 * (0.5 + 0.9 * 0.5))


def test_adamw_first_step_is_the_sign_of_the_gradient(backend):
    p = parameter(1.0, -1e-3)
    AdamW([p], lr=0.1, eps=1e-12, weight_decay=0.5).step()
    np.testing.assert_allclose(p.data, 1 * (1 - 0.05) + 0.1, rtol=1e-8)


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9, 0.5), lambda p: AdamW(p, 0.1, weight_decay=0.5)])
def test_only_what_decays_is_decayed(make, backend):
    """With gradients at zero weight decay alone moves a parameter."""
    weight, bias = parameter(1.0, 0.0), parameter(1.0, 0.0, decays=False)
    optimiser = make([weight, bias])
    optimiser.decay_all = False
    optimiser.step()
    assert (weight.data < 1).all() and (bias.data == 1).all()
    optimiser.decay_all = True
    optimiser.step()
    assert (bias.data < 1).all()


def test_which_parameters_decay():
    assert [p.decays for p in Conv2d(3, 4, 3).parameters()] == [True, False]
    assert [p.decays for p in BatchNorm2d(3).parameters()] == [False, False]
    assert SGD([parameter(1, 0)], 0.1, decay_all=False).decay_all is False


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9, 1e-3, True), lambda p: AdamW(p, 0.1)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_in_place_and_keep_the_dtype(make, dtype, backend):
    p = parameter(1.0, 0.3, dtype=dtype)
    data, grad = p.data, p.grad
    optimiser = make([p])
    optimiser.step()
    assert p.data is data and p.grad is grad and data.dtype == dtype and (data != 1).all()
    assert (grad == dtype(0.3)).all(), "the gradient is read, not used up"
    assert all(array.dtype == dtype for arrays in optimiser.state for array in arrays)
    optimiser.zero_grad()
    assert not grad.any()


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, 0.9), lambda p: AdamW(p, 0.1)])
def test_state_continues_where_it_was(make, backend, rng):
    """Three steps, and one step, a save, a load and two steps, are the same."""
    grads = rng.standard_normal((3, 3))
    through, first = parameter(1.0, 0), parameter(1.0, 0)
    straight, before = make([through]), make([first])
    for grad in grads:
        through.grad[...] = grad
        straight.step()
    first.grad[...] = grads[0]
    before.step()
    state, replay = before.state_dict(), parameter(1.0, 0)
    replay.data[...] = first.data
    before.step()  # must not reach the saved copy
    after = make([replay])
    after.load_state_dict(state)
    for grad in grads[1:]:
        replay.grad[...] = grad
        after.step()
    assert np.array_equal(replay.data, through.data)
    assert after.steps == 3


def test_state_of_another_optimiser_is_refused():
    state = SGD([parameter(1, 0)], 0.1).state_dict()
    with pytest.raises(UserError, match=r"does not fit AdamW on these parameters: 0\.first, 0\.second, 0\.velocity"):
        AdamW([parameter(1, 0)]).load_state_dict(state)
    with pytest.raises(UserError, match=r"1\.velocity"):
        SGD([parameter(1, 0), parameter(1, 0)], 0.1).load_state_dict(state)


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: SGD([], 0.1), r"no parameters: pass model\.parameters\(\)"),
    (lambda: SGD([parameter(1, 0)], -1), "lr must be a number at least 0, got -1"),
    (lambda: SGD([parameter(1, 0)], float("nan")), "lr must be a number at least 0, got nan"),
    (lambda: SGD([parameter(1, 0)], 0.1, weight_decay=-1), "weight_decay must be a number at least 0"),
    (lambda: SGD([parameter(1, 0)], 0.1, 1.0), "momentum must be a number at least 0 and below 1, got 1.0"),
    (lambda: SGD([parameter(1, 0)], 0.1, nesterov=True), "needs momentum > 0"),
    (lambda: AdamW([parameter(1, 0)], betas=(0.9, 1.0)), "each of betas must be a number at least 0 and below 1, got 1.0"),
])
def test_wrong_arguments(make, reason):
    with pytest.raises(UserError, match=reason):
        make()
