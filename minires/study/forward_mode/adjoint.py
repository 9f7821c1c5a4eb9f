"""Forward mode against the backward pass, with no step size: the adjoint check.

A layer at one x is, to first order, a linear map J, and its backward pass claims to apply the transpose of that map. Two
maps are each other's transpose if and only if, for all v and u,

    <J v, u> = <v, J^T u>

The left side takes the hand-written forward product, the right side `layer.backward(u)`; v and u are drawn at random, so
that one wrong entry shows. Nothing is approximated: the two sides differ by rounding alone, 1e-15 or so in float64, where
a difference quotient stops at 1e-10. A backward pass that is wrong by one part in a billion is caught.

What it cannot see is a mistake made alike in both; that is what the difference quotients are for.
Source: Claerbout 1992, "Earth Soundings Analysis", the dot-product test.
"""
import numpy as np

from minires.backends import use_backend
from minires.errors import UserError
from minires.init import default_rng
from minires.study.forward_mode.products import tangent
from minires.study.gradcheck import LayerState, learned
from minires.study.planned import Planned

TOLERANCE = 1e-12
FLOOR = 1e-2


def adjoint_errors(layer, x, rng=None):
    """{"dx" and each parameter's dotted name: relative error of <Jv, u> = <v, J^T u>}, v, u drawn from rng (seed 0 if None).

    Frozen parameters, which backward gives no gradient, are left out.
    x: float64, of the layer's input shape; the layer in float64 too, else UserError. The backward pass is the current back
    end's; Jv is always the reference's, so that a back end is held against formulas that it did not compute. A tensor's
    error is

        |<Jv, u> - <v, J^T u>| / max(|<Jv, u>|, |<v, J^T u>|, sqrt(sum((u * Jv)^2)), floor)

    where the third term is the size of <Jv, u> when its terms do not happen to cancel, and the floor, 1e-2 of
    sqrt(sum((u * y)^2)), is for a gradient that is zero, where both sides are the rounding of larger numbers. Of dx's error
    and the relative distance between forward mode's y and the layer's own the larger counts: the product must be of this
    function. A gradient of the wrong shape or not finite has error infinity. The layer is left as it was, with gradients at
    zero.
    """
    arrays = {"x": x, **{name: parameter.data for name, parameter in layer.named_parameters()}}
    narrow = [f"{name} is {array.dtype}" for name, array in arrays.items() if array.dtype != np.float64]
    if narrow:
        raise UserError(f"adjoints are proved in float64, but {', '.join(narrow)}: convert with astype(numpy.float64)")
    state, rng = LayerState(layer), default_rng(0 if rng is None else rng)
    function = layer.inner if isinstance(layer, Planned) else layer  # a plan is another way to compute the same function
    try:
        layer.zero_grad()
        y = layer.forward(x).copy()
        u = rng.standard_normal(y.shape)
        claims = {"dx": layer.backward(u.copy())}
        claims |= {name: parameter.grad.copy() for name, parameter in learned(layer)}
        errors = {}
        for name, parameter in [("dx", None), *learned(layer)]:
            v = rng.standard_normal((x if parameter is None else parameter.data).shape)
            state.restore()  # dropout draws for the product what it drew for the backward pass
            with use_backend("reference"):
                moves = (v, {}) if parameter is None else (np.zeros_like(x), {parameter: v})
                y_forward, Jv = tangent(function, x, *moves)
            errors[name] = _error(u, Jv, v, claims[name], FLOOR * np.linalg.norm(u * y))
            if parameter is None:
                errors[name] = max(errors[name], _distance(y_forward, y))
    finally:
        state.restore()
        layer.zero_grad()
        layer.forget()
    return errors


def _error(u, Jv, v, claim, floor):
    if claim is None or claim.shape != v.shape or not (np.isfinite(claim).all() and np.isfinite(Jv).all()):
        return float("inf")
    forwards, backwards = float(np.vdot(Jv, u)), float(np.vdot(v, claim))
    return abs(forwards - backwards) / max(abs(forwards), abs(backwards), float(np.linalg.norm(u * Jv)), float(floor))


def _distance(found, expected):
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(float).tiny))
