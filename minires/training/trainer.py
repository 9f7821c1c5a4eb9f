"""The training loop, used by the command line and by a ten-line script alike."""
import math
import time
from pathlib import Path

import numpy as np

from minires.backends import memory_advice, to_device
from minires.errors import UserError
from minires.files import save_tensors, write_atomically
from minires.losses import CrossEntropyLoss
from minires.plan import compile
from minires.reprs import describe
from minires.training.checkpoint import load_state, save_state
from minires.training.metrics import Score, evaluate, read_metrics, write_metrics
from minires.training.progress import Progress

METRICS, CURVES = "metrics.jsonl", "curves.png"
LAST, BEST, STATE = "last.safetensors", "best.safetensors", "state.safetensors"


class Trainer:
    """Train a classifier, evaluate it after every epoch, and keep what a run leaves behind.

        trainer = Trainer(model, optimiser, train_loader, test_loader, schedule=schedule, out="runs/mine")
        rows = trainer.fit(epochs=10)

    train, test, validation: loaders of (x, target), x: (N, H, W, C), target: (N,) integers; each can be iterated again.
    schedule: stepped after every update; None leaves the learning rate alone. loss: CrossEntropyLoss() if None;
    evaluation uses it too. out: the run's folder; None writes nothing. about: JSON values for the weights' headers
    (`ModelCard.about`), so that `minires eval` can rebuild the model. device: where the model and its optimiser live.
    Steps are planned (`minires.compile`): after the first they run without Python.

    rows: one dict an epoch. epoch (from 1), train_loss and train_accuracy (running means over the epoch, in training
    mode, on augmented images), test_loss, test_accuracy, lr (of the epoch's last update), seconds (of training, without
    evaluation), images_per_second; with a validation loader validation_loss and validation_accuracy. Accuracies are
    fractions.

    In `out`, after every epoch and each replaced in one step: metrics.jsonl (the rows), last.safetensors,
    state.safetensors (for `restore`) and best.safetensors: the weights of the epoch with the highest validation
    accuracy, the earliest of equals. The test set selects nothing: without a validation loader best is last.
    curves.png is drawn at the end. Where the optimiser keeps an average of the weights, that is what is evaluated and saved
    (the state has both). patience: stop when the validation accuracy was highest so many epochs ago; None never does.
    """

    def __init__(self, model, optimiser, train, test, *, validation=None, schedule=None, loss=None, out=None,
                 about=None, device="cpu", progress=True, patience=None):
        self.model, self.optimiser, self.schedule = model, optimiser, schedule
        self.train, self.test, self.validation = train, test, validation
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.out, self.about, self.device, self.progress = None if out is None else Path(out), about, device, progress
        if patience is not None and (validation is None or patience < 1):
            raise UserError(f"patience {patience} waits for the validation accuracy: give 1 or more epochs, and a loader of "
                            "validation images")
        self.patience, self.rows = patience, []

    def __repr__(self):
        return describe(self)

    @property
    def epoch(self):
        """The number of complete epochs."""
        return len(self.rows)

    def fit(self, epochs):
        """Train until `epochs` epochs are complete, those before a `restore` included. Returns the rows of all of them.

        UserError when the loss is no longer finite, when a loader yields nothing, and when `out` holds another run.
        Interrupted at any moment, the run can go on from its last complete epoch, to the same weights bit by bit.
        """
        self._open_folder()
        self._step, self._predict, told = compile(self.model, self.loss), compile(self.model), set()
        with Progress(epochs, len(self.train), self.epoch, self.progress) as progress:
            for epoch in range(self.epoch + 1, epochs + 1):
                if self.patience is not None and self.rows and self.epoch - best_epoch(self.rows) >= self.patience:
                    progress.note(f"stopped: no epoch since {best_epoch(self.rows)} had a higher validation accuracy")
                    break
                progress.begin_epoch(epoch)
                row = {"epoch": epoch, **self._train_epoch(epoch, progress)}
                for name, loader in (("test", self.test), ("validation", self.validation)):
                    if loader is not None:
                        with self.optimiser.averaged():
                            score = evaluate(self.model, self.loss, loader, self.device, self._predict)
                        row |= {f"{name}_loss": score.loss, f"{name}_accuracy": score.accuracy}
                self.rows.append(row)
                self._save()
                progress.end_epoch(row)
                for layer, reason in self._step.opaque:
                    if (layer, reason) not in told:
                        told.add((layer, reason))
                        progress.note(f"{layer or 'the model'} is not planned, and runs as it is: {reason}")
        if self.out is not None:
            from minires.plots import draw_curves

            draw_curves(self.rows, self.out / CURVES)
        return self.rows

    def restore(self):
        """Continue the run in `out`: its weights, optimiser, random streams and rows. Returns self.

        The arguments of the constructor must be built as they were. UserError when there is nothing to continue.
        """
        if self.out is None:
            raise UserError("restore continues the run in a folder, and this trainer has none: pass out")
        epoch = load_state(self.out / STATE, self.model, self.optimiser, self.train)
        # The state is written last: a run that died just before it has one row, redone now, too many.
        self.rows = read_metrics(self.out / METRICS)[:epoch]
        if self.epoch != epoch:
            raise UserError(f"{self.out / METRICS} has {self.epoch} epochs but {STATE} was saved after {epoch}: one of "
                            "the two is from another run")
        if self.schedule is not None:
            self.schedule.step()
        return self

    def _train_epoch(self, epoch, progress):
        began, score, rates = time.perf_counter(), Score(), []
        self.model.train()
        for x, target in self.train:
            rates.append(self.optimiser.lr)
            # Numbers that overflow show up in the loss, and are reported there.
            with np.errstate(over="ignore", invalid="ignore"), memory_advice(len(x)):
                x, target = to_device(x, self.device), to_device(target, self.device)
                loss, y = self._step(x, target)
                self._require_finite(score.add(loss, y, target), epoch, rates)
                self.optimiser.step()
            if self.schedule is not None:
                self.schedule.step()
            progress.step(score)
        self._require_finite(score.read(), epoch, rates)
        if not score.images:
            raise UserError(f"the training loader yielded no batch in epoch {epoch}: pass one to iterate again")
        seconds = time.perf_counter() - began
        return {"train_loss": score.loss, "train_accuracy": score.accuracy, "lr": rates[-1], "seconds": seconds,
                "images_per_second": score.images / seconds}

    def _require_finite(self, losses, epoch, rates):
        """UserError for a loss that is not finite. losses: those of the last steps, of a device read late."""
        for step, loss in enumerate(losses, len(rates) - len(losses)):
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} in epoch {epoch}, at its step {step + 1} with learning rate "
                                f"{rates[step]:.3g}: train with a lower learning rate")

    def _open_folder(self):
        if self.out is None:
            return
        if not self.rows and (self.out / METRICS).exists():
            raise UserError(f"{self.out} already holds a run: choose another folder, or call restore() to continue it")
        self.out.mkdir(parents=True, exist_ok=True)

    def _save(self):
        if self.out is None:
            return
        about = {**(self.about or {}), "epoch": self.epoch}
        with self.optimiser.averaged():
            save_tensors(self.out / LAST, self.model.state_dict(), about)
        if best_epoch(self.rows) == self.epoch:
            write_atomically(self.out / BEST, (self.out / LAST).read_bytes())
        write_metrics(self.out / METRICS, self.rows)
        save_state(self.out / STATE, self.model, self.optimiser, self.train, self.epoch)  # last: see restore


def best_epoch(rows):
    """The epoch whose weights are in best.safetensors: the highest validation accuracy, else the last."""
    if "validation_accuracy" not in rows[-1]:
        return rows[-1]["epoch"]
    return max(rows, key=lambda row: row["validation_accuracy"])["epoch"]
