"""The generated data set: reproducible, balanced, varied, beyond a linear classifier; and the choice of data sets."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minires.data import Standardise, channel_statistics, load_dataset, load_folder, shapes
from minires.data.shapes import load_shapes, make_shapes
from minires.errors import UserError


@pytest.fixture(scope="module")
def both():
    return load_shapes(0)


def test_types_sizes_and_classes(both):
    train, test = both
    assert train.images.shape == (8000, 32, 32, 3) and test.images.shape == (2000, 32, 32, 3)
    assert train.images.dtype == np.uint8 and train.labels.dtype == np.int64
    assert len(set(train.classes)) == 10 and train.classes == test.classes
    assert make_shapes(7, 0, size=48).images.shape == (7, 48, 48, 3)


def test_classes_are_balanced_and_in_random_order(both):
    for part in both:
        np.testing.assert_array_equal(np.bincount(part.labels), [len(part) // 10] * 10)
        assert (np.diff(part.labels) == 0).mean() == pytest.approx(0.1, abs=0.03)
    assert sorted(np.bincount(make_shapes(25, 3).labels)) == [2] * 5 + [3] * 5


def test_the_same_seed_gives_the_same_bits_and_another_does_not(both):
    again, other = make_shapes(450, 7), make_shapes(450, 8)
    first = make_shapes(450, 7)
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert (first.images != other.images).mean() > 0.9
    reloaded = load_shapes(0)[1]
    np.testing.assert_array_equal(reloaded.images, both[1].images)
    assert (load_shapes(1)[1].images != reloaded.images).mean() > 0.9


def test_the_two_parts_come_from_independent_streams(monkeypatch):
    monkeypatch.setattr(shapes, "TRAIN_SIZE", 40)
    monkeypatch.setattr(shapes, "TEST_SIZE", 40)
    train, test = load_shapes(0)
    assert (train.images != test.images).mean() > 0.9 and (train.labels != test.labels).any()


def test_no_picture_is_in_both_parts_or_twice(both):
    pictures = [image.tobytes() for part in both for image in part.images]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_outlines_are_distances(name):
    """Anti-aliasing needs a slope of one across the outline, and a class must not give itself away by its area."""
    v, u = np.mgrid[-1.6:1.6:641j, -1.6:1.6:641j]
    distance = shapes.SHAPES[name](u, v)
    step = 3.2 / 640
    slope = np.hypot(*np.gradient(distance, step))
    near = np.abs(distance) < 2 * step
    assert np.median(slope[near]) == pytest.approx(1, abs=0.02)
    inside = distance < 0
    assert 0.8 < inside.sum() * step**2 < 3  # in units of the radius squared: all classes are of similar size
    border = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    assert not border.any()


def test_no_two_shapes_are_alike_in_any_rotation():
    """The best overlap of two classes' outlines over all rotations and reflections stays well under one."""
    v, u = np.mgrid[-1.6:1.6:97j, -1.6:1.6:97j]
    masks = {}
    for name, shape in shapes.SHAPES.items():
        masks[name] = []
        for angle in np.arange(0, 2 * np.pi, np.pi / 30):
            cos, sin = np.cos(angle), np.sin(angle)
            masks[name].append(shape(cos * u + sin * v, cos * v - sin * u).ravel() < 0)
    names = list(masks)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            turned = np.array(masks[second])
            overlap = (turned & masks[first][0]).sum(1) / (turned | masks[first][0]).sum(1)
            assert overlap.max() < 0.85, (first, second)


def test_colours_tell_nothing_and_shapes_are_darker_or_lighter(both):
    """Each class has the same mean colour, and the middle, where shapes lie, is as often above the mean as below."""
    train = both[0]
    means = np.array([train.images[train.labels == k].mean((0, 1, 2)) for k in range(10)])
    np.testing.assert_allclose(means, np.broadcast_to(means.mean(0), means.shape), atol=8)
    grey = train.images.mean(-1)
    lighter = (grey[:, 14:18, 14:18].mean((1, 2)) > grey.mean((1, 2))).mean()
    assert 0.35 < lighter < 0.65
    assert grey.mean((1, 2)).std() > 20


def logistic_regression(x, labels, rng, epochs=5, lr=0.003, weight_decay=1e-2):
    """Multinomial logistic regression by SGD; x: (N, features) standardised. Returns x -> predicted labels."""
    weight, bias = np.zeros((x.shape[1], 10), np.float32), np.zeros(10, np.float32)
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), len(x) // 200):
            logits = x[batch] @ weight + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(len(batch)), labels[batch]] -= 1
            weight -= lr * (x[batch].T @ p / len(batch) + weight_decay * weight)
            bias -= lr * p.mean(0)
    return lambda x: (x @ weight + bias).argmax(1)


def test_a_linear_classifier_fails(both):
    train, test = both
    standardise = Standardise(*channel_statistics(train.images))
    x, x_test = standardise(train.images).reshape(len(train), -1), standardise(test.images).reshape(len(test), -1)
    predict = logistic_regression(x, train.labels, np.random.default_rng(0))
    assert (predict(x_test) == test.labels).mean() < 0.30
    # The classifier itself works: it learns these pictures when a row of pixels' brightness gives the class away.
    easy, easy_test = x.reshape(-1, 32, 96).copy(), x_test.reshape(-1, 32, 96).copy()
    easy[np.arange(len(x)), train.labels] += 2
    easy_test[np.arange(len(x_test)), test.labels] += 2
    predict = logistic_regression(easy.reshape(x.shape), train.labels, np.random.default_rng(0), epochs=2)
    assert (predict(easy_test.reshape(x_test.shape)) == test.labels).mean() > 0.9


def test_wrong_arguments_are_refused():
    for arguments, message in (((-1, 0), "-1 shapes"), ((5, -2), "seed -2"), ((5, 0, 8), "shapes of 8 pixels")):
        with pytest.raises(UserError, match=message):
            make_shapes(*arguments)
    with pytest.raises(UserError, match="seed -1"):
        load_shapes(-1)


@pytest.fixture
def pictures(tmp_path):
    """train/ and test/ with two classes of 6x6 pictures, PNG and JPEG, colour and grey."""
    rng = np.random.default_rng(2)
    pixels = {}
    for part, count in (("train", 3), ("test", 2)):
        for name in ("cat", "ant"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels[part, name, i] = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
                Image.fromarray(pixels[part, name, i]).save(tmp_path / part / name / f"{i}.png")
    Image.new("RGB", (6, 6), (250, 0, 0)).save(tmp_path / "train/cat/9.JPG", quality=95)
    Image.new("L", (6, 6), 7).save(tmp_path / "test/ant/9.png")
    (tmp_path / "train/cat/notes.txt").write_text("no picture")
    (tmp_path / "train/.hidden").mkdir()
    return tmp_path, pixels


def test_a_folder_of_pictures(pictures, monkeypatch):
    folder, pixels = pictures
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter(sorted(listed(path), reverse=True)))  # any order may come
    train, test = load_dataset(str(folder))
    assert train.classes == test.classes == ("ant", "cat")
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1, 1] and test.labels.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(train.images[4], pixels["train", "cat", 1])
    np.testing.assert_array_equal(test.images[0], pixels["test", "ant", 0])
    assert np.abs(train.images[6].astype(int) - (250, 0, 0)).max() < 12  # the JPEG
    assert (test.images[2] == 7).all()  # the grey one


def test_a_folder_of_pictures_with_faults(pictures):
    folder, _ = pictures

    def fails(message):
        with pytest.raises(UserError, match=message) as caught:
            load_folder(folder)
        assert "\n" not in str(caught.value)

    odd = folder / "test/cat/odd.png"
    Image.new("RGB", (7, 7)).save(odd)
    fails(r"test/cat/odd.png is 7x7 pixels and .*test/ant/0.png 6x6: say with --size")
    odd.unlink()
    (folder / "test/dog").mkdir()
    fails("only one of train and test has dog")
    (folder / "train/dog").mkdir()
    fails("train/dog holds no picture that can be read")
    for part in ("train", "test"):
        (folder / part / "dog").rmdir()
    for path in folder.glob("test/*/*.png"):
        Image.new("RGB", (5, 5)).save(path)
    fails("test has pictures of 5x5 pixels but .*train of 6x6")
    (folder / "test").rename(folder / "tests")
    fails("test is not a folder")


def test_load_dataset_lists_the_choices(tmp_path, both):
    for part, expected in zip(load_dataset("shapes", seed=0), both, strict=True):
        np.testing.assert_array_equal(part.images, expected.images)
    for name in ("cifar11", tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"{name}.*choose cifar10, shapes, or a folder"):
            load_dataset(name)
    with pytest.raises(UserError, match=r"holds no data set: expected cifar-10-batches-bin/.*train/<class>/"):
        load_dataset(tmp_path)
    with pytest.raises(UserError, match="only cifar10 reads one"):
        load_dataset("shapes", data_dir=tmp_path)
