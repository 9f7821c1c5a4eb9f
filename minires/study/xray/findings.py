"""The few numbers that the measurements of a network come down to; the page's sentences are made of them."""
import numpy as np


def findings(moment):
    """A dict of what a moment's measurements (one of `xray`'s) show; None where a network has no such thing.

    gradient_ratio: |dL/dx| at the first block over that at the last; gradient_factor: the same a block (its n-1th root);
    error: the largest of the identity's and the paths'; identity_share, cosine: means over blocks; pure_share,
    longest_share: the path lengths' 0 and n; peak: the length with the largest share; low, high: the lengths between which
    90 % of the shares lie (those of the 5 % and 95 % points of their running sum); ratio_first, ratio_last: branch over
    shortcut, first and last block; response: the median standard deviation of the normalisations' outputs; dead: the
    fraction of dead channels over all ReLUs; rank_fraction: mean effective rank over channels; worst_*, median_*: of the
    lesions' loss changes, and the block of the worst.
    """
    blocks, paths, branches = moment["blocks"], moment["paths"], moment["branches"]
    first, last = blocks[0]["whole"], blocks[-1]["whole"]
    residual = [block for block in blocks if block["cosine"] is not None]
    ratios = [branch["ratio"] for branch in branches if branch["ratio"] is not None]
    relus = [layer for layer in moment["activity"] if layer["kind"] == "ReLU"]
    responses = [layer["std"] for layer in moment["activity"] if layer["kind"] == "BatchNorm2d"]
    running = np.cumsum(paths["share"])
    found = {
        "gradient_first": first, "gradient_last": last, "gradient_ratio": first / last if last else None,
        "gradient_factor": (first / last) ** (1 / max(1, len(blocks) - 1)) if last else None,
        "error": max([block["error"] for block in blocks] + [paths["error"]]),
        "identity_share": _mean([block["share"] for block in residual]),
        "cosine": _mean([block["cosine"] for block in residual]),
        "pure_share": paths["share"][0], "longest_share": paths["share"][-1], "longest": len(blocks),
        "peak": int(np.argmax(paths["share"])), "low": int(np.argmax(running >= 0.05)),
        "high": int(np.argmax(running >= 0.95)),
        "ratio_first": ratios[0] if ratios else None, "ratio_last": ratios[-1] if ratios else None,
        "response": float(np.median(responses)), "dead": _mean([relu["dead"] for relu in relus]),
        "rank_fraction": _mean([branch["effective_rank"] / branch["channels"] for branch in branches]),
    }
    for part in ("branch", "shortcut"):
        cuts = [cut for cut in moment["lesions"]["lesions"] if cut["part"] == part]
        worst = max(cuts, key=lambda cut: cut["change"], default=None)
        found[f"worst_{part}_change"] = worst and worst["change"]
        found[f"worst_{part}"] = worst and worst["block"]
        found[f"median_{part}_change"] = float(np.median([cut["change"] for cut in cuts])) if cuts else None
    return found


def _mean(values):
    return float(np.mean(values)) if values else None
