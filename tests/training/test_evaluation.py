"""What `minires eval` and `minires predict` compute: counts by hand, and the same pixels from a file as from a data set."""
import numpy as np
import pytest
from PIL import Image

from minires import evaluation
from minires.backends import use_backend
from minires.data import Dataset, make_shapes
from minires.data.cifar10 import CLASSES
from minires.evaluation import Evaluation, evaluated, open_checkpoint, open_test_set, read_image, wilson
from minires.layer import Layer
from minires.losses import CrossEntropyLoss
from minires.models import build_model
from minires.training import ModelCard, save


@pytest.fixture(autouse=True)
def reference_kernels():
    with use_backend("reference"):
        yield


# --- what is counted ---


class Logits(Layer):
    """Reads the logits off the first row of pixels."""

    def forward(self, x):
        return np.ascontiguousarray(x[:, 0, :, 0])


def test_counts_are_those_by_hand(rng):
    K, N = 7, 150
    target = rng.integers(0, K - 1, N)  # of the last class there is no image
    images = rng.integers(0, 256, (N, 1, K, 1), np.uint8)
    images[:, :, -2] = 0  # which is never predicted
    card = ModelCard("resnet20", K, None, "", tuple("abcdefg"), 32, [0.5], [0.3])
    result = evaluated(Logits(), CrossEntropyLoss(), card.loader(Dataset(images, target, card.classes)))
    ranked = np.argsort(-images[:, 0, :, 0].astype(int), axis=1, kind="stable")
    guess = ranked[:, 0]
    assert result.images == N and result.correct == (guess == target).sum()
    assert result.found == sum(target[n] in ranked[n, :5] for n in range(N))
    assert result.top5 == result.found / N > result.accuracy == result.correct / N
    for k in range(K):
        right, said, are = ((guess == k) & (target == k)).sum(), (guess == k).sum(), (target == k).sum()
        for value, expected in ((result.precision[k], right / said if said else np.nan),
                                (result.recall[k], right / are if are else np.nan),
                                (result.f1[k], 2 * right / (said + are) if said + are else np.nan)):
            np.testing.assert_equal(value, expected)
        assert result.confusion[k].tolist() == [((target == k) & (guess == j)).sum() for j in range(K)]
    assert np.isnan(result.recall[-1]) and np.isnan(result.precision[-2])
    logits = (images[:, 0, :, 0] / 255 - 0.5) / 0.3
    loss = (np.log(np.exp(logits).sum(1)) - logits[np.arange(N), target]).mean()
    assert result.loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize(("correct", "images"), [(0, 10), (10, 10), (915, 1000), (1, 3)])
def test_wilsons_interval_is_where_the_fraction_is_z_deviations_away(correct, images):
    low, high = wilson(correct, images)
    assert 0 <= low <= correct / images <= high <= 1
    for p in (low, high):
        if 0 < p < 1:
            assert abs(correct / images - p) == pytest.approx(1.959964 * (p * (1 - p) / images) ** 0.5, rel=1e-6)


def test_wilsons_interval_by_its_published_value():
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)  # Newcombe 1998, table of single proportions
    assert Evaluation(np.array([[80, 20], [0, 163]]), 0.1, 263).interval == pytest.approx(wilson(243, 263))
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I


# --- pictures ---


def saved(tmp_path, dataset, classes, size):
    save(build_model("resnet8", len(classes), rng=0), tmp_path / "m.safetensors", classes=classes, image_size=size,
         mean=[0.5] * 3, std=[0.2] * 3, dataset=dataset)
    return open_checkpoint(tmp_path / "m.safetensors")


def cifar_files(tmp_path, rng):
    records = rng.integers(0, 256, (8, 3073), np.uint8)
    records[:, 0] %= 10
    (tmp_path / "records.bin").write_bytes(records.tobytes())
    return "cifar10", CLASSES, 32


def shapes_of(tmp_path, rng):
    return "shapes", make_shapes(1, 0).classes, 32


def photographs(tmp_path, rng):
    """Pictures of all sizes and modes."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / "photos" / part / name
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (40, 61, 3), np.uint8)).save(folder / "a.jpg", quality=90)
            Image.fromarray(rng.integers(0, 256, (23, 17), np.uint8)).save(folder / "b.png")
            Image.fromarray(rng.integers(0, 65536, (30, 30), np.uint16)).save(folder / "c.png")
            Image.fromarray(rng.integers(0, 256, (90, 20, 4), np.uint8)).save(folder / "d.webp", lossless=True)
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(rng.integers(0, 256, (16, 48, 3), np.uint8)).save(folder / "e.png", exif=exif)
    return str(tmp_path / "photos"), ("cat", "dog"), 16


@pytest.mark.parametrize("kind", [cifar_files, shapes_of, photographs])
def test_predict_sees_what_eval_sees(kind, tmp_path, rng, monkeypatch, command):
    dataset, classes, size = kind(tmp_path, rng)
    network, card = saved(tmp_path, dataset, classes, size)
    test = open_test_set(card, records=tmp_path / "records.bin" if kind is cifar_files else None)
    if kind is photographs:
        files = sorted((tmp_path / "photos/test").rglob("*.*"))
        assert len(files) == len(test) == 10
    else:
        test = test.subset(np.arange(6))
        files = [tmp_path / f"{index}.png" for index in range(6)]
        for image, file in zip(test.images, files, strict=True):
            Image.fromarray(image).save(file)
    for image, file in zip(test.images, files, strict=True):
        np.testing.assert_array_equal(read_image(file, card.image_size)[0], image)

    fed = []
    monkeypatch.setattr(evaluation, "compile", lambda network: lambda x: fed.append(x) or network.eval().forward(x))
    code, out, error = command("predict", *files[:3], "--checkpoint", tmp_path / "m.safetensors")
    assert (code, error) == (0, "") and len(out.splitlines()) == 3
    (x, _), = card.loader(test.subset(np.arange(3)))
    np.testing.assert_array_equal(np.concatenate(fed), x)
