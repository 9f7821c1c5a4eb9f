"""What a step costs: difference quotients against their step e, and the complex step, which has no such cost.

The slope of f(t) along a direction, f(t) = sum(u * layer(x + t v)) with every parameter moving too, is approximated by

    forward   (f(e) - f(0)) / e            = f' + e f'' / 2 + ...        truncation falls with e
    central   (f(e) - f(-e)) / (2 e)       = f' + e^2 f''' / 6 + ...     and here with its square
    complex   Im f(i e) / e                = f' - e^2 f''' / 6 + ...     for f that is analytic

The first two subtract numbers that agree in more and more digits as e shrinks: each carries a rounding error of about
2^-53 |f|, which the division by e blows up. So their error has the shape of a V: it falls with e or e^2 until truncation and
rounding meet, and then rises with 1 / e. With f, f'' and f''' near 1 the best forward step is near sqrt(2^-53) = 1e-8 and
leaves an error of 1e-8; the best central step is near its cube root, 5e-6, and leaves 1e-11. No step does better, which is
why difference quotients can prove a gradient to ten digits and never to fifteen. The complex step subtracts nothing: there
e may be 1e-100, the truncation is nil, and the error stays at rounding.

It asks that f be analytic: made of sums, products, quotients, roots, exponentials and logarithms, no comparison and no
absolute value. Source: Squire & Trapp 1998, "Using complex variables to estimate derivatives of real functions".
"""
from dataclasses import dataclass

import numpy as np

from minires.backends import reference, use_backend
from minires.errors import UserError
from minires.layers import (
    GELU,
    AvgPool2d,
    BatchNorm2d,
    Bias,
    Conv2d,
    Dropout,
    Flatten,
    GlobalAvgPool2d,
    GroupNorm,
    Identity,
    LayerNorm,
    LeakyReLU,
    Linear,
    MaxPool2d,
    PaddedShortcut,
    ReLU,
    Scale,
    SiLU,
)
from minires.losses import CrossEntropyLoss, MSELoss
from minires.study.forward_mode.products import tangent
from minires.study.forward_mode.rules import shares
from minires.study.gradcheck import LayerState, LossLayer

STEPS = tuple(float(f"1e-{n}") for n in range(1, 13))
COMPLEX_STEP = 1e-100


def _conv2d(layer, x, at):
    return reference.conv2d_forward(x, at(layer.weight), at(layer.bias), layer.stride, layer.padding, layer.dilation)


def _batchnorm2d(layer, x, at):
    weight, bias = at(layer.weight), at(layer.bias)
    if layer.batch_statistics:
        return reference.batchnorm_forward(x, weight, bias, layer.eps)[0]
    return reference.batchnorm_apply(x, layer.running_mean, layer.running_var, weight, bias, layer.eps)


def _dropout(layer, x, at):
    if not layer.training or layer.p == 0:
        return x
    return reference.dropout_forward(x, layer.rng.random(x.shape, np.float32) >= layer.p, layer.p)


# The reference's operators that are analytic, run on complex numbers as they stand: (layer, x, value of a parameter) -> y.
# Batch and layer normalisation are among them because they write the variance as mean((x - mean)^2); numpy.var takes
# |x - mean|^2 of complex numbers, and its complex step would be wrong. The cross-entropy subtracts the largest logit, but
# whichever is subtracted, the loss is the same, so that the comparison does not count. Layers themselves refuse complex x.
ANALYTIC = {
    Conv2d: _conv2d,
    Linear: lambda layer, x, at: reference.linear_forward(x, at(layer.weight), at(layer.bias)),
    BatchNorm2d: _batchnorm2d,
    LayerNorm: lambda layer, x, at: reference.layernorm_forward(x, at(layer.weight), at(layer.bias), layer.eps)[0],
    GroupNorm: lambda layer, x, at: reference.groupnorm_forward(x, at(layer.weight), at(layer.bias), layer.num_groups,
                                                                layer.eps)[0],
    Scale: lambda layer, x, at: x * at(layer.weight),
    Bias: lambda layer, x, at: x + at(layer.bias),
    AvgPool2d: lambda layer, x, at: reference.avgpool2d_forward(x, layer.kernel_size, layer.stride, layer.padding),
    GlobalAvgPool2d: lambda layer, x, at: reference.global_avgpool_forward(x),
    Dropout: _dropout,
    Flatten: lambda layer, x, at: x.reshape(len(x), -1),
    Identity: lambda layer, x, at: x,
    PaddedShortcut: lambda layer, x, at: reference.pad_shortcut_forward(x, layer.out_channels, layer.stride),
    CrossEntropyLoss: lambda layer, x, at: np.array([
        reference.soft_cross_entropy_forward(x, shares(layer.loss, x.real, layer.target))[0]]),
    MSELoss: lambda layer, x, at: np.array([reference.mse_forward(x, layer.target)]),
}

_ORDER = ("compares, and complex numbers have no order. NumPy's is by the real part, then the imaginary one, which chooses "
          "right away from kinks and ties, by luck rather than by the maths")
NOT_ANALYTIC = {
    ReLU: f"max(x, 0) {_ORDER}; at the kink it would give slope 1, where the backward pass takes 0",
    LeakyReLU: f"the sign of x {_ORDER}",
    SiLU: "its sigmoid is computed from |x|, so that no exponential overflows, and |x| of a complex number is its length",
    GELU: "its error function is the C library's, which takes real numbers alone",
    MaxPool2d: f"the maximum of a window {_ORDER}; at a tie it would follow the pixel that moves up, not the first",
}


def why_no_complex_step(layer):
    """Why a layer has no complex step: a sentence, or None where it has one."""
    kind = type(layer.loss if isinstance(layer, LossLayer) else layer)
    if kind in ANALYTIC:
        return None
    for _, part in layer.named_layers():
        if type(part) in NOT_ANALYTIC:
            inside = "" if part is layer else f"it holds a {type(part).__name__}: "
            return inside + NOT_ANALYTIC[type(part)]
    return f"no complex evaluation of {kind.__name__} is written: add one to minires.study.forward_mode.steps.ANALYTIC"


def complex_step(layer, x, v, tangents=None, step=COMPLEX_STEP):
    """Jv by Im layer(x + i step v; parameter + i step tangent) / step: no difference, hence no cancellation.

    x, v, tangents: as for `jvp`, float64; always computed by the reference's operators. UserError, with the reason, for a
    layer that is not analytic.
    """
    reason = why_no_complex_step(layer)
    if reason is not None:
        raise UserError(f"{type(layer).__name__} has no complex step: {reason}")
    tangents = {} if tangents is None else tangents

    def at(parameter):
        return None if parameter is None else parameter.data + 1j * step * tangents.get(parameter, np.zeros(1))

    kind = type(layer.loss if isinstance(layer, LossLayer) else layer)
    return ANALYTIC[kind](layer, x + 1j * step * v, at).imag / step


@dataclass(frozen=True)
class StepCurve:
    """Errors of a slope at each of `steps`, relative to the slope's size: forward, central and complex quotients (complex
    is None where `reason` says why). truncation: (|f''| / 2, |f'''| / 6) and rounding: 2^-53 of f's size, relative to the
    slope likewise, so that the arms of the V are truncation[0] * e, truncation[1] * e^2 and rounding / e."""

    steps: tuple
    forward: tuple
    central: tuple
    complex: tuple | None
    reason: str | None
    truncation: tuple
    rounding: float

    def best(self, kind):
        """(step, error) of the most accurate quotient of a kind, "forward", "central" or "complex"."""
        errors = getattr(self, kind)
        place = int(np.argmin(errors))
        return self.steps[place], errors[place]


def step_curve(layer, x, rng, steps=STEPS):
    """The StepCurve of a layer at x along one random direction of x and all parameters; forward mode's
    slope is the truth.

    x: float64, of the layer's input shape, the layer in float64 too. Entries of the direction are standard normal. Errors
    are relative to max(|f'|, sqrt(sum((u * Jv)^2))). The layer is left as it was.
    """
    state = LayerState(layer)
    starts = [(array, array.copy()) for array in (parameter.data for parameter in layer.parameters())]
    v = rng.standard_normal(x.shape)
    tangents = {parameter: rng.standard_normal(parameter.data.shape) for parameter in layer.parameters()}
    directions = list(tangents.values())

    def y_at(t):
        state.restore()
        for (array, start), direction in zip(starts, directions, strict=True):
            array[...] = start + t * direction
        return layer.forward(x + t * v).copy()

    try:
        y = y_at(0.0)
        u = rng.standard_normal(y.shape)
        state.restore()
        with use_backend("reference"):
            _, Jv = tangent(layer, x, v, tangents)
        slope, size = float(np.vdot(u, Jv)), max(abs(float(np.vdot(u, Jv))), float(np.linalg.norm(u * Jv)))
        reason = why_no_complex_step(layer)
        forward, central, imaginary = [], [], None
        for step in steps:
            up, down = y_at(step), y_at(-step)
            forward.append(abs(float(np.vdot(u, up - y)) / step - slope) / size)
            central.append(abs(float(np.vdot(u, up - down)) / (2 * step) - slope) / size)
        f = {t: float(np.vdot(u, y_at(t * 1e-2) - y)) for t in (-2, -1, 1, 2)}
    finally:
        for array, start in starts:
            array[...] = start
        state.restore()
        layer.forget()
    if reason is None:
        imaginary = []
        for step in steps:
            imaginary.append(abs(float(np.vdot(u, complex_step(layer, x, v, tangents, step))) - slope) / size)
            state.restore()
        imaginary = tuple(imaginary)
    second, third = (f[1] + f[-1]) / 1e-4, (f[2] - 2 * f[1] + 2 * f[-1] - f[-2]) / 2e-6
    return StepCurve(tuple(steps), tuple(forward), tuple(central), imaginary, reason,
                     (abs(second) / 2 / size, abs(third) / 6 / size), float(2.0**-53 * np.linalg.norm(u * y)) / size)
