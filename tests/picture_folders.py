"""Folders of pictures, train/CLASS/*.png and test/CLASS/*.png, as users have them."""
import numpy as np
from PIL import Image


def write_pictures(folder, classes, train, test, shape, brighter=0):
    """Write so many pictures of noise, (height, width), the classes in turn; -> the folder.

    brighter: what each class has more in a colour of its own, 0 to let nothing tell them apart.
    """
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        for index in range(count):
            place = folder / part / classes[index % len(classes)]
            place.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256 - brighter, (*shape, 3))
            pixels[..., index % len(classes) % 3] += brighter
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return folder
