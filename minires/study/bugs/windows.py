"""Bugs of layers that slide a window: convolution and pooling."""
import numpy as np

from minires.backends.reference import (
    avgpool2d_backward,
    avgpool2d_forward,
    col2im,
    crop_image,
    maxpool2d_backward,
    taps,
)
from minires.study.bugs.inject import Bug

# --- convolution: wrong(right, dy, weight, x_shape, stride, padding, dilation) -> dx ----------------------------------


def one_row_too_low(right, dy, *arguments):
    dx, low = right(dy, *arguments), np.zeros(arguments[1], dy.dtype)
    low[:, 1:] = dx[:, :-1]
    return low


def _dpatches(dy, weight):
    return (dy @ weight.reshape(-1, weight.shape[3]).T).reshape(*dy.shape[:3], *weight.shape[:3])


def _padded(x_shape, padding, dtype):
    N, H, W, C = x_shape
    return np.zeros((N, H + 2 * padding[0], W + 2 * padding[1], C), dtype)


def overlaps_overwritten(right, dy, weight, x_shape, stride, padding, dilation):
    padded, dpatches = _padded(x_shape, padding, dy.dtype), _dpatches(dy, weight)
    for (i, j), window in taps(weight.shape[:2], dy.shape[1:3], stride, dilation):
        padded[window] = dpatches[:, :, :, i, j]
    return crop_image(padded, padding)


def border_lost(right, dy, weight, x_shape, stride, padding, dilation):
    dx = right(dy, weight, x_shape, stride, padding, dilation)
    (_, H, W, _), inner = x_shape, np.zeros(x_shape, dy.dtype)
    kept = np.s_[:, padding[0]:H - padding[0], padding[1]:W - padding[1]]
    inner[kept] = dx[kept]
    return inner


def stride_ignored(right, dy, weight, x_shape, stride, padding, dilation):
    if stride == (1, 1):
        return right(dy, weight, x_shape, stride, padding, dilation)
    return col2im(_dpatches(dy, weight), x_shape, (1, 1), padding, dilation)


def last_column_lost(right, dy, weight, x_shape, stride, padding, dilation):
    if stride[1] > 1:
        dy = dy.copy()
        dy[:, :, -1] = 0
    return right(dy, weight, x_shape, stride, padding, dilation)


def dilation_ignored(right, dy, weight, x_shape, stride, padding, dilation):
    if dilation == (1, 1):
        return right(dy, weight, x_shape, stride, padding, dilation)
    return col2im(_dpatches(dy, weight), x_shape, stride, padding, (1, 1))


def kernel_not_flipped(right, dy, weight, *arguments):
    return right(dy, weight[::-1, ::-1].copy(), *arguments)


def in_float32(right, *arguments):
    return right(*arguments).astype(np.float32)


# --- convolution: wrong(right, dy, x, kernel_size, stride, padding, dilation) -> dweight ------------------------------


def taps_transposed(right, *arguments):
    dweight = right(*arguments)
    return np.ascontiguousarray(dweight.transpose(1, 0, 2, 3)).reshape(dweight.shape)


def averaged_over_images(right, dy, *arguments):
    return right(dy, *arguments) / len(dy)


def rounded_to_float32(right, dy, *arguments):
    return right(dy, *arguments).astype(np.float32).astype(dy.dtype)


# --- convolution: its whole backward, and its bias ----------------------------------------------------------------


def weight_overwritten(right, layer, dy):
    layer.weight.zero_grad()
    return right(layer, dy)


def bias_dropped(right, layer, dy):
    if layer.bias is None:
        return right(layer, dy)
    before = layer.bias.grad.copy()
    dx = right(layer, dy)
    layer.bias.grad[...] = before
    return dx


def bias_averaged(right, dy):
    return right(dy) / (dy.size // dy.shape[-1])


# --- pooling --------------------------------------------------------------------------------------------------------


def every_pixel_wins(right, dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    share = (dy / (kernel_size[0] * kernel_size[1]))[:, :, :, None, None]
    dpatches = np.broadcast_to(share, (*dy.shape[:3], *kernel_size, dy.shape[3]))
    return col2im(dpatches, x_shape, stride, padding, dilation)


def last_window_wins(right, dy, argmax, x_shape, kernel_size, stride, padding, dilation):
    padded = _padded(x_shape, padding, dy.dtype)
    for (i, j), window in taps(kernel_size, dy.shape[1:3], stride, dilation):
        np.copyto(padded[window], dy, where=argmax == i * kernel_size[1] + j)
    return crop_image(padded, padding)


def first_pixel_wins(right, dy, argmax, *geometry):
    return maxpool2d_backward(dy, np.zeros_like(argmax), *geometry)


def tap_read_by_columns(right, dy, argmax, x_shape, kernel_size, *geometry):
    j, i = np.divmod(argmax, kernel_size[0])
    return maxpool2d_backward(dy, i * kernel_size[1] + j, x_shape, kernel_size, *geometry)


def not_divided(right, dy, x_shape, kernel_size, *geometry):
    return right(dy, x_shape, kernel_size, *geometry) * (kernel_size[0] * kernel_size[1])


def divided_by_real_pixels(right, dy, x_shape, kernel_size, stride, padding):
    part = avgpool2d_forward(np.ones(x_shape, dy.dtype), kernel_size, stride, padding)
    return avgpool2d_backward(dy / part, x_shape, kernel_size, stride, padding)


def divided_by_height(right, dy, x_shape):
    return right(dy, x_shape) * x_shape[2]


CONV, DX, DWEIGHT = ("Conv2d",), "conv2d_input_gradient", "conv2d_weight_gradient"
MAX, AVERAGE, MEAN = ("MaxPool2d",), ("AvgPool2d",), ("GlobalAvgPool2d",)

BUGS = [
    Bug("conv-one-row-too-low", "col2im's loop starts at row 1, so every window is put back one row too low.",
        CONV, DX, one_row_too_low),
    Bug("conv-overlaps-overwritten", "col2im writes = for +=, so where windows overlap only the last one counts.",
        CONV, DX, overlaps_overwritten),
    Bug("conv-border-lost", "The padding is cropped off dx twice, and the image's own border with it.",
        CONV, DX, border_lost),
    Bug("conv-stride-ignored", "col2im puts the windows back side by side, as if the stride were 1.",
        CONV, DX, stride_ignored),
    Bug("conv-last-column-lost", "At stride 2 the loop over output columns stops one early.", CONV, DX, last_column_lost),
    Bug("conv-dilation-ignored", "col2im puts a dilated kernel's taps back next to each other.",
        CONV, DX, dilation_ignored, "pooled"),
    Bug("conv-kernel-not-flipped", "dx is the convolution of dy with the kernel as it is, not turned by 180 degrees.",
        CONV, DX, kernel_not_flipped),
    Bug("conv-dx-float32", "A buffer made without a dtype argument turns dx into float32.", CONV, DX, in_float32),
    Bug("conv-weight-transposed", "The rows and columns of the kernel are exchanged in dweight.",
        CONV, DWEIGHT, taps_transposed),
    Bug("conv-weight-averaged", "dweight is averaged over the images, which the loss has done already.",
        CONV, DWEIGHT, averaged_over_images),
    Bug("conv-weight-rounded", "dweight is summed in float32 and cast back, so that its dtype looks right.",
        CONV, DWEIGHT, rounded_to_float32),
    Bug("conv-weight-overwritten", "weight.grad is set where it should be added to.", CONV, "backward", weight_overwritten),
    Bug("conv-bias-dropped", "dbias is computed and never stored.", CONV, "backward", bias_dropped, "pooled"),
    Bug("conv-bias-averaged", "dbias is dy.mean where the formula says dy.sum.", CONV, "channel_sum",
        bias_averaged, "pooled"),
    Bug("maxpool-shares", "Average pooling's gradient: every pixel of the window gets its share.",
        MAX, "maxpool2d_backward", every_pixel_wins, "pooled"),
    Bug("maxpool-last-window-wins", "A pixel that won several windows keeps the last dy (= for +=).",
        MAX, "maxpool2d_backward", last_window_wins, "pooled"),
    Bug("maxpool-first-pixel", "argmax is forgotten: dy goes to the first pixel of each window.",
        MAX, "maxpool2d_backward", first_pixel_wins, "pooled"),
    Bug("maxpool-tap-by-columns", "The winner's number is taken apart as column times height plus row.",
        MAX, "maxpool2d_backward", tap_read_by_columns, "pooled"),
    Bug("avgpool-not-divided", "Every pixel gets the whole dy: the divisor is forgotten.",
        AVERAGE, "avgpool2d_backward", not_divided, "pooled"),
    Bug("avgpool-padding-not-counted", "Backward divides by the pixels inside the image, forward by the whole window.",
        AVERAGE, "avgpool2d_backward", divided_by_real_pixels, "pooled"),
    Bug("globalpool-divided-by-height", "dy is divided by H, not by H * W.", MEAN, "global_avgpool_backward",
        divided_by_height),
]
