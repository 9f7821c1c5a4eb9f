"""Which algorithm computes a 3x3 convolution of stride 1: the measured choice, or the one a test or benchmark asks for."""
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from minires.backends.cpu import winograd
from minires.errors import UserError

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")
_chosen = ContextVar("minires_convolution", default="auto")
PLANE_BYTES = 1 << 16  # of weights a point, C * O elements: above, the weights no longer stay in the cache


@contextmanager
def use_convolution(name):
    """Within `with use_convolution("direct"):` convolutions are computed so: one of ALGORITHMS.

    "winograd2" and "winograd4" are F(2x2, 3x3) and F(4x4, 3x3), where the shape allows them; all else is direct.
    """
    if name not in ALGORITHMS:
        raise UserError(f"unknown convolution algorithm {name!r}: choose one of {', '.join(ALGORITHMS)}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def winograd_size(x_shape, dtype, out_channels, kernel_size, stride, padding, dilation):
    """m of the Winograd F(m x m, 3x3) to use, 4 or 2, or None for the direct kernel.

    Measured (python -m benchmarks.kernels): F(4x4) is 1.4 to 2.5 times as fast as the direct kernel, F(2x2) 1.1 to 1.7
    times; so F(4x4) where the image is made of whole tiles of 4, else F(2x2), while the weights fit the cache.
    """
    return _winograd_size(_chosen.get(), x_shape[1:], dtype, out_channels, kernel_size, stride, padding, dilation)


@lru_cache(maxsize=1024)
def _winograd_size(name, image_shape, dtype, out_channels, kernel_size, stride, padding, dilation):
    plain = (kernel_size, stride, padding, dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    if not plain or name == "direct":
        return None
    H, W, C = image_shape
    if name == "auto" and C * out_channels * dtype.itemsize > PLANE_BYTES:
        return None
    sizes = {"auto": (4, 2), "winograd2": (2,), "winograd4": (4,)}[name]
    return next((m for m in sizes if winograd.tiling(m, dtype, H, W, C, out_channels)), None)


def kernel_name(*convolution):
    """What `winograd_size` chooses, to read; its arguments."""
    m = winograd_size(*convolution)
    return f"F({m}x{m})" if m else "direct"
