"""Where two saved runs part: their settings, their metrics epoch by epoch, the tensors they left."""
import tomllib
from pathlib import Path

import numpy as np

from minires.files import load_tensors
from minires.models import build_model
from minires.study.divergence import FAR, Divergence, Gap, Key, measure
from minires.training.metrics import read_metrics
from minires.training.run import CONFIG, read_config
from minires.training.trainer import LAST, METRICS, STATE

TIMES = ("epoch", "seconds", "images_per_second")  # of the machine, not of the run


def compare_settings(first, second):
    """["seed: 0 against 1", ...]: what the two folders' config.toml say differently.

    UserError for a folder that is no run's.
    """
    one, other = (_settings(folder) for folder in (first, second))
    return [f"{key}: {one.get(key, 'nothing')} against {other.get(key, 'nothing')}"
            for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key)]


def compare_runs(first, second):
    """The Divergence of two runs' folders: metrics, then the last weights, then the optimiser's state.

    A gap's step is the epoch; its phase metrics, weights or optimiser. Metrics came out of float32 arithmetic and are
    measured in float32's units. Tensors that one run lacks are infinitely far from it.
    UserError for a folder that is no run's and for files that are damaged.
    """
    rows = [read_metrics(Path(folder) / METRICS) for folder in (first, second)]
    gaps = [measure(one["epoch"], Key("metrics", "", key), np.float32([one[key]]), np.float32([other[key]]))
            for one, other in zip(*rows, strict=False) for key in one if key in other and key not in TIMES]
    epochs = [len(part) for part in rows]
    if epochs[0] != epochs[1]:
        gaps.append(_missing(min(epochs) + 1, Key("metrics", "", "epoch"), f"{epochs[0]} epochs against {epochs[1]}"))
    learned, order = _names(first)
    weights, states = ([load_tensors(Path(folder) / file)[0] for folder in (first, second)] for file in (LAST, STATE))
    states = [{_spelt_out(name, learned): array for name, array in state.items() if name.startswith("optimiser.")}
              for state in states]  # the rest of it is the weights once more
    for phase, (one, other) in (("weights", weights), ("optimiser", states)):
        for name in sorted({*one, *other}, key=lambda name: (order.get(name.removesuffix(" velocity"), len(order)), name)):
            key = Key(phase, "", name)
            gaps.append(measure(max(epochs), key, one[name], other[name]) if name in one and name in other else
                        _missing(max(epochs), key, f"only in {first if name in one else second}"))
    losses = tuple((one["train_loss"], other["train_loss"]) for one, other in zip(*rows, strict=False))
    return Divergence(tuple(gaps), losses)


def _missing(step, key, note):
    return Gap(step, key, np.inf, int(FAR), 1.0, note)


def _names(folder):
    """(names of the parameters, {name: place} of all tensors) of a run's network, in the order of computing."""
    settings = read_config(folder)
    model = build_model(settings.model, shortcut=settings.shortcut, **settings.options)
    return [name for name, _ in model.named_parameters()], {name: place for place, name in enumerate(model.state_dict())}


def _spelt_out(name, learned):
    """"conv1.weight velocity" of "optimiser.0.velocity"."""
    number, _, slot = name.removeprefix("optimiser.").partition(".")
    return f"{learned[int(number)]} {slot}" if number.isdigit() and int(number) < len(learned) else number


def _settings(folder):
    read_config(folder)  # refuses what is not a run's
    return _flat(tomllib.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")))


def _flat(content, prefix=""):
    """{"recipe.lr": 0.2, ...}."""
    flat = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
