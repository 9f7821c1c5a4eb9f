"""The pictures of the benchmarks."""
import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from minires.files import write_atomically
from minires.plots import COLOURS

QUIET = "#5a5a5a"
METHOD_COLOURS = {"naive": "#9a9a9a", "im2col": COLOURS[4], "direct": COLOURS[0], "winograd2": COLOURS[3],
                  "winograd4": COLOURS[1], "minires": COLOURS[2]}
MARKERS = {"forward": "o", "input gradient": "s", "weight gradient": "^", "unit forward": "P", "unit backward": "X"}


def _figure(width, height, columns):
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, index + 1) for index in range(columns)]
    for one in axes:
        one.grid(True, color="#e4e4e4", linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(colors=QUIET, length=0)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            one.spines[side].set_color("#b8b8b8")
    return figure, axes


def _label(axes, title, x, y):
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xlabel(x, color=QUIET)
    axes.set_ylabel(y, color=QUIET)


def _save(figure, path):
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    write_atomically(path, picture.getvalue())
    print(f"drew benchmarks/results/{path.name}")


def draw_roofline(result, path):
    """Left: convolutions under the roof, a point a product and method. Right: passes over memory beside the triad."""
    figure, (roof, maps) = _figure(13, 5.6, 2)
    peak, widths = result["peak_flops"] / 1e9, {int(size): rate / 1e9 for size, rate in result["bandwidth"].items()}
    intensity = np.geomspace(1, 1000, 200)
    for (size, rate), style in zip(sorted(widths.items()), ("--", "-"), strict=True):
        roof.plot(intensity, np.minimum(peak, intensity * rate), color="#000000", linewidth=1.2, linestyle=style,
                  label=f"roof: {peak:.0f} GFLOP/s, {rate:.0f} GB/s ({size >> 20} MB)")
    convolutions = [row for row in result["rows"] if row["flops"]]
    for method in dict.fromkeys(row["method"] for row in convolutions):
        colour = METHOD_COLOURS[method]
        for kernel, marker in MARKERS.items():
            rows = [row for row in convolutions if (row["method"], row["kernel"]) == (method, kernel)]
            roof.plot([row["flops"] / row["bytes"] for row in rows], [row["gflops"] for row in rows], linestyle="",
                      marker=marker, markersize=6, color=colour, alpha=0.85, markeredgewidth=0)
        label = "fused unit, algorithm as chosen" if method == "minires" else method
        roof.plot([], [], linestyle="", marker="o", color=colour, label=label)
    for kernel, marker in MARKERS.items():
        roof.plot([], [], linestyle="", marker=marker, color=QUIET, label=kernel)
    roof.set_xscale("log")
    roof.set_yscale("log")
    roof.set_xlim(3, 300)
    rates = [row["gflops"] for row in convolutions]
    roof.set_ylim(min(rates) / 2, max(*rates, peak) * 1.6)
    roof.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    _label(roof, "Convolutions under the roof of the machine", "operations a byte that must move", "GFLOP/s")

    passes = [row for row in result["rows"] if not row["flops"]]
    names, shapes = list(dict.fromkeys(row["kernel"] for row in passes)), list(dict.fromkeys(row["shape"] for row in passes))
    height = 0.8 / len(shapes)
    for index, shape in enumerate(shapes):
        rates = [next(row["gbytes"] for row in passes if (row["kernel"], row["shape"]) == (name, shape)) for name in names]
        maps.barh(np.arange(len(names)) + (index - (len(shapes) - 1) / 2) * height, rates, height * 0.9,
                  color=COLOURS[index], label=shape)
    for (size, rate), style in zip(sorted(widths.items()), ("--", "-"), strict=True):
        maps.axvline(rate, color="#000000", linewidth=1.2, linestyle=style, label=f"triad, {size >> 20} MB")
    maps.set_yticks(np.arange(len(names)), names)
    maps.invert_yaxis()
    maps.grid(False, axis="y")
    maps.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3)
    _label(maps, "Passes over memory", "GB/s", "")
    _save(figure, path)


def draw_scaling(result, path):
    """Training step: images a second by threads, images a second by batch size, milliseconds by depth."""
    figure, (threads, batches, depths) = _figure(13, 4.2, 3)
    for index, (model, rows) in enumerate(result["threads"].items()):
        xs, medians = zip(*((row["threads"], row["batch"] / row["median"]) for row in rows), strict=True)
        threads.plot(xs, medians, marker="o", color=COLOURS[index], label=model)
        threads.plot(xs, [medians[0] * row["arithmetic"] for row in rows], color=COLOURS[index], linewidth=1,
                     linestyle=(0, (4, 2)))
    threads.plot([], [], color=QUIET, linewidth=1, linestyle=(0, (4, 2)), label="as arithmetic in registers")
    threads.set_ylim(0, threads.get_ylim()[1] * 1.05)
    threads.xaxis.set_major_locator(FixedLocator(xs))
    threads.legend(frameon=False)
    _label(threads, "Threads", "threads", "training, images a second")

    xs, rates = zip(*((row["batch"], row["batch"] / row["median"]) for row in result["batches"]), strict=True)
    batches.plot(xs, rates, marker="o", color=COLOURS[0])
    batches.set_xscale("log", base=2)
    batches.xaxis.set_major_locator(FixedLocator(xs))
    batches.xaxis.set_major_formatter(ScalarFormatter())
    batches.xaxis.set_minor_locator(NullLocator())
    batches.set_ylim(0, max(rates) * 1.15)
    _label(batches, "Batch size", "images a step", f"{result['batches'][0]['model']}, images a second")

    xs, times = zip(*((row["depth"], row["median"] * 1e3) for row in result["depths"]), strict=True)
    line = np.polyfit(xs, times, 1)
    depths.plot(xs, times, marker="o", linestyle="", color=COLOURS[0], label="measured")
    depths.plot(xs, np.polyval(line, xs), color=QUIET, linewidth=1, linestyle=(0, (4, 2)),
                label=f"{line[0]:.1f} ms a layer")
    depths.xaxis.set_major_locator(FixedLocator(xs))
    depths.set_ylim(0, max(times) * 1.1)
    depths.legend(frameon=False)
    _label(depths, "Depth", "layers", f"ms a step, batch {result['depths'][0]['batch']}")
    _save(figure, path)
