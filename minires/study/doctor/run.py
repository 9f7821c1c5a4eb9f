"""Mistakes of a run that was made, seen in what it left."""
from pathlib import Path

import numpy as np

from minires.backends import to_numpy
from minires.errors import UserError
from minires.files import load_tensors
from minires.layer import left_as_found
from minires.study.doctor.data import SURE, look_at_data
from minires.study.doctor.finding import Finding
from minires.study.doctor.model import look_at_model
from minires.training.metrics import evaluate, read_metrics
from minires.training.run import build_run, read_config
from minires.training.trainer import BEST, LAST, METRICS, STATE


def doctor_run(folder, picture=None):
    """A list of Findings about the run in a folder of `minires train`. picture: a .png for the learning rate's range test.

    UserError for a folder that is no run's, or that has no complete epoch yet.
    """
    folder = Path(folder)
    settings, rows = read_config(folder), read_metrics(folder / METRICS)
    if not rows:
        raise UserError(f"the run in {folder} holds no epoch yet: nothing to look at")
    trainer, card = build_run(settings, progress=False)
    tensors, about = load_tensors(folder / LAST)
    trained = card.build(0).load_state_dict(tensors)
    labels = trainer.test.dataset.labels
    chance = np.bincount(labels).max() / len(labels)
    sure = chance + SURE * np.sqrt(chance * (1 - chance) / len(labels))
    found = look_at_data(trainer.train, trainer.test, trainer.validation, labelled=rows[-1]["test_accuracy"] > sure)
    if tuple(about.get("classes", card.classes)) != tuple(card.classes):
        found.append(Finding("class order", f"the weights were trained for the classes {', '.join(about['classes'][:5])} "
                                            f"and the data has {', '.join(card.classes[:5])}: a label means another class "
                                            "now"))
    return (found + _updates(rows, folder, len(trainer.train), settings.recipe.accumulate) + _selection(rows, folder)
            + _measured(trained, trainer, rows) + look_at_model(
                trainer.model, trainer.train, lr=settings.recipe.lr, picture=picture, trained=trained))


def _updates(rows, folder, steps, accumulate=1):
    """Epochs without updates: nothing moved, or fewer steps than batches."""
    still = [row["epoch"] for row in rows if row.get("update_ratio") == 0 or row.get("lr") == 0]
    if still:
        return [Finding("no update", f"in epoch {still[0]} the weights did not move: the learning rate was 0, or the "
                                     "gradients were")]
    tensors, about = load_tensors(folder / STATE)
    # A run that was killed before it wrote its state has a row more than the state knows.
    made, due = int(tensors["optimiser.steps"]), about["epoch"] * steps + about["step"]
    skipped = sum(row.get("skipped", 0) for row in rows[:about["epoch"]]) + about["skipped"]
    if made < (due - skipped) // accumulate:
        of = f", {accumulate} to a step," if accumulate > 1 else ""
        return [Finding("no update", f"the optimiser made {made} steps in epochs of {due} batches{of} in all: some batches "
                                     "moved nothing")]
    return []


def _selection(rows, folder):
    """best.safetensors must be chosen on validation images, or be the last."""
    best = load_tensors(folder / BEST)[1].get("epoch")
    if "validation_accuracy" in rows[-1] or best == rows[-1]["epoch"]:
        return []
    return [Finding("selection on the test set", f"without a validation set best.safetensors is of epoch {best} of "
                                                 f"{len(rows)}: it was chosen by the test set, whose accuracy is then too "
                                                 "good; hold out images with --validation")]


def _measured(model, trainer, rows):
    """The test loss that the run wrote down is the one that evaluation gives, and not the one of training mode."""
    loss, wrote = trainer.loss, rows[-1]["test_loss"]
    again = evaluate(model, loss, trainer.test).loss
    if np.isclose(again, wrote, rtol=1e-3, atol=1e-3):
        return []
    total, images = 0.0, 0
    with left_as_found(model):
        model.train()
        for x, target in trainer.test:
            total += float(loss.forward(to_numpy(model.forward(x)), target)) * len(x)
            images += len(x)
    if np.isclose(total / images, wrote, rtol=1e-2):
        return [Finding("evaluation in training mode", f"the run wrote a test loss of {wrote:.4f}, which its weights "
                                                       f"give in training mode; in evaluation mode they give {again:.4f}")]
    return [Finding("other evaluation", f"the run wrote a test loss of {wrote:.4f} and its weights give {again:.4f} on the "
                                        "test set as it is now: data, preprocessing or weights are not what they were")]
