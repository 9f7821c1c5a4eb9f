"""What is not finite stops a run before it is saved, and the layer and tensor where it appeared are named."""
import json

import numpy as np
import pytest
from test_training import assert_same_tensors, coloured, loader, make_trainer

from minires import SGD
from minires.backends import use_backend
from minires.errors import UserError
from minires.files import load_tensors
from minires.layer import Layer, Sequential
from minires.layers import BatchNorm2d, Flatten, Linear, ReLU
from minires.losses import CrossEntropyLoss
from minires.training import Trainer
from minires.training.guards import norm, where_not_finite
from minires.training.metrics import write_metrics


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nothing to compile, and no picture at the end."""
    monkeypatch.setattr("minires.plots.draw_curves", lambda *_: None)
    with use_backend("reference"):
        yield


class Bad(Layer):
    """Passes on, until in its call number `at` of `method` it makes one number not finite."""

    def __init__(self, method="forward", at=3, value=np.nan):
        self.method, self.at, self.value, self.calls = method, at, value, 0

    def _spoil(self, method, array):
        self.calls += method == self.method
        if method == self.method and self.calls >= self.at:
            array = array.copy()
            array.flat[0] = self.value
        return array

    def forward(self, x):
        return self._spoil("forward", x)

    def backward(self, dy):
        return self._spoil("backward", dy)


def trainer_with(layer, out, **options):
    trainer = make_trainer(out, **options)
    setattr(trainer.model, "2", Sequential(ReLU(), layer))
    return trainer


def saved(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".safetensors"}


@pytest.mark.parametrize(("layer", "says"), [
    (Bad(), r"loss became nan in epoch 2, at its step 2 .*appeared first in the output of 2.1 \(Bad\)"),
    (Bad(value=np.inf), r"output of 2.1 \(Bad\)"),
    (Bad("backward"), r"gradient became inf or nan in epoch 2, at its step 2 .*appeared first in the dx of 2.1 \(Bad\)"),
])
def test_the_layer_and_tensor_are_named_and_nothing_is_saved(tmp_path, layer, says):
    layer.calls, layer.at = 0, 999
    trainer = trainer_with(layer, tmp_path, save_every="0.000001s")
    trainer.fit(1)
    files, seen = [], layer.calls
    layer.at = seen + 2
    real = trainer._save_state
    trainer._save_state = lambda folder: (real(folder), files.append(saved(tmp_path)))
    with pytest.raises(UserError, match=says) as error:
        trainer.fit(2)
    assert "lower learning rate" in str(error.value)
    assert f"{tmp_path / 'state.safetensors'} is of the last save" in str(error.value)
    assert len(files) == 1 and saved(tmp_path) == files[0]  # of step 1, which was fine


def test_an_input_that_held_it_already_is_told_and_the_learning_rate_is_not_blamed(tmp_path):
    trainer = make_trainer(tmp_path)
    batches = [(x.copy(), target) for x, target in trainer.train]
    batches[2][0][5, 1, 1, 0] = np.nan
    trainer.train = batches
    says = r"at its step 3 .*the input held it already: 1 of the batch's 16 images, the first at place 5; look at the data"
    with pytest.raises(UserError, match=says) as error:
        trainer.fit(1)
    assert "lower" not in str(error.value)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_update_that_overflows_at_the_end_of_an_epoch_replaces_no_file(tmp_path):
    rng = np.random.default_rng(0)
    data = [(rng.standard_normal((8, 4)).astype("f4"), rng.integers(0, 3, 8))]
    model = Sequential(Linear(4, 3))
    trainer = Trainer(model, SGD(model.parameters(), 0.1), data, data, out=tmp_path, progress=False)
    trainer.fit(1)
    files = saved(tmp_path)
    trainer.optimiser.lr = 1e39
    says = r"0\.weight of the model is not finite after step 1 of epoch 2 with learning rate 1e\+39"
    with pytest.raises(UserError, match=says):
        trainer.fit(2)
    assert saved(tmp_path) == files
    for name in files:
        assert all(np.isfinite(array).all() for array in load_tensors(tmp_path / name)[0].values())
    json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda word: pytest.fail(word))


def test_statistics_are_looked_at_before_they_are_saved(tmp_path):
    trainer = make_trainer(tmp_path)
    real = trainer.optimiser.step
    trainer.optimiser.step = lambda: (real(), trainer.model[1].running_var.fill(np.inf))
    with pytest.raises(UserError, match=r"1\.running_var of the model is not finite"):
        trainer.fit(1)
    assert saved(tmp_path).keys() == {"state.safetensors"}  # of before step 1
    assert make_trainer(tmp_path).restore().fit(1)


def test_a_test_set_that_is_not_finite_is_told(tmp_path):
    trainer = make_trainer(tmp_path)
    x, target = next(iter(trainer.test))
    x = x.copy()
    x[0, 0, 0, 0] = np.nan
    trainer.test = [(x, target)]
    with pytest.raises(UserError, match=r"the test loss became nan in epoch 1.*input held it already"):
        trainer.fit(1)


def test_skipping_counts_and_leaves_the_weights_and_statistics_alone(tmp_path):
    def batches(bad):
        trainer = make_trainer()
        found = [(x.copy(), target) for x, target in trainer.train]
        if bad:
            spoilt = found[1][0].copy()
            spoilt[0, 0, 0, 0] = np.nan
            found.insert(1, (spoilt, found[1][1]))
        return found

    runs = {}
    for bad in (False, True):
        trainer = make_trainer(tmp_path / str(bad), on_nonfinite="skip")
        trainer.train, trainer.schedule = batches(bad), None
        runs[bad] = trainer.fit(1)[0], trainer.model.state_dict()
    assert (runs[False][0]["skipped"], runs[True][0]["skipped"]) == (0, 1)
    assert_same_tensors(runs[False][1], runs[True][1])
    trainer = make_trainer(on_nonfinite="skip")
    trainer.train = [(x * np.nan, target) for x, target in batches(False)]
    with pytest.raises(UserError, match="every step of epoch 1 was skipped"):
        trainer.fit(1)
    with pytest.raises(UserError, match="unknown on_nonfinite 'ignore'"):
        make_trainer(on_nonfinite="ignore")


def test_repeating_a_step_names_what_came_first_and_changes_nothing():
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((4, 2, 2, 3)).astype(np.float32), np.array([0, 1, 2, 0])
    model = Sequential(BatchNorm2d(3), Flatten(), Linear(12, 3, rng=rng))
    before = model.state_dict()
    assert "so is the step" in where_not_finite(model, CrossEntropyLoss(), x, target)
    assert_same_tensors(before, model.state_dict())
    model[2].weight.data[0, 0] = 3e38
    model[2].weight.data[1, 0] = 3e38
    assert "appeared first in the output of 2 (Linear)" in where_not_finite(model, CrossEntropyLoss(), x * 9, target)
    model[2].weight.data[0, 0] = np.nan
    assert "2.weight held it before the step" in where_not_finite(model, CrossEntropyLoss(), x, target)


def test_norms():
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in ((3, 4, 5), (7,), (), (100, 200))]
    assert norm(arrays) == pytest.approx(np.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays)), rel=1e-6)
    assert norm([np.full(4, 1e30, np.float32)]) == pytest.approx(2e30)  # whose squares overflow in float32
    assert np.isinf(norm([np.array([np.inf], np.float32)])) and np.isnan(norm([np.array([np.nan], np.float32)]))


def test_gradient_norm_and_update_ratio_are_what_they_say():
    trainer = make_trainer()
    trainer.schedule, norms, ratios = None, [], []
    real = trainer.optimiser.step

    def update():
        before = [parameter.data.copy() for parameter in trainer.model.parameters()]
        norms.append(np.sqrt(sum((parameter.grad ** 2).sum() for parameter in trainer.model.parameters())))
        real()
        change = sum(((parameter.data - old) ** 2).sum() for parameter, old in
                     zip(trainer.model.parameters(), before, strict=True))
        ratios.append(np.sqrt(change / sum((old ** 2).sum() for old in before)))

    trainer.optimiser.step = update
    row = trainer.fit(1)[0]
    assert row["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert row["update_ratio"] == pytest.approx(ratios[0], rel=1e-5)


def test_metrics_stay_json(tmp_path):
    write_metrics(tmp_path / "m.jsonl", [{"epoch": 1, "x": float("nan"), "y": np.float64(2.5), "z": float("inf")}])
    assert json.loads((tmp_path / "m.jsonl").read_text()) == {"epoch": 1, "x": None, "y": 2.5, "z": None}


def test_training_that_ends_no_better_than_a_guess_says_so():
    trainer = make_trainer()
    trainer.optimiser.lr, trainer.schedule, trainer.train = 0.0, None, loader(coloured(90, 1))
    trainer.model[5].weight.data[:] = 0
    trainer.model[5].bias.data[:] = (1, 0, 0)
    seen = np.bincount(trainer.test.dataset.labels)
    trainer.model[5].bias.data[:] = np.arange(3) == seen.argmax()
    trainer.fit(1)
    assert f"no better than always naming the commonest class ({seen.max() / 60:.2%})" in trainer.notes[0]
    good = make_trainer()
    good.fit(3)
    assert good.notes == []
