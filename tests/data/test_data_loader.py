"""Standardisation, augmentation, the validation split and the prefetching loader, against per-image oracles."""

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from minires.data import Dataset, Loader, Standardise, augment_batch, channel_statistics, split_train_validation
from minires.errors import UserError

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make_dataset(n, height=6, width=5, channels=3, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    return Dataset(images, rng.integers(0, classes, n), tuple("abcdefghij"[:classes]))


def loader_of(dataset, batch_size=4, **options):
    return Loader(dataset, batch_size, mean=MEAN, std=STD, **options)


def epoch(loader):
    batches = list(loader)
    return np.concatenate([x for x, _ in batches]), np.concatenate([target for _, target in batches])


# Statistics and standardisation


def test_channel_statistics_are_those_of_the_pixels():
    images = make_dataset(2100, height=7).images  # more than one chunk
    images[..., 1] //= 3
    mean, std = channel_statistics(images)
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-6)


def test_channel_statistics_do_not_overflow():
    images = np.full((300, 32, 32, 1), 255, np.uint8)
    images[::2] = 254
    np.testing.assert_allclose(channel_statistics(images), [[254.5 / 255], [0.5 / 255]], rtol=1e-6)


def test_channel_statistics_of_nothing_or_of_a_constant_are_refused():
    with pytest.raises(UserError, match=r"\(0, 6, 5, 3\) have no pixels"):
        channel_statistics(make_dataset(0).images)
    images = make_dataset(5).images
    images[..., 2] = 9
    with pytest.raises(UserError, match=r"channel 2 .*one value everywhere"):
        channel_statistics(images)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardise_is_the_formula_for_every_byte_and_channel(dtype):
    x = np.arange(256, dtype=np.uint8).repeat(3).reshape(2, 16, 8, 3)
    y = Standardise(MEAN, STD, dtype)(x)
    assert y.dtype == dtype and y.shape == x.shape and y.flags.c_contiguous
    np.testing.assert_array_equal(y, ((x / 255 - np.array(MEAN)) / np.array(STD)).astype(dtype))


def test_standardised_training_images_have_mean_0_and_std_1():
    images = make_dataset(50).images // 2
    y = Standardise(*channel_statistics(images))(images)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-5)


def test_training_and_test_images_are_standardised_alike():
    """The same pixels become the same numbers in both loaders, even where the test set's own statistics differ."""
    train = make_dataset(20)
    test = Dataset(np.concatenate([train.images[:6], train.images[6:8] // 9]), train.labels[:8], train.classes)
    mean, std = channel_statistics(train.images)
    x_train, _ = epoch(Loader(train, 20, mean=mean, std=std))
    x_test, _ = epoch(Loader(test, 8, mean=mean, std=std))
    np.testing.assert_array_equal(x_test[:6], x_train[:6])
    assert abs(x_test.mean()) > 0.05  # its own statistics would have made this 0


@pytest.mark.parametrize("mean, std", [((0.5,), (0.2, 0.2)), ((0.5,), (0.0,)), ((np.nan,), (1,)), (0.5, 0.2)])
def test_unusable_statistics_are_refused(mean, std):
    with pytest.raises(UserError, match=r"mean .* std .*expected"):
        Standardise(mean, std)


def test_standardise_refuses_other_images():
    standardise = Standardise(MEAN, STD)
    for x in (np.zeros((2, 4, 4, 1), np.uint8), np.zeros((2, 4, 4, 3), np.float32)):
        with pytest.raises(UserError, match=r"expected uint8 \(N, H, W, 3\)"):
            standardise(x)


# Augmentation


def naive_crops(image, padding):
    """Every outcome for one image, by (top, left, flipped), from the definition."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[top : top + height, left : left + width]
            yield (top, left, False), crop
            yield (top, left, True), crop[:, ::-1]


@pytest.mark.parametrize("padding, flip", [(2, True), (2, False), (1, True), (0, True)])
def test_crops_and_flips_match_a_naive_oracle_and_all_occur(padding, flip):
    images = make_dataset(600).images
    before = images.copy()
    y = augment_batch(images, np.random.default_rng(3), padding, flip)
    np.testing.assert_array_equal(images, before)
    assert y.shape == images.shape and y.dtype == np.uint8
    seen = {}
    for image, augmented in zip(images, y, strict=True):
        kinds = [kind for kind, crop in naive_crops(image, padding) if np.array_equal(crop, augmented)]
        assert len(kinds) == 1
        seen[kinds[0]] = seen.get(kinds[0], 0) + 1
    assert len(seen) == (2 * padding + 1) ** 2 * (2 if flip else 1)
    if flip:
        assert sum(count for kind, count in seen.items() if kind[2]) == pytest.approx(300, abs=60)
    assert max(seen.values()) < 3 * 600 / len(seen)  # no outcome is favoured


def test_the_border_is_black_before_standardisation():
    images = np.full((64, 8, 8, 3), 200, np.uint8)
    y = augment_batch(images, np.random.default_rng(0))
    assert set(np.unique(y)) == {0, 200}
    x, _ = epoch(loader_of(Dataset(images, np.zeros(64, np.int64), ("a",)), augment=True, rng=np.random.default_rng(0)))
    assert x.min() == pytest.approx(min(-m / s for m, s in zip(MEAN, STD, strict=True)))


def test_augmentation_is_a_function_of_its_generator():
    images = make_dataset(40).images
    one, same, other = (augment_batch(images, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    with pytest.raises(UserError, match=r"padding must be an int of at least 0 .*got -1"):
        augment_batch(images, np.random.default_rng(0), padding=-1)


def test_the_pipeline_takes_a_few_milliseconds_a_batch():
    """Under 5 % of a training step of ResNet-20 (100 ms and more on two cores), gather to float32; measured: 1.3 ms."""
    dataset, rng = make_dataset(1000, 32, 32, classes=10), np.random.default_rng(0)
    loader = loader_of(dataset, 128, augment=True, rng=rng)
    seconds = []
    for _ in range(30):
        indices = rng.permutation(1000)[:128]
        start = time.perf_counter()
        loader._batch(indices, rng)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 5e-3


# Split


@pytest.mark.parametrize("size", [1, 7, 60, 119])
def test_the_split_is_disjoint_complete_and_stratified(size):
    data = make_dataset(120, classes=3)
    marked = Dataset(data.images, np.arange(120) % 10 // 4, data.classes)  # classes of 48, 48 and 24 images
    marked.images[:, 0, 0, 0] = np.arange(120)
    train, validation = split_train_validation(marked, size, np.random.default_rng(1))
    assert len(validation) == size and len(train) == 120 - size
    ids = [part.images[:, 0, 0, 0] for part in (train, validation)]
    assert sorted(np.concatenate(ids)) == list(range(120))
    for part, where in zip((train, validation), ids, strict=True):
        np.testing.assert_array_equal(part.images, marked.images[where])
        np.testing.assert_array_equal(part.labels, marked.labels[where])
    share = size * np.array([48, 48, 24]) / 120
    assert (np.abs(np.bincount(validation.labels, minlength=3) - share) <= 1).all()


def test_the_split_is_random_and_a_function_of_its_generator():
    data = make_dataset(100)
    one, same, other = (split_train_validation(data, 20, np.random.default_rng(s))[1].images for s in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    chosen = np.zeros(100)
    for seed in range(300):
        taken = split_train_validation(data, 20, np.random.default_rng(seed))[1].images
        chosen += (data.images[:, None] == taken[None]).all((2, 3, 4)).any(1)
    assert chosen.min() > 25 and chosen.max() < 100  # each image 60 times on average


@pytest.mark.parametrize("size", [0, -1, 100, 101, 2.5, True])
def test_a_split_that_leaves_a_part_empty_is_refused(size):
    with pytest.raises(UserError, match=f"validation size (must be an int, got )?{size}"):
        split_train_validation(make_dataset(100), size, np.random.default_rng(0))


# Loader


def test_batches_in_order_cover_the_data_set():
    data = make_dataset(10)
    loader = loader_of(data)
    shapes = [(x.shape, x.dtype, target.shape, target.dtype) for x, target in loader]
    assert shapes == [((n, 6, 5, 3), np.float32, (n,), np.int64) for n in (4, 4, 2)] and len(loader) == 3
    x, target = epoch(loader)
    np.testing.assert_array_equal(x, Standardise(MEAN, STD)(data.images))
    np.testing.assert_array_equal(target, data.labels)
    assert epoch(loader_of(data, dtype=np.float64))[0].dtype == np.float64


@pytest.mark.parametrize(
    "n, drop_last, sizes", [(10, True, [4, 4]), (8, True, [4, 4]), (8, False, [4, 4]), (3, False, [3])]
)
def test_the_number_of_batches(n, drop_last, sizes):
    loader = loader_of(make_dataset(n), drop_last=drop_last)
    assert [len(target) for _, target in loader] == sizes and len(loader) == len(sizes)


def test_each_epoch_is_a_fresh_permutation_with_its_labels():
    data = make_dataset(50)
    loader = loader_of(data, shuffle=True, rng=np.random.default_rng(0))
    plain = Standardise(MEAN, STD)(data.images)
    orders = []
    for _ in range(3):
        x, target = epoch(loader)
        order = [int(np.flatnonzero((plain == image).all((1, 2, 3)))[0]) for image in x]
        np.testing.assert_array_equal(target, data.labels[order])
        assert sorted(order) == list(range(50))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0] and list(range(50)) not in orders


def test_augmentation_in_the_loader_differs_between_epochs_and_is_off_by_default():
    data = make_dataset(40, 8, 8)
    loader = loader_of(data, 40, augment=True, rng=np.random.default_rng(0))
    first, second, plain = epoch(loader)[0], epoch(loader)[0], epoch(loader_of(data, 40))[0]
    assert not np.array_equal(first, second) and not np.array_equal(first, plain)
    np.testing.assert_array_equal(plain, Standardise(MEAN, STD)(data.images))


def random_loader(seed=0):
    return loader_of(make_dataset(30), shuffle=True, augment=True, rng=np.random.default_rng(seed))


def test_the_same_seed_gives_the_same_batches_whatever_the_timing():
    slow, fast, other = random_loader(), random_loader(), random_loader(1)
    for (x, target), (x_fast, target_fast) in zip(slow, list(fast), strict=True):
        time.sleep(0.002)
        np.testing.assert_array_equal(x, x_fast)
        np.testing.assert_array_equal(target, target_fast)
    second = epoch(slow)[0]
    np.testing.assert_array_equal(second, epoch(fast)[0])
    epoch(other)
    assert not np.array_equal(second, epoch(other)[0])


def test_a_resumed_run_repeats_what_followed_its_saved_state():
    loader = random_loader()
    epoch(loader)
    state = loader.rng.bit_generator.state
    expected = [epoch(loader)[0] for _ in range(2)]
    resumed = random_loader(9)
    resumed.rng.bit_generator.state = state
    for x in expected:
        np.testing.assert_array_equal(epoch(resumed)[0], x)


def test_an_epoch_draws_the_same_from_rng_wherever_the_consumer_stops():
    whole, stopped, unopened = random_loader(), random_loader(), random_loader()
    epoch(whole)
    for _ in stopped:
        break
    iter(unopened)
    assert stopped.rng.bit_generator.state == whole.rng.bit_generator.state == unopened.rng.bit_generator.state


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("minires-loader")]


def test_batches_are_made_in_the_background_and_at_most_two_ahead(monkeypatch):
    loader, made, threads = loader_of(make_dataset(40)), [], set()
    make = loader._batch

    def counted(indices, rng, epoch):
        threads.add(threading.current_thread())
        made.append(len(indices))
        return make(indices, rng, epoch)

    monkeypatch.setattr(loader, "_batch", counted)
    for taken, _ in enumerate(loader, start=1):
        expected = min(taken + 2, 10)
        deadline = time.monotonic() + 5
        while len(made) < expected and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)
        assert len(made) == expected
    assert threading.current_thread() not in threads and len(threads) == 1
    assert not loader_threads()


def test_a_consumer_that_stops_early_leaves_no_thread():
    loader = loader_of(make_dataset(40))
    for _ in loader:
        assert loader_threads()
        break
    assert not loader_threads()
    with pytest.raises(ZeroDivisionError):
        for _ in loader:
            raise ZeroDivisionError
    assert not loader_threads()
    batches = iter(loader)
    next(batches)
    batches.close()
    assert not loader_threads()


def test_an_exception_in_the_thread_reaches_the_consumer(monkeypatch):
    loader = loader_of(make_dataset(40))
    make = loader._batch

    def failing(indices, rng, epoch):
        if 12 in indices:
            raise RuntimeError("fourth batch")
        return make(indices, rng, epoch)

    monkeypatch.setattr(loader, "_batch", failing)
    taken = 0
    with pytest.raises(RuntimeError, match="fourth batch"):
        for _ in loader:
            taken += 1
    assert taken == 3 and not loader_threads()


def test_a_program_that_ends_within_an_epoch_ends():
    code = (
        "import numpy as np; from minires.data import *; "
        "d = Dataset(np.zeros((40, 4, 4, 1), np.uint8), np.zeros(40, np.int64), ('a',)); "
        "batches = iter(Loader(d, 4, mean=(0,), std=(1,))); next(batches); print('done')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "done\n", "")


def test_loaders_that_could_not_work_are_refused():
    data = make_dataset(3)
    for size in (0, -1, 2.0, True, "4"):
        with pytest.raises(UserError, match=f"batch size (must be an int, got )?'?{size}"):
            loader_of(data, size)
    with pytest.raises(UserError, match="data set is empty"):
        loader_of(make_dataset(0))
    with pytest.raises(UserError, match="3 images fill no batch of 4 and drop_last"):
        loader_of(data, drop_last=True)
    for option in ("shuffle", "augment"):
        with pytest.raises(UserError, match="without rng"):
            loader_of(data, **{option: True})
    with pytest.raises(UserError, match="3 channels but the images have 1"):
        loader_of(make_dataset(4, channels=1))


# Dataset


def test_a_subset_is_a_copy_in_the_order_asked_for():
    data = make_dataset(9)
    part = data.subset([4, 2])
    np.testing.assert_array_equal(part.images, data.images[[4, 2]])
    np.testing.assert_array_equal(part.labels, data.labels[[4, 2]])
    assert part.classes == data.classes and len(part) == 2
    sliced = data.subset(slice(0, 3))
    sliced.images[:], sliced.labels[:] = 0, 0
    assert data.images[:3].any() and data.labels[:3].any()


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (np.zeros((2, 4, 4, 3)), np.zeros(2, int), "images are float64"),
        (np.zeros((2, 4, 4), np.uint8), np.zeros(2, int), r"images are uint8 \(2, 4, 4\)"),
        (np.zeros((2, 4, 4, 3), np.uint8).transpose(0, 2, 1, 3), np.zeros(2, int), "C-contiguous"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(3, int), r"labels are int64 \(3,\)"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2, np.uint8), "labels are uint8"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 2]), "labels run from 0 to 2: expected 0 to 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), np.array([-1, 1]), "labels run from -1 to 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(images, labels, message):
    with pytest.raises(UserError, match=message):
        Dataset(images, labels, ("a", "b"))
