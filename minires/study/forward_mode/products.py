"""Forward-mode products of blocks and whole networks, composed from those of their layers: the chain rule, read forwards.

    y, Jv = jvp(network, x, v, {parameter: its change, ...})

A chain passes y and Jv on, layer by layer; a residual sum adds the two paths' y and the two paths' Jv. How a plan
computes a block does not change its derivative, and so does not matter here.
"""
import numpy as np

from minires.backends import ops_for
from minires.errors import UserError
from minires.layer import Sequential, inference_mode
from minires.layers import BasicBlock, Bottleneck, PlainBlock, Residual
from minires.study.forward_mode.rules import LAYER_RULES, LOSS_RULES
from minires.study.gradcheck import LayerState, LossLayer


def jvp(layer, x, v, tangents=None):
    """(y, Jv): what a layer, block, loss (as a LossLayer) or network gives, and how it changes to first order.

    x, v: of the layer's input shape and of one dtype, NumPy arrays. tangents: {Parameter of the layer: array of its
    shape}, the direction in which each parameter moves; those left out stand still. Weights and running statistics stay as
    they are, a dropout's generator moves on as in its forward, and what a forward kept for a backward pass is dropped.
    UserError for an x that the layer refuses, for v or tangents that do not fit, for a parameter that the layer does not
    have, for arrays on a GPU, and for a layer without a rule.
    """
    tangents = {} if tangents is None else tangents
    forward_once(layer, x)
    if (v.shape, v.dtype) != (x.shape, x.dtype):
        raise UserError(f"jvp expects v like x, {x.shape} {x.dtype}, got {v.shape} {v.dtype}")
    _require_tangents(layer, tangents)
    return tangent(layer, x, v, tangents)


def forward_once(layer, x):
    """y, with nothing kept and nothing moved on: the layer's own words for an x that does not fit. UserError for a GPU's."""
    if not isinstance(x, np.ndarray):
        raise UserError(f"forward mode works on NumPy arrays, got x of type {type(x).__name__}: use to_numpy on it, and "
                        "to('cpu') on the layer")
    state = LayerState(layer)
    with inference_mode():
        y = layer.forward(x)
    state.restore()
    layer.forget()
    return y


def _require_tangents(layer, tangents):
    names = {parameter: name for name, parameter in layer.named_parameters()}
    for parameter, change in tangents.items():
        if parameter not in names:
            raise UserError(f"a tangent was given for {parameter!r}, which is no parameter of this {type(layer).__name__}: "
                            "expected parameters from its named_parameters()")
        if change.shape != parameter.data.shape:
            raise UserError(f"the tangent of {names[parameter]} has shape {change.shape}, expected {parameter.data.shape}")


def tangent(layer, x, v, tangents):
    """`jvp` without its checks, for composing: the rule of the layer's class."""
    return rule_of(layer, RULES)(layer, x, v, tangents)


def rule_of(layer, rules):
    """The entry of a {class: rule} for a layer; UserError when its class has none. A subclass may compute something else,
    and needs its own, but for a Sequential that only names its layers."""
    kind = Sequential if type(layer).forward is Sequential.forward else type(layer)
    if kind not in rules:
        known = ", ".join(kind.__name__ for kind in rules)
        raise UserError(f"{type(layer).__name__} has no hand-written rule, only {known}: add one to "
                        "minires.study.forward_mode, and to minires.study.hessian for second derivatives")
    return rules[kind]


def chain_of(layer):
    """The layers that a chain runs one after another: its children, which stand in that order."""
    return [child for _, child in layer.named_children()]


def branch_of(block):
    """The chain F of a residual block relu(F(x) + S(x)): its children but for the shortcut and the last ReLU."""
    return [child for child in chain_of(block) if child is not block.shortcut and child is not block.relu]


def _run(layers, x, v, tangents):
    for layer in layers:
        x, v = tangent(layer, x, v, tangents)
    return x, v


def _chain(layer, x, v, tangents):
    """y = f_n(... f_1(x)): Jv = J_n ... J_1 v, computed from the right, as y is."""
    return _run(chain_of(layer), x, v, tangents)


def _residual(block, x, v, tangents):
    """y = relu(F(x) + S(x)): the change of a sum is the sum of the changes, Jv = relu'(F + S) (J_F v + J_S v)."""
    branch, branch_change = _run(branch_of(block), x, v, tangents)
    shortcut, shortcut_change = tangent(block.shortcut, x, v, tangents)
    return tangent(block.relu, ops_for(x).add(branch, shortcut), branch_change + shortcut_change, tangents)


def _sum(layer, x, v, tangents):
    """y = F(x) + S(x): Jv = J_F v + J_S v."""
    (branch, branch_change), (shortcut, change) = (tangent(path, x, v, tangents) for path in (layer.branch, layer.shortcut))
    return branch + shortcut, branch_change + change


def _loss(layer, x, v, tangents):
    """A loss against its fixed target, as an array of one number."""
    value, change = rule_of(layer.loss, LOSS_RULES)(layer.loss, x, v, layer.target)
    return np.array([value]), np.array([change])


CHAINS = (Sequential, PlainBlock)
RESIDUALS = (BasicBlock, Bottleneck)
RULES = {**LAYER_RULES, **dict.fromkeys(CHAINS, _chain), **dict.fromkeys(RESIDUALS, _residual), Residual: _sum,
         LossLayer: _loss}
