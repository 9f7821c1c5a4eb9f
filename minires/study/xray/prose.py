"""What the page says: claims of the papers, beside what this network's numbers show of them."""
import html
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from minires.plots.xray import draw_activity, draw_gradients, draw_lesions, draw_parts, draw_paths, draw_training

EXPLODES = 10  # a gradient that grows this much from the last block to the first is said to explode


@dataclass(frozen=True)
class Section:
    """title; paragraphs: HTML; figure: (file name, function that draws it at a path), or None."""

    title: str
    paragraphs: list
    figure: tuple[str, Callable[[Path], None]] | None = None


@dataclass(frozen=True)
class Seen:
    """A network at a moment, and where its numbers are. name: for HTML; moment: its part of the report; key: its place."""

    name: str
    residual: bool
    moment: dict
    key: str
    say: object

    def number(self, finding, how="short"):
        return self.say.number(f"{self.key}.findings.{finding}", how)

    def __getitem__(self, finding):
        return self.moment["findings"][finding]


def heading(report, say):
    """(title, lead) of the page."""
    names = [network["name"] for network in report["networks"]]
    trained = [network for network in report["networks"] if len(network["moments"]) > 1]
    when = "at initialisation"
    if trained:
        when += " and after training: " + ", ".join(
            f"{html.escape(network['name'])} to {html.escape(network['moments'][-1]['label'].split(',')[0])}"
            for network in trained)
    lead = (f"Where the gradient of the loss comes from, {when}. Measured in float64 on {say.number('images')} images of "
            f"{html.escape(report['dataset'])}; cuts on {say.number('test_images')} test images in float32.")
    return f"Residual X-ray: {' beside '.join(names)}", lead


def key_table(report, say):
    """The first numbers to look at, a column for each network and moment."""
    columns = [seen for stage in _stages(report, say) for seen in stage]
    rows = (("blocks", None, "short"), ("loss", "loss", "short"),
            ("|dL/dx| at the first block over that at the last", "gradient_ratio", "short"),
            ("the same, from one block to the block before it", "gradient_factor", "short"),
            ("identity's share of dL/dx, mean over blocks", "identity_share", "percent"),
            ("branch over shortcut, rms F / rms S, first block", "ratio_first", "short"),
            ("branch over shortcut, last block", "ratio_last", "short"),
            ("response: standard deviation after a normalisation, median", "response", "short"),
            ("dead ReLU channels", "dead", "percent"),
            ("effective rank of the branches, of their channels", "rank_fraction", "percent"),
            ("median change of the loss when a branch is dropped", "median_branch_change", "signed"),
            ("median change of the loss when a shortcut is cut", "median_shortcut_change", "signed"),
            ("parts add up to the whole, largest error", "error", "error"))
    head = "".join(f"<th>{seen.name}<br>{html.escape(seen.moment['label'])}</th>" for seen in columns)
    lines = []
    for label, finding, how in rows:
        if finding is None:
            cells = [say.number(f"{seen.key.split('.moments')[0]}.blocks") for seen in columns]
        elif finding == "loss":
            cells = [say.number(f"{seen.key}.loss") for seen in columns]
        else:
            cells = [seen.number(finding, how) for seen in columns]
        lines.append(f"<tr><th>{label}</th>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return (f'<table class="key">\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n' + "\n".join(lines)
            + "\n</tbody></table>")


def _stages(report, say):
    """[[Seen, ...] at initialisation, [Seen, ...] after training]; the second only where a network was trained."""
    def seen(index, network, place):
        return Seen(html.escape(network["name"]), network["residual"], network["moments"][place],
                    f"networks.{index}.moments.{place}", say)

    networks = list(enumerate(report["networks"]))
    first = [seen(index, network, 0) for index, network in networks]
    last = [seen(index, network, len(network["moments"]) - 1) for index, network in networks if len(network["moments"]) > 1]
    return [first, last] if last else [first]


def sections(report, say):
    """The Sections of the page, in order."""
    found = []
    for stage, fresh in zip(_stages(report, say), (True, False), strict=False):
        suffix, prefix = ("", "initialisation") if fresh else (", after training", "trained")
        shown = [(seen.name, seen.moment) for seen in stage]
        residual = [seen for seen in stage if seen.residual]
        parts = [("gradients", "Gradient against depth", _on_gradients(stage, fresh), draw_gradients, shown)]
        if residual:
            through = [(residual[0].name, residual[0].moment)]
            parts += [("parts", "Through the identity, through the branch", _on_parts(residual[0], fresh), draw_parts,
                       through),
                      ("paths", "By path length", _on_paths(residual[0], stage, fresh), draw_paths, through)]
        parts += [("lesions", "Cutting one block at a time", _on_lesions(stage, fresh), draw_lesions, shown),
                  ("activity", "The forward pass", _on_activity(stage, fresh), draw_activity, shown)]
        found += [Section(title + suffix, text, (f"{prefix}_{name}.png", partial(draw, what)))
                  for name, title, text, draw, what in parts]
    along = [network for network in report["networks"] if len(network["along_training"]) > 1]
    if along:
        found.append(Section("Along training", _on_training(report, say),
                             ("training.png", partial(draw_training, along))))
    found.append(Section("How it is measured", _on_method(say)))
    return found


def _claim(text, fresh):
    """A paper's claim, told once, and the beginning of what is seen of it."""
    return f"<b>The claim.</b> {text} <b>Here:</b> " if fresh else "<b>Here:</b> "


def _on_gradients(stage, fresh):
    said = _claim("He et al. 2015 (section 4.1) find that deep plain networks train badly, and argue that vanishing "
                  "gradients are not the reason: with batch normalisation “the backward propagated gradients exhibit "
                  "healthy norms”.", fresh)
    for seen in stage:
        said += (f"|dL/dx| at the first block of {seen.name} is {seen.number('gradient_ratio')} times that at its last, "
                 f"which is a factor of {seen.number('gradient_factor')} from one block to the block before it. ")
    vanishing = [seen.name for seen in stage if seen["gradient_ratio"] < 1 / EXPLODES]
    growing = [seen.name for seen in stage if seen["gradient_ratio"] > EXPLODES]
    said += (f"It vanishes towards the input in {' and '.join(vanishing)}." if vanishing
             else "It does not vanish towards the input.")
    if growing:
        said += f" It grows more than {EXPLODES}-fold in {' and '.join(growing)}"
        said += (": random weights between batch normalisations amplify gradients layer by layer (Yang et al. 2019), and "
                 "a shortcut leaves only its branch's part to be amplified." if fresh else ".")
    return [said]


def _on_parts(seen, fresh):
    direction = "nearly at right angles" if abs(seen["cosine"]) < 0.1 else "not at right angles"
    block = ("A block is y = relu(F(x) + S(x)), so dL/dx is the sum of S<sup>T</sup>g, through the identity, and "
             "F<sup>T</sup>g, through the branch. " if fresh else "")
    claim = _claim("He et al. 2016 (section 2): one term of the gradient reaches every earlier block “directly without "
                   "concerning any weight layers” (they leave out the ReLU after the sum, which these blocks have).", fresh)
    return [f"{block}{claim}In {seen.name} the identity brings {seen.number('identity_share', 'percent')} of a block's "
            f"gradient on average; the mean cosine between the two parts is {seen.number('cosine')}: they stand "
            f"{direction}."]


def _on_paths(seen, stage, fresh):
    plain = [other.name for other in stage if not other.residual]
    product = (f"Multiplied out, {seen.name} is a sum over all paths that take the shortcut or the branch in each of its "
               f"{seen.number('longest')} blocks. " if fresh else "")
    claim = _claim("Veit et al. 2016: the gradient comes from paths much shorter than the network.", fresh)
    said = (f"{product}{claim}Paths through {seen.number('peak')} branches bring the most; 90 % of the gradient has passed "
            f"{seen.number('low')} to {seen.number('high')} branches. The path through shortcuts alone brings "
            f"{seen.number('pure_share', 'percent')}, the one through every branch "
            f"{seen.number('longest_share', 'percent')}")
    said += f"; {plain[0]} has no path but that." if plain else "."
    text = [said]
    if fresh:
        text.append('<span class="quiet">A share is the projection of that part of the gradient on the whole; shares add up '
                    "to 1, and one below zero points against the rest.</span>")
    return text


def _on_lesions(stage, fresh):
    said = _claim("Veit et al. 2016: a trained residual network survives the loss of almost any one block, a plain one of "
                  "none.", fresh)
    for seen in stage:
        said += (f"Dropping a branch of {seen.name} changes its loss of {seen.say.number(f'{seen.key}.lesions.loss')} by "
                 f"{seen.number('median_branch_change', 'signed')} in the median, at worst by "
                 f"{seen.number('worst_branch_change', 'signed')} ({html.escape(seen['worst_branch'])})")
        if seen["worst_shortcut"] is not None:
            said += (f"; cutting a shortcut by {seen.number('median_shortcut_change', 'signed')}, at worst by "
                     f"{seen.number('worst_shortcut_change', 'signed')} ({html.escape(seen['worst_shortcut'])})")
        said += ". "
    if any(not seen.residual for seen in stage):
        said += "(Without its branch a plain block hands its input on.)"
    text = [said]
    if fresh:
        text.append('<span class="quiet">An untrained network guesses: the changes say how much a block moves the output, '
                    "not what it has learned.</span>")
    if any(seen.moment["lesion_statistics"] == "batch" for seen in stage):
        text.append('<span class="quiet">Batch normalisation uses the batch\'s statistics here: the running ones of these '
                    "weights have not settled.</span>")
    return text


def _on_activity(stage, fresh):
    said = _claim("He et al. 2015 (section 4.2, figure 7): residual functions are “generally closer to zero than the "
                  "non-residual functions”: a block only modifies what its shortcut carries.", fresh)
    for seen in stage:
        said += (f"The median response of {seen.name}, the standard deviation after a normalisation, is "
                 f"{seen.number('response')}")
        if seen.residual:
            said += (f", and its branch is {seen.number('ratio_first')} times as large as the shortcut in the first block "
                     f"and {seen.number('ratio_last')} times in the last")
        said += (f"; {seen.number('dead', 'percent')} of its ReLU channels never fire on these images, and its branches "
                 f"use {seen.number('rank_fraction', 'percent')} of their channels' directions. ")
    if fresh:
        said += "(Scales start at 1, so every response is 1 before training.)"
    return [said]


def _on_training(report, say):
    text = [f"{say.number(f'networks.{index}.final_loss')} in {html.escape(network['name'])}"
            for index, network in enumerate(report["networks"]) if network["final_loss"] is not None]
    return [_claim("He et al. 2015 (section 1): deeper plain networks have a higher <i>training</i> error, which a shortcut "
                   "around every two layers removes.", True)
            + f"The training loss over the last tenth of training is {' and '.join(text)}."]


def _on_method(say):
    return ["Nothing is sampled and nothing is approximated: the backward pass is linear in dy, so the layers' own backward "
            "passes carry each part by itself, and a gradient for each number of branches passed, as the coefficients of a "
            "polynomial. The parts were held against the gradient of a planned step: the largest difference, of any "
            f"block or path, is {say.number('error', 'error')} of the whole, and more than "
            f"{say.number('tolerance', 'error')} would have stopped the measurement. That takes float64: in float32 two "
            "orders of summation differ by enough to put some ReLUs on different sides of zero.",
            '<span class="quiet">He et al. 2015, arXiv:1512.03385. He et al. 2016, arXiv:1603.05027. Veit et al. 2016, '
            "arXiv:1605.06431. Yang et al. 2019, arXiv:1902.08129. Roy &amp; Vetterli 2007, The effective rank. All "
            "numbers: xray.json, beside this page.</span>"]
