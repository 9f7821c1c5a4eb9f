"""Proofs: numerical gradient checks, forward mode and adjoint checks, Hessian-vector products, here, and the certificate
that prints them, in `minires.study.certificate`."""
from minires.study.forward_mode import adjoint_errors, complex_step, jvp, step_curve
from minires.study.gradcheck import (
    GradientError,
    GradientReport,
    LossLayer,
    TensorCheck,
    check_gradients,
    distinct_nonzero,
    measure_gradients,
    randomise_parameters,
)
from minires.study.hessian import LossHessian, lanczos

__all__ = [
    "GradientError", "GradientReport", "LossHessian", "LossLayer", "TensorCheck", "adjoint_errors", "check_gradients",
    "complex_step", "distinct_nonzero", "jvp", "lanczos", "measure_gradients", "randomise_parameters", "step_curve",
]
