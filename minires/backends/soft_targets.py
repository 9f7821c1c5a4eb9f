"""Cross-entropy against shares of classes, written once for NumPy's and CuPy's arrays: small beside any convolution.

logits, q: (N, K), each row of q adds up to 1.
"""
import numpy as np


def soft_cross_entropy_forward(logits, q):
    """-> loss: the mean over N of -sum_k q_k log p_k, and the softmax p: (N, K)."""
    shifted = logits - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return -(q * log_p).sum(1).mean(), np.exp(log_p)


def soft_cross_entropy_backward(softmax, q):
    """dlogits = (p - q) / N: (N, K)."""
    return (softmax - q) / len(softmax)
