"""Which algorithm computes a 3x3 convolution of stride 1: the measured choice, or the one a test or benchmark asks for."""
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

from minires.backends.cpu.host import block_of
from minires.errors import UserError

ALGORITHMS = ("auto", "direct", "winograd2", "winograd4")
_chosen = ContextVar("minires_convolution", default="auto")
WORTH = 0.7  # of the direct kernel's multiplications: with more, transforming costs more than is saved
FEWEST_TILES = 8  # with fewer, transforming the weights does


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
    """m of the Winograd F(m x m, 3x3) to use, 4 or 2, or None for the direct kernel."""
    return _winograd_size(_chosen.get(), x_shape, dtype, out_channels, kernel_size, stride, padding, dilation)


@lru_cache(maxsize=1024)
def _winograd_size(name, x_shape, dtype, out_channels, kernel_size, stride, padding, dilation):
    plain = (kernel_size, stride, padding, dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
    if not plain or name == "direct":
        return None
    if name != "auto":
        return int(name[-1])
    N, H, W, C = x_shape
    m = min((4, 2), key=lambda m: _products(m, H, W))
    padded = max(1, block_of(dtype) / C)  # Winograd's blocks hold zeros where there are fewer channels
    few = N * -(-H // m) * -(-W // m) < FEWEST_TILES
    return None if few or _products(m, H, W) * padded > WORTH * 9 * H * W else m


def _products(m, H, W):
    """Multiplications of F(m x m, 3x3) for each pair of channels of an image."""
    return (m + 2) ** 2 * -(-H // m) * -(-W // m)


def kernel_name(*convolution):
    """What `winograd_size` chooses, to read; its arguments."""
    m = winograd_size(*convolution)
    return f"F({m}x{m})" if m else "direct"
