"""Forward mode: how each layer's output changes with its input and weights, written by hand, and what that proves.

    rules      the formula of every layer and loss
    products   blocks and networks, composed of them: `jvp`
    adjoint    <Jv, u> = <v, J^T u>: forward mode and backward pass, held against each other without any step size
    steps      the error of difference quotients against their step, beside the complex step
"""
from minires.study.forward_mode.adjoint import adjoint_errors
from minires.study.forward_mode.products import RULES, jvp
from minires.study.forward_mode.rules import LOSS_RULES
from minires.study.forward_mode.steps import complex_step, step_curve

__all__ = ["LOSS_RULES", "RULES", "adjoint_errors", "complex_step", "jvp", "step_curve"]
