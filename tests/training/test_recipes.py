"""Recipes as files, and what they are made of: Muon, alternating flips, views at test time."""
import numpy as np
import pytest

from minires.backends import use_backend
from minires.data import Dataset, Loader, augment_batch
from minires.data.augmentations import AlternatingFlip, CropAndFlip
from minires.errors import UserError
from minires.layer import Parameter
from minires.models import Speedrun, build_model
from minires.optim import SGD, Muon, orthogonalise
from minires.schedules import TriangleLR
from minires.training import RECIPES, Trainer, make_recipe
from minires.training.recipes import find_recipe, parse_changes, run_of
from minires.training.views import over_views

# --- files ---


def test_what_recipes_say_of_the_run_and_what_is_given_goes_first():
    assert run_of("onecycle", "shapes") == {"model": "resnet20", "batch_size": 128, "epochs": 8}
    assert run_of("he2015", "cifar10") == {"model": "resnet20", "batch_size": 128, "epochs": 164}
    assert run_of("speedrun", "cifar10", epochs=2, model=None) == {"model": "speedrun", "batch_size": 500, "epochs": 2}
    assert run_of("quick", "cifar10", model="resnet8")["model"] == "resnet8"


def test_a_file_of_ones_own_and_single_fields(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('model = "resnet8"\nschedule = "cosine"\nlr = 0.1\nweight_decay = 0\ncutout = 8\n')
    recipe = make_recipe(str(path), **parse_changes(["flip=alternating", "average = 0.9", "augment=true"]))
    assert (recipe.schedule, recipe.cutout, recipe.flip, recipe.average) == ("cosine", 8, "alternating", 0.9)
    assert [type(each).__name__ for each in recipe.augmentation] == ["CropAndFlip", "AlternatingFlip", "Cutout"]
    assert find_recipe(str(path))[1] == {"model": "resnet8"}
    assert make_recipe("he2015").augmentation is True and make_recipe("budget", augment=False).augmentation is False


@pytest.mark.parametrize(("content", "reason"), [
    ("lr = ", "is no TOML"), ("lr = 1", "does not say schedule"), (None, "cannot be read"),
    ('schedule = "cosine"\nlr = 1\nweight_decay = 0\nrate = 2', "has no field rate"),
    ('schedule = "cosine"\nlr = 1\nweight_decay = 0\nflip = "up"', "unknown flip 'up': choose random, alternating or none"),
    ('schedule = "cosine"\nlr = 1\nweight_decay = 0\naccumulate = 0', "accumulate must be an int of at least 1, got 0")])
def test_mistakes_in_a_file(content, reason, tmp_path):
    if content is not None:
        (tmp_path / "r.toml").write_text(content)
    with pytest.raises(UserError, match=reason):
        make_recipe(str(tmp_path / "r.toml"))


def test_mistakes_in_changes():
    with pytest.raises(UserError, match="'whiten' sets nothing"):
        parse_changes(["whiten"])
    with pytest.raises(UserError, match="recipe budget has no field colour"):
        make_recipe("budget", colour=1)


def test_what_the_speedrun_sets_on_its_network_can_be_switched_off(rng):
    images, statistics = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8), ([0.5] * 3, [0.2] * 3)
    network, plain = Speedrun(channels=(4, 4, 4), rng=0), Speedrun(channels=(4, 4, 4), rng=0)
    RECIPES["speedrun"].prepare(network, images, *statistics)
    make_recipe("speedrun", whiten=False, dirac=False, bias_lr_factor=1.0).prepare(plain, images, *statistics)
    same = Speedrun(channels=(4, 4, 4), rng=0).state_dict()
    assert all(np.array_equal(array, same[name]) for name, array in plain.state_dict().items())
    assert all(parameter.lr_factor == 1 for parameter in plain.parameters()) and not plain.whiten.weight.frozen
    factors = {name: p.lr_factor for name, p in network.named_parameters() if p.lr_factor != 1}
    assert factors == {f"group{g}.bn{n}.bias": 60 for g in (1, 2, 3) for n in (1, 2)}
    assert network.group2.bn1.bias.decay_factor == 1 / 60
    assert network.whiten.weight.frozen and network.group1.conv2.weight.data[1, 1, 2, 2] == 1


def test_a_triangle():
    schedule = TriangleLR(SGD([Parameter(np.ones(1))], 2.0), 100, 0.2, 0.5, 0.1)
    assert [schedule.lr_at(step) for step in (0, 10, 20, 60, 100, 200)] == pytest.approx([1, 1.5, 2, 1.1, 0.2, 0.2])
    assert TriangleLR(SGD([Parameter(np.ones(1))], 2.0), 8, 0.0).lr_at(0) == 2


# --- Muon ---


@pytest.mark.parametrize("shape", [(36, 8), (8, 36), (12, 12)], ids=str)
def test_orthogonalised_singular_values_lie_near_one_along_the_same_vectors(shape, rng):
    matrix = rng.standard_normal(shape)
    U, s, V = np.linalg.svd(matrix, full_matrices=False)
    made = U.T @ orthogonalise(matrix) @ V.T
    np.testing.assert_allclose(made, np.diag(np.diag(made)), atol=1e-12)
    assert np.diag(made).min() > 0.65 and np.diag(made).max() < 1.25 and s.max() > 2 * s.min()


def test_muon_is_the_published_update(rng):
    """Beside airbench's, written in PyTorch; vectors and matrices of linear layers move by SGD in proportion."""
    torch = pytest.importorskip("torch")
    weight, bias = rng.standard_normal((3, 3, 4, 5)), rng.standard_normal(5)
    ours = [Parameter(weight.copy()), Parameter(bias.copy())]
    optimiser = Muon(ours, 0.2, 0.6, 0.01, sgd_lr=1.5, sgd_momentum=0.85, iterations=3)
    theirs = torch.from_numpy(weight.transpose(3, 2, 0, 1).copy())
    linear = torch.nn.Parameter(torch.from_numpy(bias.copy()))
    sgd = torch.optim.SGD([linear], 1.5, 0.85, 0, 0.01, True)
    buffer = torch.zeros_like(theirs)
    for step in range(3):
        grads = rng.standard_normal(weight.shape), rng.standard_normal(5)
        for parameter, grad in zip(ours, grads, strict=True):
            parameter.grad[...] = grad
        optimiser.lr = 0.2 / (step + 1)
        with use_backend("reference"):
            optimiser.step()
        g = torch.from_numpy(grads[0].transpose(3, 2, 0, 1).copy())
        buffer = 0.6 * buffer + g
        X = (g + 0.6 * buffer).reshape(5, -1)
        X = X / X.norm()
        for _ in range(3):
            A = X @ X.T
            X = 3.4445 * X + (-4.7750 * A + 2.0315 * A @ A) @ X
        theirs = theirs * 5 ** 0.5 / theirs.norm() - 0.2 / (step + 1) * X.reshape(theirs.shape)
        sgd.param_groups[0]["lr"] = 1.5 / (step + 1)
        linear.grad = torch.from_numpy(grads[1])
        sgd.step()
    np.testing.assert_allclose(ours[0].data, theirs.numpy().transpose(2, 3, 1, 0), atol=1e-12)
    np.testing.assert_allclose(ours[1].data, linear.detach().numpy(), atol=1e-12)


def test_muon_without_normalising_decays_and_leaves_zeros_alone():
    weight, zeros = Parameter(np.ones((1, 1, 2, 2))), Parameter(np.zeros((3, 3, 2, 2)))
    with use_backend("reference"):
        Muon([weight], 0.1, weight_decay=0.5, sgd_lr=0.1, normalise=False).step()
        Muon([zeros], 0.1, sgd_lr=0.1).step()
    np.testing.assert_allclose(weight.data, 0.95)
    assert not zeros.data.any()


def test_one_optimiser_saves_and_goes_on(rng):
    def make():
        return Muon([Parameter(np.ones((3, 3, 2, 2), np.float32)), Parameter(np.ones(3, np.float32))], 0.1, sgd_lr=0.5)

    one, two = make(), make()
    grads = [rng.standard_normal(p.data.shape).astype(np.float32) for p in one.parameters]
    for turn in range(2):
        for optimiser in (one, two)[turn:]:
            for parameter, grad in zip(optimiser.parameters, grads, strict=True):
                parameter.grad[...] = grad
            with use_backend("reference"):
                optimiser.step()
        if not turn:
            two.load_state_dict(one.state_dict())
    assert two.steps == 2 and one.steps == 1


# --- data and views ---


def numbered(n):
    """Images that say which they are: their left half."""
    images = np.zeros((n, 4, 4, 3), np.uint8)
    images[:, :, :2] = np.arange(1, n + 1)[:, None, None, None]
    return Dataset(images, np.zeros(n, np.int64), ("a", "b"))


def mirrored(loader):
    """{which image: whether it came mirrored} of an epoch."""
    found = {}
    for x, _ in loader:
        for image in np.rint(x * 255).astype(int):
            found[image.max()] = image[0, 0, 0] == 0
    return found


def loader_of(n, augment, seed=0):
    return Loader(numbered(n), 7, mean=[0.0] * 3, std=[1.0] * 3, augment=augment, shuffle=True,
                  rng=np.random.default_rng(seed))


def test_flips_alternate_from_epoch_to_epoch_and_depend_on_nothing_else():
    loader = loader_of(100, [AlternatingFlip()])
    first, second, third = (mirrored(loader) for _ in range(3))
    assert all(second[image] != first[image] for image in first) and third == first and len(first) == 100
    assert 30 < sum(first.values()) < 70
    other = loader_of(100, [AlternatingFlip()], seed=9)
    other.epoch = 1
    assert mirrored(other) == second
    assert mirrored(loader_of(100, [AlternatingFlip(1)])) != first


def test_an_epoch_that_is_gone_on_with_is_the_same():
    augment = [CropAndFlip(1, False, reflect=True), AlternatingFlip()]
    whole = list(loader_of(40, augment).batches_from())
    rest = list(loader_of(40, augment).batches_from(3))
    assert len(rest) == len(whole) - 3
    for (x, target), (y, labels) in zip(whole[3:], rest, strict=True):
        assert np.array_equal(x, y) and np.array_equal(target, labels)


def test_a_trainer_tells_its_loader_the_epoch():
    loader = loader_of(14, [AlternatingFlip()])
    loader.epoch, seen = 5, []
    flip = loader.augmentations[0].flip
    loader.augmentations[0].flip = lambda images, places, epoch: (seen.append(epoch), flip(images, places, epoch))[1]
    model = build_model("resnet8", 2)
    Trainer(model, SGD(model.parameters(), 0.01), loader, loader_of(7, False), progress=False).fit(2)
    assert sorted(seen) == [0, 0, 1, 1]


def test_reflected_crops_bring_no_black_in(rng):
    images = rng.integers(1, 256, (50, 5, 6, 3)).astype(np.uint8)
    y = augment_batch(images, rng, 2, False, reflect=True)
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    assert all(any(np.array_equal(padded[n, t:t + 5, l:l + 6], y[n]) for t in range(5) for l in range(5)) for n in range(50))
    with pytest.raises(UserError, match="padding 5 cannot be reflected from images of 5 x 6 pixels"):
        augment_batch(images, rng, 5, reflect=True)


def test_logits_over_views(rng):
    x = rng.standard_normal((2, 5, 6, 3))
    weight = rng.standard_normal((5, 6, 3))

    def predict(x):
        return (x * weight).sum((1, 2, 3))[:, None]

    assert over_views(predict, "none") is predict
    mirror = (predict(x) + predict(x[:, :, ::-1])) / 2
    np.testing.assert_allclose(over_views(predict, "mirror")(x), mirror, atol=1e-12)
    p = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    views = [v for crop in (p[:, :5, :6], p[:, 2:, 2:]) for v in (crop, crop[:, :, ::-1])]
    np.testing.assert_allclose(over_views(predict, "crops")(x), mirror / 2 + sum(map(predict, views)) / 8, atol=1e-12)
    with pytest.raises(UserError, match="unknown tta 'flip': choose none, mirror or crops"):
        over_views(predict, "flip")
