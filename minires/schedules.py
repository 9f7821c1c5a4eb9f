"""Learning-rate schedules: the rate as a pure function of how many steps the optimiser has made.

    schedule = OneCycleLR(optimiser, max_lr=0.2, total_steps=epochs * len(loader))
    ...
    optimiser.step()
    schedule.step()          # optimiser.lr = schedule.lr_at(optimiser.steps)

A schedule keeps no state of its own: an optimiser that was saved and loaded again carries its step count, so after
`schedule.step()` a resumed run goes on with the rate it would have had. All lengths are in optimiser steps, counted
from 0; the rate before the first step is `lr_at(0)`.
"""
import math

from minires.arguments import count, number, shown
from minires.errors import UserError
from minires.reprs import Shown


class Schedule(Shown):
    """What the schedules share. Subclasses write `lr_at`.

    The base rate is the optimiser's at construction; construction sets the rate of the first step.
    """

    def __init__(self, optimiser):
        if not hasattr(optimiser, "lr") or not hasattr(optimiser, "steps"):
            raise UserError(f"a schedule takes an optimiser, with lr and steps, got {shown(optimiser)}")
        self.optimiser, self.base_lr = optimiser, optimiser.lr

    def lr_at(self, step):
        """The learning rate of update number `step`, counted from 0."""
        raise NotImplementedError(f"{type(self).__name__} does not define lr_at")

    def step(self):
        """Give the optimiser the rate of its next update. Call it after each `optimiser.step()`."""
        self.optimiser.lr = self.lr_at(self.optimiser.steps)


class StepLR(Schedule):
    """Multiply the rate by `gamma` every `step_size` steps: lr = base * gamma^floor(step / step_size)."""

    def __init__(self, optimiser, step_size, gamma=0.1):
        super().__init__(optimiser)
        self.step_size, self.gamma = _steps("step_size", step_size), number("gamma", gamma, 0)
        self.step()

    def lr_at(self, step):
        return self.base_lr * self.gamma ** (step // self.step_size)


class MultiStepLR(Schedule):
    """Multiply the rate by `gamma` at each milestone: lr = base * gamma^(number of milestones reached).

    He et al. 2015, section 4.2: base 0.1, milestones (32000, 48000), 64000 steps.
    """

    def __init__(self, optimiser, milestones, gamma=0.1):
        super().__init__(optimiser)
        if not isinstance(milestones, tuple | list):
            raise UserError(f"milestones must be a tuple or a list of whole numbers of steps, got {shown(milestones)}")
        self.milestones, self.gamma = sorted(_steps("milestones", m) for m in milestones), number("gamma", gamma, 0)
        self.step()

    def lr_at(self, step):
        return self.base_lr * self.gamma ** sum(step >= milestone for milestone in self.milestones)


class CosineLR(Schedule):
    """Half a cosine from the base rate down to `min_lr` at step `total_steps`, and `min_lr` from there on.

        lr = min_lr + (base - min_lr) * (1 + cos(pi * step / total_steps)) / 2

    Source: Loshchilov & Hutter 2017, without restarts, https://arxiv.org/abs/1608.03983
    """

    def __init__(self, optimiser, total_steps, min_lr=0.0):
        super().__init__(optimiser)
        self.total_steps, self.min_lr = _steps("total_steps", total_steps), number("min_lr", min_lr, 0)
        self.step()

    def lr_at(self, step):
        return _cosine(self.base_lr, self.min_lr, step / self.total_steps)


class OneCycleLR(Schedule):
    """Up from `max_lr / div_factor` to `max_lr` over the first `pct_start` (a fraction) of the steps, then down to
    `max_lr / div_factor / final_div_factor` at the last one, both along half a cosine.

    PyTorch's names and defaults; the momentum stays as it is (PyTorch's cycle_momentum=False). The base rate is not
    used. Source: Smith & Topin 2017, https://arxiv.org/abs/1708.07120
    """

    def __init__(self, optimiser, max_lr, total_steps, pct_start=0.3, div_factor=25.0, final_div_factor=1e4):
        super().__init__(optimiser)
        self.max_lr, self.total_steps = number("max_lr", max_lr, 0), _steps("total_steps", total_steps)
        self.pct_start = number("pct_start", pct_start, 0, 1)  # the fraction of the steps that go up
        self.div_factor, self.final_div_factor = (number(name, value, above=0) for name, value in (
            ("div_factor", div_factor), ("final_div_factor", final_div_factor)))
        self.initial_lr = self.max_lr / self.div_factor
        self.final_lr = self.initial_lr / self.final_div_factor
        self.peak_step = self.pct_start * self.total_steps - 1
        self.step()

    def lr_at(self, step):
        if step <= self.peak_step:
            return _cosine(self.initial_lr, self.max_lr, step / self.peak_step if self.peak_step > 0 else 1)
        falling = self.total_steps - 1 - self.peak_step
        return _cosine(self.max_lr, self.final_lr, (step - self.peak_step) / falling if falling > 0 else 1)


class TriangleLR(Schedule):
    """In straight lines: from `start` times the base rate up to it over the first `pct_start` (a fraction) of the steps,
    then down to `end` times it at step `total_steps`, and that from there on.

    pct_start 0 falls from the first step on. Sources: Howard & Ruder 2018, section 3.2 (slanted triangular),
    https://arxiv.org/abs/1801.06146; Li et al. 2019 (to zero, when steps are few), https://arxiv.org/abs/1905.04753
    """

    def __init__(self, optimiser, total_steps, pct_start=0.2, start=0.0, end=0.0):
        super().__init__(optimiser)
        self.total_steps, self.pct_start = _steps("total_steps", total_steps), number("pct_start", pct_start, 0, below=1)
        self.start, self.end = number("start", start, 0), number("end", end, 0)
        self.step()

    def lr_at(self, step):
        at = step / self.total_steps
        if at < self.pct_start:
            return self.base_lr * (self.start + (1 - self.start) * at / self.pct_start)
        return self.base_lr * (1 + (self.end - 1) * min(1.0, (at - self.pct_start) / (1 - self.pct_start)))


class WarmUp(Schedule):
    """Another schedule whose first `steps` rates are scaled by 1/steps, 2/steps, ... 1.

    Source: Goyal et al. 2017, section 2.2 (gradual warm-up), https://arxiv.org/abs/1706.02677
    """

    def __init__(self, schedule, steps):
        if not isinstance(schedule, Schedule):
            raise UserError(f"WarmUp takes a schedule, got {shown(schedule)}")
        super().__init__(schedule.optimiser)
        self.schedule, self.steps = schedule, _steps("steps", steps)
        self.step()

    def lr_at(self, step):
        return self.schedule.lr_at(step) * min(1.0, (step + 1) / self.steps)


def _cosine(start, end, fraction):
    """From start to end along half a cosine; end beyond fraction 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def _steps(name, value):
    """A whole number of optimiser steps, 1 or more."""
    return count(name, value, 2**53)


__all__ = ["CosineLR", "MultiStepLR", "OneCycleLR", "Schedule", "StepLR", "TriangleLR", "WarmUp"]
