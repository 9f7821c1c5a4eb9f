"""<Jv, u> = <v, backward(u)> to rounding, for every layer on every host back end; what is wrong by a billionth shows."""
import numpy as np
import pytest
from test_wrong_backward import MISTAKES, wrong_backward

from minires.backends import HOST_BACKENDS, use_backend
from minires.errors import UserError
from minires.layer import Sequential
from minires.layers import BatchNorm2d, Conv2d, Dropout, GlobalAvgPool2d, Linear, MaxPool2d, ReLU
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.study import adjoint_errors, distinct_nonzero, randomise_parameters
from minires.study.certificate import certificate, render
from minires.study.forward_mode import LOSS_RULES, RULES, products, rules
from minires.study.planned import Planned
from minires.study.subjects import LAYERS, LOSSES, PLANNED

SUBJECTS = {**LAYERS, **PLANNED, **LOSSES}
CLASSES = {kind.__name__: kind for kind in [*RULES, *LOSS_RULES]}


@pytest.fixture(params=HOST_BACKENDS)
def host(request):
    with use_backend(request.param):
        yield request.param


def errors_of(name, rng):
    make, shape = SUBJECTS[name]
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    return adjoint_errors(layer, distinct_nonzero(shape, rng), rng)


@pytest.mark.parametrize("name", SUBJECTS)
def test_backward_is_the_adjoint(name, host, rng):
    errors = errors_of(name, rng)
    assert list(errors) == ["dx", *(key for key, _ in SUBJECTS[name][0](rng).named_parameters())]
    assert max(errors.values()) < 1e-13


@pytest.mark.parametrize(("planned", "training"), [(False, True), (True, True), (False, False)])
def test_whole_resnet20(planned, training, host, rng):
    network = build_model("resnet20", rng=rng).astype(np.float64).train(training)
    network = Planned(network) if planned else network
    errors = adjoint_errors(randomise_parameters(network, rng), distinct_nonzero((2, 8, 8, 3), rng), rng)
    assert len(errors) == 1 + len(network.parameters())
    assert max(errors.values()) < 1e-12


# --- wrong backward passes ---

SEEN_AT_ONCE = [case for case in MISTAKES if "overwritten" not in case[1] or case[1].startswith("overlaps")]


@pytest.mark.parametrize(("subject", "mistake", "wrong", "tensors"), SEEN_AT_ONCE,
                         ids=[f"{subject}: {mistake}" for subject, mistake, _, _ in SEEN_AT_ONCE])
def test_a_wrong_backward_is_named(subject, mistake, wrong, tensors, rng):
    """All mistakes but a gradient that overwrites, which takes two backward passes to see."""
    make, shape = SUBJECTS[subject]
    layer = randomise_parameters(make(rng).astype(np.float64), rng)
    with use_backend("reference"), wrong_backward(layer, wrong):
        errors = adjoint_errors(layer, distinct_nonzero(shape, rng), rng)
    assert {name for name, error in errors.items() if error > 1e-12} == tensors
    assert all(errors[name] > 1e-9 for name in tensors)


def test_a_billionth_is_seen_where_differences_are_blind(monkeypatch):
    right = Conv2d.backward
    monkeypatch.setattr(Conv2d, "backward", lambda self, dy: right(self, dy) * (1 + 1e-9))
    proof = certificate("Conv2d", backends=("reference",))
    assert all(row.error < row.tolerance for row in proof.rows), "differences do not see it"
    failed = [row for row in proof.rows if not row.passed]
    assert {row.tensor for row in failed} == {"dx"} and len(failed) == 5
    assert all(1e-11 < row.adjoint < 1.01e-9 for row in failed)
    assert f"FAILED Conv2d on reference: dx has adjoint error {failed[0].adjoint:.1e}, not 1e-12" in render(proof)


@pytest.mark.parametrize("change", [lambda dx: dx.reshape(-1), lambda dx: dx * np.nan, lambda dx: None])
def test_a_gradient_that_is_none_is_infinitely_wrong(change, rng):
    layer = randomise_parameters(Linear(3, 2).astype(np.float64), rng)
    with wrong_backward(layer, lambda layer, right, dy: change(right(dy))):
        errors = adjoint_errors(layer, distinct_nonzero((4, 3), rng), rng)
    assert errors["dx"] == np.inf and errors["weight"] < 1e-14


# --- wrong products ---


def _without_the_variance(layer, x, v, tangents):
    x_hat, _, s, _ = rules.batchnorm_normalised(layer, x, v)
    moved = s * (v - v.mean((0, 1, 2))) if layer.training else s * v
    return layer.weight.data * x_hat + layer.bias.data, (
        layer.weight.data * moved + tangents.get(layer.weight, 0) * x_hat + tangents.get(layer.bias, 0))


def _only_x_moves(rule):
    return lambda layer, x, v, tangents: rule(layer, x, v, {})


def _half_batch(loss, y, v, target):
    value, change = rules.cross_entropy(loss, y, v, target)
    return value, change / 2


def _without_shortcut(block, x, v, tangents):
    y, _ = products._residual(block, x, v, tangents)
    _, change = products._run(products.branch_of(block), x, v, tangents)
    return y, np.where(y > 0, change, 0)


WRONG_PRODUCTS = [
    ("BatchNorm2d", "variance's term dropped", _without_the_variance, {"dx"}),
    ("Conv2d", "weights stand still", _only_x_moves(rules.conv2d), {"weight", "bias"}),
    ("Linear", "weights stand still", _only_x_moves(rules.linear), {"weight", "bias"}),
    ("LayerNorm rows", "weights stand still", _only_x_moves(rules.layernorm), {"weight", "bias"}),
    ("ReLU", "mask of v", lambda layer, x, v, tangents: (np.maximum(x, 0), np.maximum(v, 0)), {"dx"}),
    ("MaxPool2d", "winners of v", lambda layer, x, v, tangents: (layer.forward(x), layer.forward(v)), {"dx"}),
    ("AvgPool2d", "another function", lambda layer, x, v, tangents: (2 * layer.forward(x), layer.forward(v)), {"dx"}),
    ("Identity", "another shape", lambda layer, x, v, tangents: (x[:1], v), {"dx"}),
    ("Dropout", "another draw", lambda layer, x, v, tangents: (layer.forward(x), layer.forward(v)), {"dx"}),
    ("BasicBlock", "shortcut forgotten", _without_shortcut, {"dx"}),
    ("CrossEntropyLoss", "halved", _half_batch, {"dx"}),
]


@pytest.mark.parametrize(("subject", "mistake", "wrong", "tensors"), WRONG_PRODUCTS,
                         ids=[f"{subject}: {mistake}" for subject, mistake, _, _ in WRONG_PRODUCTS])
def test_a_wrong_product_is_named(subject, mistake, wrong, tensors, rng, monkeypatch):
    kind = CLASSES[subject.split()[0]]
    monkeypatch.setitem(LOSS_RULES if kind is CrossEntropyLoss else RULES, kind, wrong)
    with use_backend("reference"):
        errors = errors_of(subject, rng)
    assert {name for name, error in errors.items() if error > 1e-12} == tensors
    assert all(errors[name] > 1e-3 for name in tensors)


# --- the check itself ---


def test_a_gradient_of_zero_is_not_divided_by_itself(rng):
    """Batch normalisation takes the bias of the convolution before it away: both sides are rounding, and that is right."""
    layers = Sequential(Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), ReLU(), GlobalAvgPool2d())
    layer = randomise_parameters(layers.astype(np.float64), rng)
    with use_backend("reference"):
        assert max(adjoint_errors(layer, distinct_nonzero((2, 6, 6, 3), rng), rng).values()) < 1e-12


def test_the_check_leaves_the_layer_as_it_was(host, rng):
    network = Sequential(Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), Dropout(0.3, rng=np.random.default_rng(5)), MaxPool2d(2))
    randomise_parameters(network.astype(np.float64), rng)
    state, draws, x = network.state_dict(), network[2].rng.bit_generator.state, distinct_nonzero((2, 6, 6, 3), rng)
    adjoint_errors(network, x.copy(), rng)
    assert all(np.array_equal(state[name], array) for name, array in network.state_dict().items())
    assert network[2].rng.bit_generator.state == draws
    assert all(not parameter.grad.any() for parameter in network.parameters())
    with pytest.raises(RuntimeError, match="needs what forward keeps"):
        network.backward(x)


def test_float32_is_refused(rng):
    with pytest.raises(UserError, match="adjoints are proved in float64, but x is float32, weight is float32"):
        adjoint_errors(Linear(2, 2, bias=False), np.ones((1, 2), np.float32), rng)


# --- the certificate ---


def test_certificate_has_a_column_of_adjoints():
    proof = certificate("BatchNorm2d")
    assert proof.passed and all(0 <= row.adjoint < 1e-13 for row in proof.rows)
    text = render(proof, details=True)
    assert text.splitlines()[0].split() == ["subject", "back", "end", "tensor", "checked", "error", "tolerance", "adjoint"]
    assert all(f"{row.adjoint:.1e}  ok" in text for row in proof.rows)
    worst = max(row.adjoint for row in proof.rows)
    assert f"with no step size: {worst:.1e} at most" in text
    assert f"{max(row.adjoint for row in proof.rows if row.subject == 'BatchNorm2d'):.1e}" in render(proof)


def test_certificate_without_adjoints():
    proof = certificate("Linear", backends=("reference",), adjoint=False)
    assert proof.passed and all(row.adjoint is None for row in proof.rows)
    assert "adjoint" not in render(proof)


def test_a_failure_in_both_says_both(monkeypatch):
    right = Linear.backward
    monkeypatch.setattr(Linear, "backward", lambda self, dy: right(self, dy) * 1.01)
    text = render(certificate("Linear", backends=("reference",)))
    assert "FAILED Linear on reference: dx has relative error 1.0e-02" in text
    assert "and has adjoint error" in text
