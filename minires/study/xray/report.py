"""The X-ray itself: every measurement of a network and its plain twin, as one dict of JSON values."""
import time
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import minires
from minires.data import has_pictures
from minires.errors import UserError
from minires.study.summary import count_parameters
from minires.study.xray.activity import observe
from minires.study.xray.findings import findings
from minires.study.xray.gradients import TOLERANCE, backward_norms, blocks_of, decompose, is_residual, require_known
from minires.study.xray.lesions import lesion_study
from minires.study.xray.subject import (
    draw_images,
    float64_copy,
    is_run,
    model_subject,
    run_subject,
    train_subject,
    twin_of,
    weights_subject,
)
from minires.training.card import load_model
from minires.training.run import read_config
from minires.training.trainer import LAST

TEST_IMAGES = 128  # that lesions are measured on


@dataclass(frozen=True)
class Order:
    """What to X-ray. target, twin: a model's name or a run's folder (twin None: the plain twin of target, or of a plain
    network the residual one); dataset, data_dir: as `load_dataset` takes them, None for the run's own (shapes for a model);
    images: N of the batch that gradients are taken on; train_steps: steps to train models for, 0 for none; seed: of a
    model's weights and of the images; shortcut: of a model; opened: (network, ModelCard) where the target is a file of
    weights."""

    target: str
    twin: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    images: int = 32
    train_steps: int = 0
    seed: int = 0
    shortcut: str | None = None
    opened: tuple | None = None


@contextmanager
def silent(description, total):
    """A progress that shows nothing: what `xray` calls with each part of its work, and how many steps it has."""
    yield lambda: None


def xray(order, progress=silent):
    """The X-ray as a dict of JSON values, see `minires.study.xray`.

    progress(description, total): a context manager whose value is called after each step. UserError for a target that is
    neither model nor run, and for options that do not fit it.
    """
    began = time.perf_counter()
    targets = [target for target in (order.target, order.twin) if target is not None]
    opened = {order.target: order.opened} if order.opened else {}
    runs = [target for target in targets if target not in opened and is_run(target)]
    _require_fitting(order, runs)
    settings = read_config(runs[0]) if runs else None
    card = order.opened[1] if order.opened else None
    dataset = order.dataset or (settings.dataset if runs else card.dataset if card and card.dataset else "shapes")
    data_dir = order.data_dir or (settings.data_dir if runs and order.dataset is None else None)
    with progress("drawing images", None):
        size = (card.image_size if card else settings.size if runs else None) if has_pictures(dataset) else None
        statistics = (card.mean, card.std) if card else _statistics(runs)
        images = draw_images(dataset, data_dir, order.images, TEST_IMAGES, order.seed, statistics, size)
    classes = len(images.training.classes)
    subjects = [weights_subject(*opened[target], order.seed) if target in opened else run_subject(target) if target in runs
                else model_subject(target, classes, order.seed, order.shortcut) for target in targets]
    if len({subject.name for subject in subjects}) < len(subjects):  # two runs of one model, or a run and its model
        for subject, target in zip(subjects, targets, strict=True):
            if target in (*runs, *opened):
                subject.name += f" ({target})"
    for subject in subjects:
        require_known(subject.moments[0].network, subject.name)
        if subject.moments[0].network.fc.out_features != classes:
            raise UserError(f"{subject.name} tells {subject.moments[0].network.fc.out_features} classes apart and {dataset} "
                            f"has {classes}: X-ray it on the data set it was trained for")
    if order.twin is None:
        subjects.append(twin_of(subjects[0], classes, order.seed))
    for subject in subjects:
        if order.train_steps:
            with progress(f"{subject.name}: training", order.train_steps) as step:
                train_subject(subject, images, order.train_steps, order.seed, step)
    networks = [_examined(subject, images, progress) for subject in subjects]
    errors = [moment["findings"]["error"] for network in networks for moment in network["moments"]]
    return {"minires": minires.__version__, "dataset": str(dataset), "images": order.images,
            "test_images": len(images.test[1]), "seed": order.seed, "train_steps": order.train_steps,
            "tolerance": TOLERANCE, "error": max(errors), "networks": networks, "seconds": time.perf_counter() - began}


def _require_fitting(order, runs):
    if order.train_steps < 0:
        raise UserError(f"training for {order.train_steps} steps is not possible: expected 0 or more")
    if order.seed < 0:
        raise UserError(f"seed {order.seed} is negative: expected 0 or more")
    if order.twin == order.target:
        raise UserError(f"{order.target} was to be held against itself: name another run or model with --twin")
    runs = runs or ([order.target] if order.opened else [])
    if runs and order.train_steps:
        raise UserError(f"--train-steps trains fresh models, and {runs[0]} was trained: leave it out")
    if runs and order.shortcut is not None:
        raise UserError(f"--shortcut is for models, and {runs[0]} is a run that has its shortcuts: leave it out")


def _statistics(runs):
    """(mean, std) of the first run's training images, or None; UserError when two runs differ in them."""
    cards = [load_model(Path(run) / LAST)[1] for run in runs]
    for card, run in zip(cards[1:], runs[1:], strict=True):
        if (card.classes, card.image_size) != (cards[0].classes, cards[0].image_size):
            raise UserError(f"{runs[0]} and {run} were trained on different data: X-ray twins of one data set")
    return (cards[0].mean, cards[0].std) if cards else None


def _examined(subject, images, progress):
    """A Subject as JSON values, each of its moments measured."""
    first = subject.moments[0].network
    blocks = blocks_of(first)
    moments, norms = [], dict(subject.norms)
    for moment in subject.moments:
        found, norms[moment.at] = _moment(subject.name, moment, images, len(blocks), progress)
        moments.append(found)
    return {"name": subject.name, "residual": all(map(is_residual, blocks.values())), "blocks": len(blocks),
            "parameters": int(count_parameters(first)), "unit": subject.unit,
            "losses": [list(pair) for pair in subject.losses], "final_loss": _final_loss(subject.losses),
            "along_training": [{"at": at, **asdict(norms[at])} for at in sorted(norms)], "moments": moments}


def _final_loss(losses):
    """The mean training loss over the last tenth, or None before training."""
    last = [loss for _, loss in losses[-max(1, len(losses) // 10):]]
    return float(np.mean(last)) if last else None


def _moment(name, moment, images, blocks, progress):
    copy, whole = float64_copy(moment.network), {}
    with progress(f"{name}, {moment.label}: gradients", blocks) as step:
        norms = backward_norms(copy, *images.batch, whole)
        _require_gradients(name, moment.label, norms)
        parts, paths = decompose(copy, *images.batch, whole, step)
    layers, branches = observe(copy, images.batch[0])
    live = deepcopy(moment.network).train(not moment.settled)
    with progress(f"{name}, {moment.label}: lesions", blocks) as step:
        lesions = lesion_study(live, *images.test, step)
    found = {"label": moment.label, "at": moment.at, "lesion_statistics": "running" if moment.settled else "batch",
             "loss": norms.loss, "blocks": [asdict(part) for part in parts], "layers": norms.layers,
             "paths": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(paths).items()},
             "activity": [asdict(layer) for layer in layers], "branches": [asdict(branch) for branch in branches],
             "lesions": {**asdict(lesions), "lesions": [asdict(cut) for cut in lesions.lesions]}}
    found["findings"] = findings(found)
    return found, norms


def _require_gradients(name, label, norms):
    if not all(np.isfinite(norm) and norm > 0 for norm in norms.blocks.values()):
        raise UserError(f"the gradients of {name} at {label} are zero or not finite: there is nothing to decompose, its "
                        "training has diverged or has nothing left to learn from these images")
