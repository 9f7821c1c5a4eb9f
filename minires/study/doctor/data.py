"""Mistakes in the data: preprocessing, overlap, labels, classes."""
import hashlib

import numpy as np

from minires.study.doctor.finding import Finding

PROBED = 2_000  # images of a linear probe
SIDE = 8  # pixels a side that it sees
SURE = 3.0  # standard deviations above chance


def look_at_data(train, test=None, validation=None, *, learn=None, labelled=False):
    """Findings about `minires.data.Loader`s.

    learn(place): trains on those images of the training set and returns names(images, labels) -> which it names right, for
    data that a linear probe learns nothing of. labelled: whether a network was seen to name images that it did not know.
    """
    found = _scale(train)
    sets = {"train": train, "test": test, "validation": validation}
    sets = {name: loader for name, loader in sets.items() if loader is not None}
    for name, loader in sets.items():
        found += _classes(name, loader.dataset)
        if name != "train":
            found += _preprocessing(train, name, loader)
            if loader.dataset.classes != train.dataset.classes:
                found.append(Finding("class order", f"the {name} set's classes are {_few(loader.dataset.classes)} and the "
                                     f"training set's {_few(train.dataset.classes)}: a label means another class in each"))
    names = list(sets)
    for index, one in enumerate(names):
        for other in names[index + 1:]:
            found += _overlap(one, sets[one].dataset, other, sets[other].dataset)
    return found if labelled else found + _labels(train.dataset, None if test is None else test.dataset, learn)


def _few(names):
    return ", ".join(map(str, names[:5])) + (" .." if len(names) > 5 else "")


def _scale(train):
    """What the network is fed must be of the order of 1 in each channel."""
    pixels = train.standardise(train.dataset.images[:512])
    mean, std = pixels.mean((0, 1, 2)), pixels.std((0, 1, 2))
    if np.abs(mean).max() > 1 or std.max() > 4 or std.min() < 0.2:
        return [Finding("scale", f"standardised training images have mean {np.round(mean, 2).tolist()} and std "
                        f"{np.round(std, 2).tolist()} a channel, expected about 0 and 1: mean and std are of "
                        "other images, or on another scale (pixels in [0, 1] are meant)")]
    return []


def _preprocessing(train, name, loader):
    found = []
    if not np.allclose(train.standardise.table, loader.standardise.table, atol=1e-6):
        apart = float(np.abs(train.standardise.table - loader.standardise.table).max())
        found.append(Finding("preprocessing", f"the same byte becomes another number in the {name} set than in "
                                              f"training, up to {apart:.2g} apart: standardise both with the training set's "
                                              "mean and std"))
    if loader.augment:
        found.append(Finding("preprocessing", f"the {name} set is augmented: its images change from one evaluation to the "
                                              "next"))
    return found


def _classes(name, dataset):
    seen = np.bincount(dataset.labels, minlength=len(dataset.classes))
    missing = [str(dataset.classes[index]) for index in np.flatnonzero(seen == 0)]
    if not missing:
        return []
    return [Finding("missing class", f"the {name} set has no image of {_few(missing)}: what is not seen cannot be learned, "
                                     "or measured")]


def _overlap(one, first, other, second):
    known = {_digest(image) for image in first.images}
    shared = sum(_digest(image) in known for image in second.images)
    if not shared:
        return []
    return [Finding("overlap", f"{shared:,} of the {len(second):,} images of the {other} set are in the {one} set, too: its "
                    "accuracy is not one of images that were never seen")]


def _digest(image):
    return hashlib.blake2b(image, digest_size=16).digest()


def _labels(train, test, learn):
    """A linear probe on small pictures: labels of one's own can be told from them a little, shuffled ones not.

    Where it cannot tell, the data may just be hard for it: the network itself is the second probe.
    """
    place = np.random.default_rng(0).permutation(len(train))[:PROBED]
    half = len(place) // 2
    fit, held = place[:half], place[half:]
    if half < 40:
        return []
    probes = {"a linear probe": lambda: _probe(train.images[fit], train.labels[fit], len(train.classes))}
    if learn is not None:
        probes["the network, trained on the others for a moment,"] = lambda: learn(np.setdiff1d(np.arange(len(train)), held))
    for probe in probes:
        right = probes[probe]()
        above, accuracy = _above_chance(right(train.images[held], train.labels[held]), train.labels[held])
        if above >= SURE:
            break
    else:
        return [Finding("shuffled labels", f"{probe} names {accuracy:.1%} of held-out images of the training set right, "
                                           "which is what guessing gives: labels and images may not belong together")]
    if test is not None and len(test) >= 40:
        images, labels = test.images[:PROBED], test.labels[:PROBED]
        above, accuracy = _above_chance(right(images, labels), labels)
        if above < SURE:
            return [Finding("shuffled labels", f"{probe} works on the training set and names {accuracy:.1%} of the test set "
                                               "right, which is what guessing gives: the test set's labels are others, or "
                                               "in another order")]
    return []


def _features(images):
    """(N, F): each image in SIDE x SIDE means a channel, and 1."""
    N, H, W, C = images.shape
    rows, columns = (np.arange(min(SIDE, size)) * size // min(SIDE, size) for size in (H, W))
    small = np.add.reduceat(np.add.reduceat(images.astype(np.float64), rows, 1), columns, 2).reshape(N, -1)
    small = small / small.max(initial=1)
    # A square of each as well: a class may be told by how strong something is.
    return np.concatenate([small, (small - small.mean(1, keepdims=True)) ** 2, np.ones((N, 1))], 1)


def _probe(images, labels, classes):
    x, y = _features(images), np.eye(classes)[labels]
    weight = np.linalg.solve(x.T @ x + 1e-2 * len(x) * np.eye(x.shape[1]) / x.shape[1], x.T @ y)
    return lambda images, labels: (_features(images) @ weight).argmax(1) == labels


def _above_chance(right, labels):
    """(standard deviations above the commonest class's share, accuracy) of what was named right."""
    chance = np.bincount(labels).max() / len(labels)
    return (right.mean() - chance) / np.sqrt(chance * (1 - chance) / len(labels) + 1e-12), float(right.mean())
