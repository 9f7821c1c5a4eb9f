"""What a network sees: first-layer filters, feature maps, Grad-CAM and saliency, beside the images."""
import numpy as np
from PIL import Image

from minires.errors import UserError
from minires.plots.sheet import Sheet, new_sheet_figure
from minires.plots.style import QUIET, save_png

MOST_CHANNELS = 64  # of a layer's output: more maps than that are too small to see


def draw_filters(weight, path):
    """The filters of a network's first convolution as small colour pictures, to a PNG at `path`.

    weight: (KH, KW, 3, O). One scale for all: grey is 0, the largest weight of all is full colour, so a filter that
    does nothing looks it. UserError for any other number of channels.
    """
    if weight.ndim != 4 or weight.shape[2] != 3:
        raise UserError(f"filters can be shown as colours for 3 channels in, got a weight of shape {weight.shape}")
    count, largest = weight.shape[3], np.abs(weight).max()
    rows, columns = _shape(count)
    figure = new_sheet_figure(f"first convolution: {count} filters of {weight.shape[0]} x {weight.shape[1]} pixels, grey is "
                              f"0, full colour ±{largest:.2g}", rows, columns, 1.2)
    sheet = Sheet(figure, 111, rows, columns)
    for index in range(count):
        sheet.lay(index, 0.5 + weight[..., index] / (2 * largest or 1), str(index), vmin=0, vmax=1)
    save_png(figure, path)


def draw_features(pixels, maps, layer, path):
    """An image and what one layer makes of it, channel by channel on one scale, to a PNG at `path`.

    pixels: (H, W, 3) uint8; maps: (OH, OW, O), of which the first 64 are shown; layer: its name.
    """
    count = min(maps.shape[2], MOST_CHANNELS)
    rows, columns = _shape(count)
    limit = float(np.percentile(np.abs(maps), 99.5)) or 1.0
    signed = maps.min() < 0
    scale = {"cmap": "RdBu_r" if signed else "magma", "vmin": -limit if signed else 0, "vmax": limit}
    shown = "" if count == maps.shape[2] else f", the first {count}"
    side = 0.95 if columns > 8 else 1.2
    figure = new_sheet_figure(f"{layer}: {maps.shape[2]} channels of {maps.shape[0]} x {maps.shape[1]}{shown}", max(rows, 2),
                              columns, side, extra=3.4)
    left, right = figure.add_gridspec(1, 2, width_ratios=(2.4, side * columns + 0.6))
    Sheet(figure, left, 1, 1).lay(0, pixels, "image")
    sheet = Sheet(figure, right, rows, columns)
    for index in range(count):
        picture = sheet.lay(index, maps[..., index], str(index), 7, **scale)
    bar = figure.colorbar(picture, ax=sheet.axes, fraction=0.02, pad=0.01, extend="both" if signed else "max")
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=QUIET)
    save_png(figure, path)


def draw_grad_cam(pixels, maps, titles, path):
    """Images and, for each layer, where it saw the evidence: warm over the image in grey, to a PNG at `path`.

    pixels: (N, H, W, 3) uint8; maps: {layer: (N, OH, OW), at least 0}; titles: N names of classes. Each map is scaled
    to its own largest value: the maps say where, not how much. A map that is zero everywhere is said to be.
    """
    N, H, W = pixels.shape[:3]
    columns = 1 + len(maps)
    figure = new_sheet_figure("Grad-CAM: where each layer sees the class", N, columns, 2)
    sheet = Sheet(figure, 111, N, columns)
    for row in range(N):
        sheet.lay(row * columns, pixels[row], titles[row])
        for place, (layer, heat) in enumerate(maps.items(), row * columns + 1):
            largest = heat[row].max()
            title = layer if largest else f"{layer}: no evidence"
            sheet.lay(place, pixels[row].mean(2), title, cmap="gray", vmin=0, vmax=255)
            if largest:
                # Enlarged before it is coloured, and as opaque as it is warm: the image is seen where there is no evidence.
                warmth = _enlarged(heat[row] / largest, 8 * H, 8 * W)
                sheet.lay(place, warmth, cmap="inferno", vmin=0, vmax=1, alpha=0.2 + 0.6 * warmth)
    save_png(figure, path)


def draw_saliency(pixels, saliency, contribution, titles, path):
    """Images, how much each pixel matters, and what it speaks for, to a PNG at `path`.

    pixels: (N, H, W, 3) uint8; saliency, contribution: (N, H, W) of `minires.study.seeing`; titles: N names of classes.
    Each map is scaled to its own 99th percentile.
    """
    figure = new_sheet_figure("what the score s of the class depends on", len(pixels), 3, 2)
    sheet = Sheet(figure, 111, len(pixels), 3)
    for row, title in enumerate(titles):
        limit = _ceiling(np.abs(contribution[row]))
        sheet.lay(3 * row, pixels[row], title)
        sheet.lay(3 * row + 1, saliency[row], "|ds/dx|", cmap="magma", vmin=0, vmax=_ceiling(saliency[row]))
        sheet.lay(3 * row + 2, contribution[row], "ds/dx · x, red speaks for it", cmap="RdBu_r", vmin=-limit, vmax=limit)
    save_png(figure, path)


def _shape(count):
    """(rows, columns) for `count` small pictures."""
    columns = min(count, 8 if count <= 32 else 16)
    return -(-count // columns), columns


def _ceiling(values):
    return float(np.percentile(values, 99)) or 1.0


def _enlarged(values, H, W):
    """(h, w) floats -> (H, W), bilinear."""
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((W, H), Image.Resampling.BILINEAR))
