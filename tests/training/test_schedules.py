"""Schedules: against PyTorch's step by step, their ends, and that they keep no state."""
import numpy as np
import pytest

from minires.errors import UserError
from minires.layer import Parameter
from minires.optim import SGD
from minires.schedules import CosineLR, MultiStepLR, OneCycleLR, StepLR, WarmUp

STEPS = 40
SCHEDULES = {
    "StepLR": (lambda o: StepLR(o, 7, 0.3), lambda o, lr: [lr.StepLR(o, 7, 0.3)]),
    "MultiStepLR": (lambda o: MultiStepLR(o, (10, 25)), lambda o, lr: [lr.MultiStepLR(o, (10, 25))]),
    "MultiStepLR unsorted": (lambda o: MultiStepLR(o, (25, 10), 0.5), lambda o, lr: [lr.MultiStepLR(o, (10, 25), 0.5)]),
    "CosineLR": (lambda o: CosineLR(o, STEPS, 0.01), lambda o, lr: [lr.CosineAnnealingLR(o, STEPS, 0.01)]),
    "OneCycleLR": (lambda o: OneCycleLR(o, 0.2, STEPS),
                   lambda o, lr: [lr.OneCycleLR(o, 0.2, total_steps=STEPS, cycle_momentum=False)]),
    "OneCycleLR late peak": (
        lambda o: OneCycleLR(o, 0.4, STEPS, pct_start=0.62, div_factor=10, final_div_factor=50),
        lambda o, lr: [lr.OneCycleLR(o, 0.4, total_steps=STEPS, pct_start=0.62, div_factor=10, final_div_factor=50,
                                     cycle_momentum=False)]),
    "WarmUp": (lambda o: WarmUp(StepLR(o, 15), 6),
               lambda o, lr: [lr.StepLR(o, 15), lr.LinearLR(o, start_factor=1 / 6, total_iters=5)]),
}


def make_optimiser(lr=0.1):
    return SGD([Parameter(np.zeros(1))], lr, momentum=0.9)


def rates(optimiser, schedule, steps):
    seen = []
    for _ in range(steps):
        seen.append(optimiser.lr)
        optimiser.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_pytorchs(name):
    torch = pytest.importorskip("torch")
    ours, theirs = SCHEDULES[name]
    reference = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    torch_schedules = theirs(reference, torch.optim.lr_scheduler)
    expected = []
    for _ in range(STEPS):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        for schedule in torch_schedules:
            schedule.step()
    optimiser = make_optimiser()
    np.testing.assert_allclose(rates(optimiser, ours(optimiser), STEPS), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_loaded_optimiser_goes_on_with_the_same_rates(name):
    make, _ = SCHEDULES[name]
    optimiser = make_optimiser()
    whole = rates(optimiser, make(optimiser), STEPS)
    first = make_optimiser()
    rates(first, make(first), 13)
    second = make_optimiser()
    schedule = make(second)
    second.load_state_dict(first.state_dict())
    schedule.step()
    assert rates(second, schedule, STEPS - 13) == whole[13:]


def test_one_cycle_starts_low_peaks_and_ends_near_zero():
    optimiser = make_optimiser()
    seen = rates(optimiser, OneCycleLR(optimiser, 0.2, 100), 100)
    assert seen[0] == pytest.approx(0.2 / 25)
    assert np.argmax(seen) == 29
    assert max(seen) == pytest.approx(0.2)
    assert seen[-1] == pytest.approx(0.2 / 25 / 1e4)


@pytest.mark.parametrize("total_steps", [1, 2, 3, 4])
def test_one_cycle_of_a_few_steps_stays_within_its_bounds(total_steps):
    optimiser = make_optimiser()
    seen = rates(optimiser, OneCycleLR(optimiser, 0.2, total_steps), total_steps + 3)
    assert all(0 < lr <= 0.2 for lr in seen)


def test_cosine_and_one_cycle_stay_at_the_end():
    optimiser = make_optimiser()
    assert CosineLR(optimiser, 10, 0.01).lr_at(25) == pytest.approx(0.01)
    assert OneCycleLR(optimiser, 0.2, 10).lr_at(25) == pytest.approx(0.2 / 25 / 1e4)


def test_he2015_milestones():
    schedule = MultiStepLR(make_optimiser(), (32000, 48000))
    assert [schedule.lr_at(step) for step in (0, 31999, 32000, 47999, 48000)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("make", [
    lambda o: StepLR(o, 0), lambda o: MultiStepLR(o, (10, -1)), lambda o: CosineLR(o, 1.5),
    lambda o: OneCycleLR(o, 0.2, 0), lambda o: OneCycleLR(o, 0.2, 10, pct_start=30), lambda o: WarmUp(StepLR(o, 3), 0),
])
def test_impossible_lengths_are_refused(make):
    with pytest.raises(UserError, match="got"):
        make(make_optimiser())
