"""Results as text for the terminal and as Markdown for the README."""
NAMES = {"minires": "minires", "eager": "PyTorch eager", "channels_last": "PyTorch channels_last",
         "compiled": "PyTorch compiled", "compiled_channels_last": "PyTorch compiled, channels_last"}


def milliseconds(seconds):
    """Three significant figures, in ms."""
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(size):
    return f"{size / 1e6:,.0f}"


def cell_text(cell):
    """The lines of one cell: median, least, interquartile range, ratio and its range, memory."""
    lines = [f"{cell['model']}, {cell['work']}, batch {cell['batch']}",
             f"  {'':32}{'median':>9}{'least':>9}{'iqr':>8}   {'minires / it':>14}{'iqr':>8}{'peak MB':>10}"
             f"{'/ roofline':>12}"]
    for name, row in cell["engines"].items():
        ratio = row.get("minires_ratio")
        compared = f"{ratio['median']:>14.2f}{ratio['iqr']:>8.2f}" if ratio else " " * 22
        arena = f"  ({megabytes(row['arena_bytes'])} in its arena)" if row["arena_bytes"] else ""
        mark = "  best" if name == cell["best"] else ""
        lines.append(f"  {NAMES[name]:32}{milliseconds(row['median']):>9}{milliseconds(row['min']):>9}"
                     f"{milliseconds(row['iqr']):>8}   {compared}{megabytes(row['peak_bytes']):>10}"
                     f"{_over_roofline(cell, row):>12}{arena}{mark}")
    for name, reason in cell["left_out"].items():
        lines.append(f"  {NAMES[name]}: left out, {reason}")
    if cell["agreement"]:
        worst = {kind: max(apart[kind] for apart in cell["agreement"].values())
                 for kind in next(iter(cell["agreement"].values()))}
        lines.append("  agree before timing: " + ", ".join(f"{kind} within {size:.1g}" for kind, size in worst.items()))
    return "\n".join(lines)


def _over_roofline(cell, row):
    """The median over what the roofline allows for minires' plan of this cell: direct formulas, its own traffic."""
    least = cell.get("roofline_seconds")
    return f"{row['median'] / least:.2f}" if least else ""


def first_steps_text(first):
    """Seconds from a process's start to the end of its first training step."""
    lines = [f"first training step of a new process ({first['model']}, batch {first['batch']}), seconds since its start"]
    for kind in ("warm", "cold"):
        for name, times in first.get(kind, {}).items():
            ready, done = (sorted(times[key])[len(times[key]) // 2] for key in ("ready", "first_step"))
            lines.append(f"  {NAMES[name]:32}{kind} cache: ready {ready:.1f}, first step done {done:.1f}")
    return "\n".join(lines)


def machine_text(machine, threads):
    """One line on where and with what."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    vectors = next((name for name in ("avx512f", "avx2", "avx", "neon") if name in machine["features"]), "no vectors")
    device, on = machine.get("device"), ""
    if device:
        on = (f"{device['name']} (compute capability {device['compute_capability']}, "
              f"{device['memory_bytes'] / 2**30:.0f} GiB, driver for CUDA {device['driver']}), its events as clock and "
              "its memory; ")
    return (f"{on}{machine['processor']} ({machine['llvm_name']}, {vectors}), {threads} of {machine['cores']} cores, "
            f"{versions}, {machine['date']}")


def markdown(result):
    """The README's table: a line a cell, times in ms, ratios, memory; and the first steps under it."""
    cells = result["cells"]
    variants = [name for name in NAMES if name != "minires" and any(name in cell["engines"] for cell in cells)]
    header = ["network", "batch", "minires, ms", *(f"{NAMES[name]}, ms" for name in variants), "minires / best",
              "peak memory, MB", "minires / roofline"]
    lines = [machine_text(result["machine"], result["threads"]) + ".", ""]
    for work in dict.fromkeys(cell["work"] for cell in cells):
        title = {"training": "Training step", "inference": "Inference"}[work]
        lines += [f"**{title}**, medians", "", "| " + " | ".join(header) + " |",
                  "|" + "|".join([":--"] + ["--:"] * (len(header) - 1)) + "|"]
        for cell in cells:
            if cell["work"] != work:
                continue
            rows, best = cell["engines"], cell["best"]
            own = rows["minires"]
            times = [milliseconds(rows[name]["median"]) if name in rows else "" for name in variants]
            ratio, memory = "", megabytes(own["peak_bytes"])
            if best:
                relative = rows[best]["minires_ratio"]
                ratio = f"**{relative['median']:.2f}** ± {relative['iqr'] / 2:.2f}"
                memory += f" / {megabytes(min(rows[name]['peak_bytes'] for name in variants if name in rows))}"
            lines.append("| " + " | ".join([cell["model"], str(cell["batch"]), milliseconds(own["median"]), *times, ratio,
                                            memory, _over_roofline(cell, own)]) + " |")
        lines.append("")
    lines.append("The ratio is the median over the rounds, ± half its interquartile range; memory is minires' / the least "
                 "of PyTorch's. The "
                 "roofline is that of minires' plan (README, How it is fast): direct formulas, which Winograd may beat.")
    first = result["first_steps"]
    for kind in ("warm", "cold"):
        if kind in first:
            done = ", ".join(f"{NAMES[name]} {sorted(times['first_step'])[len(times['first_step']) // 2]:.1f} s"
                             for name, times in first[kind].items())
            lines.append(f"First training step of a new process, {kind} cache ({first['model']}): {done}.")
    return "\n".join(lines)
