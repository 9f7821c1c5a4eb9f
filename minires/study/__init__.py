"""Proofs: numerical gradient checks, here, and the certificate that prints them, in `minires.study.certificate`."""
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

__all__ = [
    "GradientError", "GradientReport", "LossLayer", "TensorCheck", "check_gradients", "distinct_nonzero",
    "measure_gradients", "randomise_parameters",
]
