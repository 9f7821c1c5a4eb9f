"""Two hundred steps end on the same bits: on one thread and on all, batches made ahead or when asked for, stopped or not."""
import os
import signal

import numpy as np
import pytest
from test_training import coloured

from minires import SGD, Trainer, build_model, set_num_threads
from minires.backends.cpu.threads import MOST_THREADS
from minires.data import Loader
from minires.files import load_tensors
from minires.layer import Sequential
from minires.layers import Dropout
from minires.schedules import OneCycleLR
from minires.training.stopping import Stopped

EPOCHS, STEPS, BATCH = 8, 25, 6


class WhenAsked:
    """A loader whose batches are made one by one, in the thread that asks."""

    def __init__(self, loader):
        self.loader, self.dataset, self.rng = loader, loader.dataset, loader.rng

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        order, rng = self.loader.begin_epoch()
        for batch in range(len(self)):
            yield self.loader._batch(order[batch * BATCH:(batch + 1) * BATCH], rng)


def trainer(out, ahead):
    model = Sequential(build_model("resnet8", 3, rng=4), Dropout(0.1, rng=5))
    optimiser = SGD(model.parameters(), 0.05, 0.9, 5e-4, True)
    train = Loader(coloured(STEPS * BATCH, 1), BATCH, mean=[0.4] * 3, std=[0.2] * 3, augment=True, shuffle=True,
                   rng=np.random.default_rng(0))
    return Trainer(model, optimiser, train if ahead else WhenAsked(train), Loader(coloured(12, 2), 12, mean=[0.4] * 3,
                   std=[0.2] * 3), schedule=OneCycleLR(optimiser, 0.05, EPOCHS * STEPS), out=out, progress=False)


def end(out, threads, ahead, stops=()):
    """The weights, the optimiser's tensors and the random streams after 200 steps, as bytes."""
    set_num_threads(threads)
    run = trainer(out, ahead)
    for stop in (*stops, None):
        real, at = run.optimiser.step, stop

        def step(real=real, run=run, at=at):
            real()
            if run.optimiser.steps == at:
                os.kill(os.getpid(), signal.SIGTERM)

        run.optimiser.step = step
        if stop is None:
            run.fit(EPOCHS)
        else:
            with pytest.raises(Stopped):
                run.fit(EPOCHS)
            run = trainer(out, ahead).restore()
    assert run.optimiser.steps == EPOCHS * STEPS == 200
    tensors, about = load_tensors(out / "state.safetensors")
    state = {name: array.tobytes() for name, array in tensors.items()}
    return state, about["random"], (out / "last.safetensors").read_bytes()


def test_two_hundred_steps(tmp_path, monkeypatch, every_thread):
    monkeypatch.setattr("minires.plots.draw_curves", lambda *_: None)
    expected = end(tmp_path / "whole", MOST_THREADS, ahead=True)
    assert end(tmp_path / "one", 1, ahead=True) == expected, "threads"
    assert end(tmp_path / "asked", MOST_THREADS, ahead=False) == expected, "batches made ahead"
    assert end(tmp_path / "stopped", MOST_THREADS, ahead=True, stops=(13, 75, 199)) == expected, "stops"
    assert end(tmp_path / "all", 1, ahead=False, stops=(1, 120)) == expected, "all of them"
