"""Training techniques: clipping, averages, accumulation, groups and freezing, early stopping, augmentations."""
import os
import signal

import numpy as np
import pytest
from conftest import relative_error

import minires
from minires.data import Dataset, Loader
from minires.data.augmentations import ColourJitter, CropAndFlip, Cutout, MixUp, Noise, RandomErasing
from minires.errors import UserError
from minires.layer import Parameter, Sequential
from minires.layers import BatchNorm2d, Conv2d, GlobalAvgPool2d, LayerNorm, Linear, ReLU
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.optim import SGD, AdamW, prune, set_parameters
from minires.training import Trainer
from minires.training.stopping import Stopped

SMALL = {"blocks": (1, 1), "channels": (4, 8)}


def parameters(rng, shapes=((3, 4), (5,))):
    made = [Parameter(rng.standard_normal(shape)) for shape in shapes]
    for parameter in made:
        parameter.grad[...] = rng.standard_normal(parameter.data.shape)
    return made


# --- the optimiser ---


@pytest.mark.parametrize("max_norm", [0.1, 1e3])
def test_clipping_is_pytorchs(max_norm, backend, rng):
    torch = pytest.importorskip("torch")
    ours = parameters(rng)
    theirs = [torch.nn.Parameter(torch.from_numpy(parameter.data.copy())) for parameter in ours]
    for mine, other in zip(ours, theirs, strict=True):
        other.grad = torch.from_numpy(mine.grad.copy())
    before = [parameter.grad.copy() for parameter in ours]
    torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    torch.optim.SGD(theirs, 0.5).step()
    SGD(ours, 0.5, max_norm=max_norm).step()
    for mine, other, grad in zip(ours, theirs, before, strict=True):
        assert relative_error(mine.data, other.detach().numpy()) < 1e-12
        assert np.array_equal(mine.grad, grad), "read, not changed"


def test_the_average_by_hand(backend, rng):
    (parameter,) = parameters(rng, ((3,),))
    optimiser, mean = SGD([parameter], 0.1, average=0.3), parameter.data.copy()
    for t in range(1, 5):
        parameter.grad[...] = rng.standard_normal(3)
        optimiser.step()
        keep = min(0.3, (1 + t) / (10 + t))
        mean = keep * mean + (1 - keep) * parameter.data
    own = parameter.data.copy()
    with optimiser.averaged():
        np.testing.assert_allclose(parameter.data, mean, rtol=1e-14)
    assert np.array_equal(parameter.data, own) and not np.allclose(own, mean)
    with SGD([parameter], 0.1).averaged():
        assert np.array_equal(parameter.data, own)


@pytest.mark.parametrize("make", [lambda p, **more: SGD(p, 0.05, 0.9, 1e-3, **more),
                                  lambda p, **more: AdamW(p, 1e-2, **more)])
def test_accumulated_steps_are_those_of_the_whole_batch(make, rng):
    """Where nothing depends on the batch, four quarters and the whole make the same weights."""
    x, target = rng.standard_normal((8, 8, 8, 3)), rng.integers(0, 10, 8)
    models = [build_model("resnet", norm="layer", rng=0, **SMALL).astype(np.float64) for _ in range(2)]
    steps = [minires.compile(model, CrossEntropyLoss()) for model in models]
    whole, quarters = make(models[0].parameters()), make(models[1].parameters(), accumulate=4)
    for turn in range(3):
        steps[0](x, target)
        whole.step()
        for part in range(4):
            if (turn, part) == (1, 2):  # saved and loaded with two quarters waiting
                state = quarters.state_dict()
                quarters = make(models[1].parameters(), accumulate=4)
                quarters.load_state_dict(state)
            steps[1](x[2 * part:2 * part + 2], target[2 * part:2 * part + 2])
            quarters.step()
    assert whole.steps == quarters.steps == 3
    for mine, other in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert relative_error(mine.data, other.data) < 1e-9


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_groups_are_pytorchs(name, backend, rng):
    torch = pytest.importorskip("torch")
    model = Sequential(Linear(4, 3, rng=rng), Linear(3, 2, rng=rng)).astype(np.float64)
    assert set_parameters(model, "1.*", lr_factor=0.1, decay_factor=3) == ["1.weight", "1.bias"]
    theirs = [torch.nn.Parameter(torch.from_numpy(parameter.data.copy())) for parameter in model.parameters()]
    groups = [{"params": theirs[:2]}, {"params": theirs[2:], "lr": 0.02, "weight_decay": 0.03}]
    ours = model.parameters()
    optimiser = SGD(ours, 0.2, 0.9, 0.01) if name == "SGD" else AdamW(ours, 0.2, weight_decay=0.01)
    other = (torch.optim.SGD(groups, 0.2, 0.9, 0, 0.01) if name == "SGD"
             else torch.optim.AdamW(groups, 0.2, weight_decay=0.01))
    for _ in range(3):
        for mine, tensor in zip(model.parameters(), theirs, strict=True):
            mine.grad[...] = rng.standard_normal(mine.data.shape)
            tensor.grad = torch.from_numpy(mine.grad.copy())
        optimiser.step()
        other.step()
    for mine, tensor in zip(model.parameters(), theirs, strict=True):
        assert relative_error(mine.data, tensor.detach().numpy()) < 1e-12


@pytest.mark.parametrize(("options", "reason"), [
    ({"max_norm": 0}, "max_norm must be a number above 0"),
    ({"average": 1.0}, "average must be a number above 0 and below 1"),
    ({"accumulate": 0}, "accumulate must be an int of at least 1")])
def test_wrong_options(options, reason, rng):
    with pytest.raises(UserError, match=reason):
        SGD(parameters(rng), 0.1, **options)


# --- pruning ---


def test_the_smallest_weights_are_pruned_and_stay_so(rng):
    model = build_model("resnet", rng=rng, **SMALL)
    weights = [parameter for parameter in model.parameters() if parameter.data.ndim > 1]
    magnitudes = np.sort(np.concatenate([np.abs(weight.data).ravel() for weight in weights]))
    left, count = prune(model, 0.5)
    assert count == magnitudes.size and left == count - round(count / 2)
    found = np.concatenate([np.abs(weight.data).ravel() for weight in weights])
    assert (found == 0).sum() == count - left and found[found > 0].min() >= magnitudes[count - left]
    zeros, step = [weight.data == 0 for weight in weights], minires.compile(model, CrossEntropyLoss())
    optimiser = SGD(model.parameters(), 0.1, 0.9, average=0.9)
    x, target = rng.standard_normal((4, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 4)
    for _ in range(3):
        step(x, target)
        optimiser.step()
    with optimiser.averaged():
        assert all(np.array_equal(weight.data == 0, zero) for weight, zero in zip(weights, zeros, strict=True))
    assert all(np.array_equal(weight.data == 0, zero) for weight, zero in zip(weights, zeros, strict=True))
    again = build_model("resnet", rng=5, **SMALL).load_state_dict(model.state_dict())
    prune(again, 0.5)
    assert all(np.array_equal(again_.mask == 0, zero) for again_, zero in
               zip([p for p in again.parameters() if p.data.ndim > 1], zeros, strict=True))
    model.astype(np.float64)
    assert all(weight.mask.dtype == np.float64 for weight in weights)


@pytest.mark.parametrize(("arguments", "reason"), [((1.0,), "fraction must be a number at least 0 and below 1"),
                                                   ((0.5, "bn1.*"), "no weight's name fits")])
def test_what_cannot_be_pruned(arguments, reason):
    with pytest.raises(UserError, match=reason):
        prune(build_model("resnet8"), *arguments)


# --- freezing ---


def test_what_is_frozen_costs_nothing_and_stays(rng):
    """All but the head: the plan has no backward convolution left; and a thaw is noticed."""
    model = build_model("resnet", rng=rng, **SMALL)
    names = set_parameters(model, "*", frozen=True)
    assert names == [name for name, _ in model.named_parameters()]
    set_parameters(model, "fc.*", frozen=False)
    step, optimiser = minires.compile(model, CrossEntropyLoss()), SGD(model.parameters(), 0.1, 0.9, 1e-2)
    x, target = rng.standard_normal((4, 8, 8, 3)).astype(np.float32), rng.integers(0, 10, 4)
    before = model.state_dict()
    for _ in range(2):
        step(x, target)
        optimiser.step()
    operators = [each.operator for each in step.plan(x.shape).steps]
    assert not [name for name in operators if "gradient" in name or ("norm" in name and "backward" in name)], operators
    moved = [name for name, array in model.state_dict().items() if not np.array_equal(array, before[name])]
    assert moved == ["fc.weight", "fc.bias"]  # no running statistic either
    set_parameters(model, "layer2.*", frozen=False)
    step(x, target)
    optimiser.step()
    moved = {name.split(".")[0] for name, array in model.state_dict().items() if not np.array_equal(array, before[name])}
    assert moved == {"fc", "layer2"}


def test_frozen_gradients_are_zero_and_the_rest_is_as_before(backend, rng):
    layers = Sequential(Conv2d(3, 4, 3, rng=rng), BatchNorm2d(4), ReLU(), LayerNorm(4), GlobalAvgPool2d(),
                        Linear(4, 2, rng=rng))
    model, x, dy = layers.astype(np.float64), rng.standard_normal((2, 5, 5, 3)), rng.standard_normal((2, 2))
    model.forward(x)
    expected = model.backward(dy)
    grads = {name: parameter.grad.copy() for name, parameter in model.named_parameters()}
    model.zero_grad()
    for pattern in ("0.*", "5.*", "3.weight"):
        set_parameters(model, pattern, frozen=True)
    model.forward(x)
    assert relative_error(model.backward(dy), expected) < 1e-12
    for name, parameter in model.named_parameters():
        if name in ("0.weight", "0.bias", "5.weight", "5.bias", "3.weight"):
            assert not parameter.grad.any()
        else:
            assert relative_error(parameter.grad, grads[name]) < 1e-12


def test_a_pattern_that_fits_nothing_is_refused(rng):
    with pytest.raises(UserError, match=r"no parameter's name fits 'head\.\*': expected a pattern for names such as conv1"):
        set_parameters(build_model("resnet8"), "head.*", frozen=True)
    with pytest.raises(UserError, match="lr_factor must be a number at least 0, got -1"):
        set_parameters(build_model("resnet8"), "*", lr_factor=-1)


# --- the trainer ---


def pictures(rng, n=24):
    return Dataset(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 4, n), ("a", "b", "c", "d"))


def trainer(rng, out=None, **options):
    data, model = pictures(np.random.default_rng(0)), build_model("resnet", 4, rng=0, **SMALL)
    loader = Loader(data, 8, mean=[0.5] * 3, std=[0.3] * 3, shuffle=True, rng=np.random.default_rng(1))
    plain = Loader(data, 8, mean=[0.5] * 3, std=[0.3] * 3)
    optimiser = SGD(model.parameters(), 0.05, 0.9, **options.pop("optimiser", {}))
    return Trainer(model, optimiser, loader, plain, validation=plain, out=out, progress=False, **options)


def test_early_stopping_counts_from_the_best_epoch(rng, monkeypatch, tmp_path):
    accuracies = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    made = trainer(rng, tmp_path / "run", patience=3)
    real = minires.training.trainer.evaluate

    class Told:
        def __init__(self, score, accuracy):
            self.loss, self.accuracy = score.loss, accuracy

    def evaluate(model, loss, loader, *rest):
        score = real(model, loss, loader, *rest)
        return Told(score, next(accuracies)) if evaluate.turn() else score

    turns = iter(range(100))
    evaluate.turn = lambda: next(turns) % 2 == 1  # test and validation are one loader here
    monkeypatch.setattr("minires.training.trainer.evaluate", evaluate)
    rows = made.fit(20)
    assert [row["validation_accuracy"] for row in rows] == [0.1, 0.3, 0.2, 0.3, 0.25]
    again = trainer(rng, tmp_path / "run", patience=3).restore()
    assert len(again.fit(20)) == 5, "a run that had stopped stays so"
    with pytest.raises(UserError, match="patience 0 waits for the validation accuracy"):
        trainer(rng, patience=0)


def test_the_average_is_evaluated_and_saved_and_goes_on_after_a_restore(rng, tmp_path):
    from minires.files import load_tensors

    options = {"optimiser": {"average": 0.9}}
    straight = trainer(rng, tmp_path / "straight", **options)
    rows = straight.fit(3)
    trainer(rng, tmp_path / "run", **options).fit(1)
    resumed = trainer(rng, tmp_path / "run", **options).restore()
    assert [row["test_loss"] for row in resumed.fit(3)] == [row["test_loss"] for row in rows]
    saved, _ = load_tensors(tmp_path / "run" / "last.safetensors")
    assert not np.array_equal(saved["fc.weight"], resumed.model.fc.weight.data)
    with resumed.optimiser.averaged():
        assert np.array_equal(saved["fc.weight"], resumed.model.fc.weight.data)
        score = minires.training.evaluate(resumed.model, CrossEntropyLoss(), resumed.test)
    assert score.loss == pytest.approx(rows[-1]["test_loss"])


@pytest.mark.parametrize("asked", ["in a step", "in an evaluation"])
def test_a_stopped_run_goes_on_with_averages_accumulation_and_augmentations(asked, tmp_path):
    """Asked to stop while the average stands in the weights' place the state has the optimiser's own all the same."""
    def made(out):
        result = trainer(None, out, optimiser={"average": 0.9, "accumulate": 2, "max_norm": 1})
        result.train = Loader(result.train.dataset, 8, mean=[0.5] * 3, std=[0.3] * 3, shuffle=True,
                              augment=[CropAndFlip(1), Noise(0.1), MixUp()], rng=np.random.default_rng(1))
        return result

    made(tmp_path / "straight").fit(2)
    stopped, begun = made(tmp_path / "run"), []

    def ask(function):
        def called(*arguments):
            begun.append(function)
            if len(begun) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*arguments)
        return called

    if asked == "in a step":
        stopped.optimiser.step = ask(stopped.optimiser.step)
    else:
        stopped._until_asked = ask(stopped._until_asked)
    with pytest.raises(Stopped):
        stopped.fit(2)
    again = made(tmp_path / "run").restore()
    assert again.notes == []
    again.fit(2)
    for name in ("last.safetensors", "best.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


# --- augmentations ---

AUGMENTATIONS = {"crop": CropAndFlip(2), "cutout": Cutout(4), "erasing": RandomErasing(1.0), "noise": Noise(0.1),
                 "jitter": ColourJitter(0.4, 0.4, 0.4)}


@pytest.mark.parametrize("shape", [(6, 9, 7, 3), (5, 4, 4, 1)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_give_new_images_of_the_same_kind(name, shape, rng):
    images = rng.integers(1, 255, shape, np.uint8)
    before = images.copy()
    y, again = (AUGMENTATIONS[name](images, np.random.default_rng(3)) for _ in range(2))
    assert y.shape == shape and y.dtype == np.uint8 and np.array_equal(y, again)
    assert np.array_equal(images, before) and not np.array_equal(y, images)


def test_cutout_and_erasing_change_a_rectangle(rng):
    images = np.full((200, 10, 12, 3), 7, np.uint8)
    cut = Cutout(4)(images, rng)[..., 0] == 0
    assert cut.any((1, 2)).all() and cut.sum((1, 2)).max() == 16 and cut.sum((1, 2)).min() < 16  # some reach over the border
    erased = (RandomErasing(1.0, (0.2, 0.3))(images, rng) != 7).any(3)
    rows, columns = erased.any(2).sum(1), erased.any(1).sum(1)
    assert (erased.sum((1, 2)) == rows * columns).mean() > 0.9  # a random pixel is 7 in all channels once in 16 million
    assert 0.15 < (rows * columns).mean() / 120 < 0.35
    kept = (RandomErasing(0.25)(images, rng) != 7).any((1, 2, 3)).mean()
    assert 0.1 < kept < 0.4


def test_noise_and_jitter_by_their_formulas(rng):
    images = np.full((50, 16, 16, 3), 128, np.uint8)
    noisy = Noise(0.05)(images, rng).astype(float) - 128
    assert abs(noisy.std() / (255 * 0.05) - 1) < 0.02 and abs(noisy.mean()) < 0.2
    coloured = rng.integers(60, 120, (4, 6, 6, 3), np.uint8)
    assert np.array_equal(ColourJitter()(coloured, rng), coloured)
    factors = np.random.default_rng(5).uniform(0.5, 1.5, (4, 1, 1, 1))
    bright = ColourJitter(brightness=0.5)(coloured, np.random.default_rng(5))
    assert np.abs(bright - np.clip(coloured * factors, 0, 255)).max() <= 1
    grey = coloured.mean(3, keepdims=True).repeat(3, 3).astype(np.uint8)
    assert np.abs(ColourJitter(saturation=1.0)(grey, rng).astype(int) - grey).max() <= 1  # grey has none


def test_a_list_is_gone_through_in_order_and_true_is_crop_and_flip(rng):
    data = pictures(rng)

    def batches(augment):
        loader = Loader(data, 8, mean=[0.5] * 3, std=[0.3] * 3, augment=augment, rng=np.random.default_rng(1))
        return np.concatenate([x for x, _ in loader])

    assert np.array_equal(batches(True), batches([CropAndFlip()]))
    black = batches([lambda images, rng: images + 1, lambda images, rng: images * 0])
    assert np.allclose(black, -0.5 / 0.3)


def test_mixup_mixes_images_and_labels_alike(rng):
    data = pictures(rng)
    plain = {"mean": [0.5] * 3, "std": [0.3] * 3}
    (x, target), = Loader(data, len(data), augment=[MixUp(1.0)], rng=np.random.default_rng(1), **plain)
    (images, labels), = Loader(data, len(data), **plain)
    assert target.shape == (len(data), 4) and target.dtype == x.dtype
    np.testing.assert_allclose(target.sum(1), 1, rtol=1e-6)
    w = next(value for value in target.max(1) if value < 1)
    for mixed, shares, image, label in zip(x, target, images, labels, strict=True):
        errors = [np.abs(mixed - (a * image + (1 - a) * partner)).max() for a in (w, 1 - w) for partner in images]
        assert min(errors) < 1e-5 and shares[label] >= min(w, 1 - w) - 1e-6


def test_a_network_trains_on_mixtures(rng):
    made = trainer(rng)
    made.train = Loader(made.train.dataset, 8, mean=[0.5] * 3, std=[0.3] * 3, augment=[CropAndFlip(1), MixUp()],
                        shuffle=True, rng=np.random.default_rng(1))
    rows = made.fit(2)
    assert all(np.isfinite(row["train_loss"]) and 0 <= row["train_accuracy"] <= 1 for row in rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_shares_is_pytorchs(smoothing, backend, rng):
    torch = pytest.importorskip("torch")
    y, q = rng.standard_normal((5, 7)), rng.dirichlet(np.ones(7), 5)
    logits = torch.from_numpy(y).requires_grad_()
    expected = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(logits, torch.from_numpy(q))
    expected.backward()
    loss = CrossEntropyLoss(smoothing)
    assert loss.forward(y, q) == pytest.approx(expected.item(), rel=1e-12)
    assert relative_error(loss.backward(), logits.grad.numpy()) < 1e-12


@pytest.mark.parametrize(("make", "reason"), [
    (lambda: MixUp(0), "MixUp's alpha must be a number above 0"),
    (lambda: Cutout(0), "Cutout's size must be"),
    (lambda: RandomErasing(2), "p must be a number at least 0 and at most 1"),
    (lambda: RandomErasing(0.5, (0.4, 0.2)), "area must be two numbers, the smaller first"),
    (lambda: Noise(-1), "std must be a number at least 0"),
    (lambda: RandomErasing(0.5, (0.1, 0.2), (3, 1)), "ratio must be two numbers"),
    (lambda: ColourJitter(2), "brightness must be a number at least 0 and at most 1"),
    (lambda: Cutout(True), "Cutout's size"), (lambda: Noise(float("inf")), "std must"), (lambda: Noise("a"), "std must"),
    (lambda: ColourJitter(None), "brightness"), (lambda: RandomErasing(0.5, 0.3), "area must be two numbers"),
    (lambda: CropAndFlip(-1), "CropAndFlip's padding"), (lambda: CropAndFlip(1, "no"), "CropAndFlip's flip")])
def test_wrong_augmentations(make, reason):
    with pytest.raises(UserError, match=reason):
        make()
