"""The training loop, used by the command line and by a ten-line script alike."""
import math
import time
from itertools import islice
from pathlib import Path

import numpy as np

from minires import arguments
from minires.backends import memory_advice, to_device
from minires.errors import UserError, WriteError
from minires.files import plain_json, save_tensors, write_atomically
from minires.layer import Layer
from minires.losses import CrossEntropyLoss
from minires.plan import compile
from minires.reprs import describe
from minires.training.card import BEST
from minires.training.checkpoint import (
    Position,
    load_state,
    read_state,
    save_state,
    set_streams,
    state_tensors,
    states_of,
    streams_of,
)
from minires.training.fingerprint import differences, fingerprint
from minires.training.folder import make_folder, open_folder
from minires.training.guards import (
    DEVICE_EVERY,
    RATIO_EVERY,
    Before,
    Update,
    first_not_finite,
    norm,
    where_not_finite,
)
from minires.training.metrics import best_epoch, evaluate, read_rows, write_metrics
from minires.training.progress import Progress
from minires.training.stopping import Stopped, listening_for_signals

METRICS, CURVES = "metrics.jsonl", "curves.png"
LAST, STATE = "last.safetensors", "state.safetensors"
FILES = (METRICS, CURVES, LAST, BEST, STATE)


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
    evaluation), images_per_second, grad_norm (the gradient's Euclidean norm, mean of all steps, on a device of every 50th),
    update_ratio (|update| / |weights|, mean of an update every 16 steps, on a device every 50), skipped, where updates
    were; with a validation loader validation_loss and validation_accuracy. Accuracies are fractions.

    In `out`, after every epoch and each replaced in one step: metrics.jsonl (the rows), last.safetensors,
    state.safetensors (for `restore`) and best.safetensors: the weights of the epoch with the highest validation
    accuracy, the earliest of equals. The test set selects nothing: without a validation loader best is last.
    curves.png is drawn at the end. The state is written before the first step, too, every save_every seconds (or "5m"; 0:
    never) within an epoch, and when SIGINT, SIGTERM or SIGHUP asks the run to stop, which raises Stopped. The folder is
    locked meanwhile. Where the optimiser keeps an average of the weights, that is what is evaluated and saved as weights
    (the state has both).

    on_nonfinite: what is done when a loss or a gradient is not finite: "stop" raises a UserError that names the layer and
    the tensor where it appeared, "skip" leaves the update out and counts it in the row. Nothing that is not finite is saved.
    patience: stop when the validation accuracy was highest so many epochs ago; None never does.
    """

    def __init__(self, model, optimiser, train, test, *, validation=None, schedule=None, loss=None, out=None,
                 about=None, device="cpu", progress=True, save_every=300.0, on_nonfinite="stop", patience=None):
        if not isinstance(model, Layer):
            raise UserError(f"model must be a Layer, got {arguments.shown(model)}")
        self.model, self.optimiser, self.schedule = model, optimiser, schedule
        self.train, self.test, self.validation = train, test, validation
        self.loss = CrossEntropyLoss() if loss is None else loss
        self.out, self.device = None if out is None else arguments.path("out", out), device
        self.about = plain_json("about", about or {})
        self.progress = arguments.flag("progress", progress)
        self.save_every = arguments.seconds("save_every", save_every)
        self.on_nonfinite = arguments.choice("on_nonfinite", on_nonfinite, ("stop", "skip"))
        self.patience = None if patience is None else arguments.integer("patience", patience)
        if patience is not None and (validation is None or patience < 1):
            raise UserError(f"patience {patience} waits for the validation accuracy: give 1 or more epochs, and a loader of "
                            "validation images")
        if out is not None and test is None:
            raise UserError(f"test is None and out is {self.out}, where metrics.jsonl holds the test accuracy: "
                            "pass a loader of test images, or no out")
        self.rows, self.notes, self._told = [], [], 0  # notes, and how many of them were shown
        self._at, self._began, self._lock, self._print, self._chance = Position(), None, None, None, None

    def __repr__(self):
        return describe(self)

    @property
    def epoch(self):
        """The number of complete epochs."""
        return len(self.rows)

    @property
    def step(self):
        """The number of steps done of the epoch after them."""
        return self._at.step

    def fit(self, epochs):
        """Train until `epochs` epochs are complete, those before a `restore` included. Returns the rows of all of them.

        UserError when a number is no longer finite, when a loader yields nothing, when nothing can be written, and when
        `out` holds another run. Interrupted at any moment, the run can go on from its last save, to the same weights bit by
        bit.
        """
        try:
            epochs = arguments.count("epochs", epochs)
            self._open_folder()
            self._step, self._predict = compile(self.model, self.loss), compile(self.model)
            self._fit(epochs)
        finally:
            self._release()
        if self.out is not None:
            from minires.plots import draw_curves

            draw_curves(self.rows, self.out / CURVES)
        return self.rows

    def _fit(self, epochs):
        try:
            with (listening_for_signals(self.progress) as self._asked,
                  Progress(epochs, len(self.train), self.epoch, self.progress) as progress):
                self._tell(progress)
                for epoch in range(self.epoch + 1, epochs + 1):
                    if self.patience is not None and self.rows and self.epoch - best_epoch(self.rows) >= self.patience:
                        progress.note(f"stopped: no epoch since {best_epoch(self.rows)} had a higher validation accuracy")
                        break
                    progress.begin_epoch(epoch, self._at.step, self._at.seconds)
                    row = {"epoch": epoch, **self._train_epoch(epoch, progress)} | self._evaluate(epoch)
                    self.rows.append(row)
                    self._at = Position(epoch)
                    self._save()
                    progress.end_epoch(row)
                    for layer, reason in self._step.opaque:
                        self._tell(progress, f"{layer or 'the model'} is not planned, and runs as it is: {reason}")
                    if self._asked.number is not None and epoch < epochs:
                        raise Stopped(self._asked.number)
                self._tell_chance(progress)
        except WriteError as error:
            raise UserError(f"{error}; the run stands as it was last saved, go on with minires train --resume {self.out}, "
                            "or restore() in a script") from error

    def restore(self):
        """Continue the run in `out`: its weights, optimiser, random streams, position and rows. Returns self.

        The arguments of the constructor must be built as they were. UserError when there is nothing to continue, when the
        data is not what it was, and when the run is alive; then nothing is changed. What else is not as it was is told when
        `fit` begins.
        """
        if self.out is None:
            raise UserError("restore continues the run in a folder, and this trainer has none: pass out")
        if self._lock is None:
            self._lock = open_folder(self.out, FILES)
        try:
            streams = streams_of(self.model, self.train)
            tensors, at, states, began, kept = read_state(self.out / STATE, streams)
            notes = differences(kept, self._fingerprint())
            wanted = ("test_loss", *(("validation_loss", "validation_accuracy") if self.validation is not None else ()))
            rows = read_rows(self.out / METRICS, at.epoch, wanted)
            load_state(tensors, self.model, self.optimiser)
            set_streams(streams, states)
            if self.schedule is not None:
                self.schedule.step()
        except BaseException:
            self._release()
            raise
        self.rows, self.notes, self._told, self._at, self._began = rows, notes, 0, at, began
        return self

    def _release(self):
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def begin(self, folder, write=None):
        """Make the run's folder, whole from its first instant: with the state before step 1, and what write(folder) adds."""
        def fill(folder):
            if write is not None:
                write(folder)
            self._fill(folder)

        self._lock = make_folder(folder, fill)
        self.out = Path(folder)

    def _fill(self, folder):
        self._save_state(folder)
        write_metrics(folder / METRICS, [])

    def _open_folder(self):
        if self.out is None or self._lock is not None:
            return
        if self.rows or self._at.step:
            self._lock = open_folder(self.out, FILES)
        elif (self.out / STATE).exists() or (self.out / METRICS).exists():
            raise UserError(f"{self.out} already holds a run: choose another folder, or call restore() to continue it")
        elif self.out.is_dir():
            self._lock = open_folder(self.out, FILES)  # with files of others, perhaps, which stay
            self._fill(self.out)
        else:
            self.begin(self.out)

    def _batches(self):
        """The batches of an epoch after those that are done already, which the loader makes again from where it stood."""
        streams, done = streams_of(self.model, self.train), self._at.step
        now = states_of(streams)
        if done and self._began is not None:
            streams["loader"].bit_generator.state = self._began
        self._began = states_of(streams).get("loader")
        if hasattr(self.train, "batches_from"):
            batches = self.train.batches_from(done, self._at.epoch)
        else:
            batches = iter(self.train)
            next(islice(batches, done, done), None)  # goes through them
        if done:
            set_streams(streams, now)
        yield from batches

    def _train_epoch(self, epoch, progress):
        at, parameters, streams = self._at, self.model.parameters(), streams_of(self.model, None).values()
        ratio_every = RATIO_EVERY if self.device == "cpu" else DEVICE_EVERY
        began, self._last_save, self._rates = time.perf_counter() - at.seconds, time.monotonic(), []
        self.model.train()
        for x, target in self._batches():
            lr = self.optimiser.lr
            # Numbers that overflow show up in the loss and the gradients, and are reported there.
            with np.errstate(over="ignore", invalid="ignore"), memory_advice(len(x)):
                x, target = to_device(x, self.device), to_device(target, self.device)
                before = Before(self.model) if self.on_nonfinite == "skip" else None
                stood = [rng.bit_generator.state for rng in streams]
                loss, y = self._step(x, target)
                if self._is_finite(loss, parameters, at):
                    moves = self.optimiser.waiting == self.optimiser.accumulate - 1
                    update = Update(parameters) if moves and at.step >= at.ratios * ratio_every else None
                    self._rates.append(lr)
                    self._require_finite(at.score.add(loss, y, target), at.step + 1)
                    self.optimiser.step()
                    ratio = None if update is None else update.ratio()
                    if ratio is not None and math.isfinite(ratio):
                        at.ratio_sum, at.ratios = at.ratio_sum + ratio, at.ratios + 1
                elif before is not None:
                    before.put_back()
                    at.skipped += 1
                else:
                    for rng, state in zip(streams, stood, strict=True):
                        rng.bit_generator.state = state
                    raise self._not_finite(loss, x, target, epoch, lr)
            if self.schedule is not None:
                self.schedule.step()
            at.step, at.lr, at.seconds = at.step + 1, lr, time.perf_counter() - began
            progress.step(at.score)
            if self._asked.number is not None:
                self._save_within_epoch()
                raise Stopped(self._asked.number)
            if self.save_every and time.monotonic() - self._last_save >= self.save_every:
                self._save_within_epoch()
        self._require_finite(at.score.read(), at.step)
        if not at.score.images:
            raise UserError(f"every step of epoch {epoch} was skipped: its loss or gradients were not finite, look at the "
                            "data or lower the learning rate" if at.skipped else
                            f"the training loader yielded no batch in epoch {epoch}: pass one to iterate again")
        row = {"train_loss": at.score.loss, "train_accuracy": at.score.accuracy, "lr": at.lr, "seconds": at.seconds,
               "images_per_second": at.score.images / at.seconds}
        if at.norms:
            row["grad_norm"] = at.norm_sum / at.norms
        if at.ratios:
            row["update_ratio"] = at.ratio_sum / at.ratios
        return row | ({"skipped": at.skipped} if self.on_nonfinite == "skip" else {})

    def _is_finite(self, loss, parameters, at):
        """Whether the loss and every gradient are; on a device looked up now and then, since it must be waited for."""
        if not isinstance(loss, float) and self.on_nonfinite == "stop" and at.step % DEVICE_EVERY:
            return True
        size = norm([parameter.grad for parameter in parameters])
        if not (math.isfinite(float(loss)) and math.isfinite(size)):
            return False
        at.norm_sum, at.norms = at.norm_sum + size, at.norms + 1
        return True

    def _not_finite(self, loss, x, target, epoch, lr):
        """The UserError for a step whose loss or gradients are not finite."""
        self._require_finite(self._at.score.read(), self._at.step)  # of a device the steps before are not known yet
        loss = float(loss)
        what = f"the loss became {loss}" if not math.isfinite(loss) else "a gradient became inf or nan"
        where = where_not_finite(self.model, self.loss, x, target)
        lower = "" if where.startswith("the input held") else ": train with a lower learning rate"
        return UserError(f"{what} in epoch {epoch}, at its step {self._at.step + 1} with learning rate {lr:.3g}; "
                         f"{where}{lower}{self._safe()}")

    def _require_finite(self, losses, done):
        """UserError for the first that is not finite of the last of so many steps' losses: a device's are known late."""
        for back, loss in zip(range(len(losses), 0, -1), losses, strict=True):
            if not math.isfinite(loss):
                raise UserError(f"the loss became {loss} in epoch {self._at.epoch + 1}, at its step {done + 1 - back} with "
                                f"learning rate {self._rates[-back]:.3g}: train with a lower learning rate{self._safe()}")

    def _safe(self):
        """What of the run can be relied on after an error."""
        return "" if self.out is None or not (self.out / STATE).exists() else (
            f"; nothing of it was saved, and {self.out / STATE} is of the last save before")

    def _evaluate(self, epoch):
        found = {}
        self._require_finite_state(state_tensors(self.model, self.optimiser), epoch)
        for name, loader in (("test", self.test), ("validation", self.validation)):
            if loader is None:
                continue
            try:
                with self.optimiser.averaged():
                    score = evaluate(self.model, self.loss, self._until_asked(loader), self.device, self._predict)
            except Stopped:  # the weights are the optimiser's own again, as the state has them
                self._save_within_epoch()
                raise
            if not math.isfinite(score.loss):
                bad = any(not np.isfinite(x).all() for x, _ in loader if isinstance(x, np.ndarray))
                raise UserError(f"the {name} loss became {score.loss} in epoch {epoch}, though the weights are finite: "
                                f"{'the input held it already, look at the data' if bad else 'the logits overflow'}"
                                f"{self._safe()}")
            found |= {f"{name}_loss": score.loss, f"{name}_accuracy": score.accuracy}
            if name == "test":
                self._chance = score.seen.max() / score.images
        return found

    def _tell_chance(self, progress):
        """Say so when the last epoch's accuracy is no better than a guess."""
        accuracy = self.rows[-1].get("test_accuracy") if self.rows else None
        if accuracy is not None and self._chance is not None and accuracy <= self._chance:
            self._tell(progress, f"the test accuracy, {accuracy:.2%}, is no better than always naming the commonest class "
                                 f"({self._chance:.2%}): nothing useful was learned")

    def _tell(self, progress, *notes):
        """Note what is new, and show what was not shown yet."""
        self.notes += [note for note in notes if note not in self.notes]
        for note in self.notes[self._told:]:
            progress.note(note)
        self._told = len(self.notes)

    # --- saving ---

    def _until_asked(self, loader):
        """The loader's batches; a run that is asked to stop does so between two of them."""
        for batch in loader:
            yield batch
            if self._asked.number is not None:
                raise Stopped(self._asked.number)

    def _save_within_epoch(self):
        if self.out is not None:
            self._require_finite(self._at.score.read(), self._at.step)
            self._save_state(self.out)
        self._last_save = time.monotonic()

    def _save(self):
        if self.out is None:
            return
        about = {**self.about, "epoch": self.epoch}
        with self.optimiser.averaged():
            save_tensors(self.out / LAST, self.model.state_dict(), about)
        if best_epoch(self.rows) == self.epoch:
            write_atomically(self.out / BEST, (self.out / LAST).read_bytes())
        write_metrics(self.out / METRICS, self.rows)
        self._save_state(self.out)  # last: see restore

    def _save_state(self, folder):
        tensors = state_tensors(self.model, self.optimiser)
        self._require_finite_state(tensors, self._at.epoch + 1)
        states = states_of(streams_of(self.model, self.train))
        began = self._began if self._at.step else None
        save_state(folder / STATE, tensors, self._at, states, began, self._fingerprint())

    def _require_finite_state(self, tensors, epoch):
        found = first_not_finite(tensors)
        if found is not None:
            kind, name = found.split(".", 1)
            raise UserError(f"{name} of the {kind} is not finite after step {self._at.step} of epoch {epoch} with learning "
                            f"rate {self._at.lr:.3g}, though the step's loss was: the update made it; train with a lower "
                            f"learning rate{self._safe()}")

    def _fingerprint(self):
        if self._print is None:
            loaders = {"train": self.train, "test": self.test, "validation": self.validation}
            self._print = fingerprint(loaders, optimiser=self.optimiser, schedule=self.schedule, loss=self.loss)
        return self._print
