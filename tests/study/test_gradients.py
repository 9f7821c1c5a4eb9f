"""Every layer's backward is the derivative of its forward; the checker and the certificate say so honestly."""
import numpy as np
import pytest

import minires.layers
from minires.backends import use_backend
from minires.errors import UserError
from minires.layer import Layer, Sequential, listening
from minires.layers import BatchNorm2d, Conv2d, Dropout, Linear, ReLU
from minires.models import build_model
from minires.study import (
    GradientError,
    adjoint_errors,
    check_gradients,
    distinct_nonzero,
    measure_gradients,
    randomise_parameters,
)
from minires.study.certificate import certificate, render
from minires.study.subjects import BLOCKS, LAYERS, LOSSES, PLANNED

SUBJECTS = {**LAYERS, **BLOCKS, **PLANNED, **LOSSES}


def test_every_layer_has_a_row():
    assert {name.split()[0] for name in LAYERS} == set(minires.layers.__all__)


@pytest.mark.parametrize("name", SUBJECTS)
def test_backward_is_the_derivative(name, backend, rng):
    make, shape = SUBJECTS[name]
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    complete, sample = (20, 6) if backend == "cuda" else (1000, 50)  # slow without a GPU, where a sample and a slope do
    report = check_gradients(layer, distinct_nonzero(shape, rng), rng, complete=complete, sample=sample)
    assert [check.tensor for check in report.tensors] == ["dx", *(name for name, _ in layer.named_parameters())]
    assert all(check.entries + check.kinks == check.size or check.entries == sample < complete < check.size
               for check in report.tensors)
    assert report.error < 1e-7


@pytest.mark.parametrize(("model", "name"), [("resnet20", "reference"), ("resnet20", "cpu"), ("plain20", "reference")])
def test_whole_network(model, name, rng):
    """On the host: that a network on CUDA has PyTorch's gradients is test_torch_parity's."""
    network = randomise_parameters(build_model(model, shortcut="B" if model == "resnet20" else None).astype(np.float64), rng)
    with use_backend(name):
        report = check_gradients(network, distinct_nonzero((2, 8, 8, 3), rng), rng, 1e-5, complete=0, sample=2)
    assert len(report.tensors) == 1 + len(network.parameters())
    assert all(check.entries == 2 for check in report.tensors)


# --- the checker itself ---


class Broken(Layer):
    """A layer from two functions, y = f(x) and dx = df(x, dy)."""

    def __init__(self, f, df):
        self.f, self.df = f, df

    def forward(self, x):
        self._save(x)
        return self.f(x)

    def backward(self, dy):
        return self.df(*self._saved(), dy)


@pytest.mark.parametrize(("f", "df", "reason"), [
    (np.square, lambda x, dy: 2 * x * dy * 1.0001, r"relative error 1\.0e-04"),
    (np.square, lambda x, dy: np.zeros_like(x), r"relative error 1\.0e\+00"),
    (np.square, lambda x, dy: 2 * x * dy * np.nan, "not finite"),
    (np.square, lambda x, dy: (2 * x * dy).astype(np.float32), "float32, expected"),
    (np.square, lambda x, dy: (2 * x * dy)[:1], r"is \(1, 5\)"),
    (np.square, lambda x, dy: 2 * x * np.add(dy, 1, out=dy), "change of dy"),
    (np.square, lambda x, dy: np.multiply(x, 2 * dy, out=x), "change of x"),
    (np.zeros_like, lambda x, dy: np.zeros_like(x), "zero everywhere"),
    (lambda x: x / 0.0 if x.size == 0 else x * np.inf, lambda x, dy: dy, "not finite"),
    (np.ceil, lambda x, dy: 0 * dy + 1, "relative error"),
])
def test_reasons_for_failure(f, df, reason, rng):
    with pytest.raises(GradientError, match=rf"Broken.backward: dx .*{reason}") as caught:
        check_gradients(Broken(f, df), distinct_nonzero((4, 5), rng), rng)
    assert [check.tensor for check in caught.value.report.tensors if not check.passed] == ["dx"]


def test_an_error_is_measured_anew_for_each_tensor(rng):
    layer = randomise_parameters(Linear(3, 2).astype(np.float64), rng)
    x = distinct_nonzero((4, 3), rng)
    right = check_gradients(layer, x, rng)
    with listening([layer], lambda layer, method, dy, dx: dx * 1.5 if method == "backward" else None):
        wrong = measure_gradients(layer, x, rng)
    assert right.error < 1e-9
    assert {check.tensor: check.passed for check in wrong.tensors} == {"dx": False, "weight": True, "bias": True}
    assert 0.4 < wrong.error < 0.6


@pytest.mark.parametrize("wrong_place", [0, 4321])
def test_one_wrong_entry_of_a_sampled_tensor_is_felt(wrong_place, rng):
    def df(x, dy):
        dx = 2 * x * dy
        dx.flat[wrong_place] += 0.5
        return dx
    with pytest.raises(GradientError, match="dx has relative error"):
        check_gradients(Broken(np.square, df), distinct_nonzero((100, 50), rng), rng, complete=0, sample=5)


def test_a_constant_loss_does_not_hide_a_wrong_batchnorm(rng):
    """sum(y) does not depend on x after batch normalisation, so dx = 0 would pass with dy = 1."""
    layer = randomise_parameters(BatchNorm2d(3).astype(np.float64), rng)
    wrong = listening([layer], lambda layer, method, dy, dx: dx * 0 if method == "backward" else None)
    with wrong, pytest.raises(GradientError, match="dx has relative error"):
        check_gradients(layer, distinct_nonzero((4, 5, 3, 3), rng), rng)


def test_kinks_are_resolved_or_counted(rng):
    x = distinct_nonzero((10, 10), rng)
    x.flat[0] = 3e-6  # inside the first step, outside the second
    report = check_gradients(ReLU(), x, rng)
    assert (report.tensors[0].entries, report.tensors[0].kinks) == (100, 0)
    x.flat[0] = 3e-8  # inside the first three: that entry has no numerical derivative
    report = check_gradients(ReLU(), x, rng)
    assert (report.tensors[0].entries, report.tensors[0].kinks) == (99, 1)
    x.flat[:10] = 3e-8
    with pytest.raises(GradientError, match="dx has no numerical derivative at 7 of"):
        check_gradients(ReLU(), x, rng)


def test_the_check_leaves_the_layer_as_it_was(rng):
    network = Sequential(Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), ReLU(), Dropout(0.3, rng=np.random.default_rng(5)))
    randomise_parameters(network.astype(np.float64), rng)
    state, x = network.state_dict(), distinct_nonzero((2, 5, 5, 3), rng)
    draws, before = network[3].rng.bit_generator.state, x.copy()
    check_gradients(network, x, rng, complete=20, sample=5)
    assert all(np.array_equal(state[name], array) for name, array in network.state_dict().items())
    assert network[3].rng.bit_generator.state == draws
    assert np.array_equal(x, before)
    assert all(not parameter.grad.any() for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="needs what forward keeps"):
        network.backward(x)


def test_frozen_parameters_are_left_out(rng):
    """They have no gradient to prove, by differences or by adjoints; dx and the others are proved."""
    layer, x = Sequential(Linear(4, 3, rng=rng), Linear(3, 2, rng=rng)).astype(np.float64), rng.standard_normal((5, 4))
    for parameter in (layer[0].weight, layer[1].weight, layer[1].bias):
        parameter.frozen = True
    report = check_gradients(layer, x, rng)
    assert [check.tensor for check in report.tensors] == [*adjoint_errors(layer, x, rng)] == ["dx", "0.bias"]
    layer[0].bias.accumulate = lambda gradient: None
    with pytest.raises(GradientError, match=r"0\.bias has relative error"):
        check_gradients(layer, x, rng)


def test_float32_is_refused(rng):
    with pytest.raises(UserError, match=r"proved in float64, but x is float32, weight is float32"):
        check_gradients(Linear(2, 2, bias=False), np.ones((1, 2), np.float32), rng)


def test_distinct_nonzero(rng):
    values = np.sort(np.abs(distinct_nonzero((7, 11, 3), rng)).ravel())
    assert values[0] >= 0.1 and values[-1] <= 2
    assert np.diff(values).min() >= 0.9 / values.size


def test_randomise_parameters_reaches_every_tensor(rng):
    network = build_model("resnet20", shortcut="B", rng=rng)
    before = network.state_dict()
    after = randomise_parameters(network, rng).state_dict()
    for name, array in after.items():
        assert (array != before[name]).mean() > 0.99, name
        assert array.dtype == np.float32 and np.unique(array).size > array.size * 0.9, name
        if name.endswith("running_var"):
            assert (array > 0).all()


# --- the certificate ---


def test_certificate_of_one_layer():
    ticks = []
    proof = certificate("BatchNorm2d", rng=np.random.default_rng(3), progress=lambda *tick: ticks.append(tick))
    assert proof.passed and len(proof.rows) == 18  # three cases, three tensors, two back ends
    assert [tick[0] for tick in ticks] == list(range(1, 19)) and {tick[1] for tick in ticks} == {18}
    text = render(proof, details=True)
    for row in proof.rows:
        assert row.backend in ("reference", "cpu") and row.entries == row.size and row.error < row.tolerance == 1e-6
        assert f"{row.error:.1e}" in text
    assert text.count(" ok") == 18 and "every gradient is the derivative: 18 tensors" in text
    assert render(proof).count(" ok") == 6


def test_certificate_shows_a_failure(monkeypatch):
    right = Linear.backward
    monkeypatch.setattr(Linear, "backward", lambda self, dy: right(self, dy) * 1.01)
    proof = certificate("Linear", backends=("reference",))
    assert not proof.passed
    assert {row.tensor for row in proof.rows if not row.passed} == {"dx"}
    text = render(proof)
    assert "FAILED Linear on reference: dx has relative error 1.0e-02" in text
    assert "2 of 5 gradients are wrong" in text


def test_certificate_of_a_model_names_its_layers_and_every_tensor(monkeypatch):
    monkeypatch.setattr("minires.study.certificate.NETWORK_COMPLETE", 0)
    monkeypatch.setattr("minires.study.certificate.NETWORK_SAMPLE", 1)
    monkeypatch.setattr("minires.study.certificate.PLANNED_SAMPLE", 1)
    proof = certificate("resnet20", backends=("reference",))
    subjects = {row.subject for row in proof.rows}
    assert {"Conv2d", "BatchNorm2d evaluation", "BasicBlock shortcut A", "CrossEntropyLoss", "resnet20"} <= subjects
    assert not {"Dropout", "LayerNorm rows", "Bottleneck"} & subjects
    for subject in ("resnet20", "resnet20 planned"):
        whole = [row for row in proof.rows if row.subject == subject]
        assert [row.tensor for row in whole] == ["dx", *(name for name, _ in build_model("resnet20").named_parameters())]
        assert all(row.passed and row.tolerance == 1e-5 and row.entries == 1 for row in whole)


def test_certificate_layers_holds_every_layer_and_loss():
    from minires.study.certificate import _subjects
    assert list(_subjects("layers")) == list(SUBJECTS)
    assert list(_subjects(None)) == [*SUBJECTS, "resnet20", "resnet20 planned"]


def test_unknown_target_and_backend():
    with pytest.raises(UserError, match=r"unknown target 'Conv3d': choose layers, one of Conv2d, .*resnet20"):
        certificate("Conv3d")
    with pytest.raises(UserError, match="unknown back end 'gpu'"):
        certificate("ReLU", backends=("gpu",))


def test_the_check_needs_no_generator(rng):
    """Seed 0 when none is given, so that a check says the same again; a seed does as well."""
    x, layer = distinct_nonzero((3, 4), rng), Linear(4, 2, rng=rng).astype(np.float64)
    errors = [check_gradients(layer, x, *given).error for given in ((), (0,), (np.random.default_rng(0),))]
    assert errors[0] == errors[1] == errors[2] < 1e-6
    assert adjoint_errors(layer, x) == adjoint_errors(layer, x, 0)
