"""One picture from a file, as pixels: what `minires predict` sees is what training and `minires eval` saw."""

from __future__ import annotations

import warnings

import numpy as np

from minires.arguments import count
from minires.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}  # of a folder's pictures
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MOST_SIDE = 2**12  # pixels that a picture is made
MOST_PIXELS = 2**26  # 8192 x 8192: a picture that unpacks to more is a slip, or meant to fill the memory
_TRANSPARENT = ("RGBA", "LA", "PA", "RGBa", "La")


def read_picture(path):
    """A Pillow image of mode RGB: upright (its EXIF orientation applied), transparent parts on white, grey in all channels,
    16-bit grey scaled to 8 bits, of an animation the first picture.

    UserError for a file that is no picture, is damaged, has more than MOST_PIXELS, or pixels of 32 bits without a range.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's about odd metadata
            with Image.open(path, formats=FORMATS) as picture:
                mode, pixels = picture.mode, picture.width * picture.height
                if pixels > MOST_PIXELS:
                    raise UserError(f"{path} has {picture.width} x {picture.height} pixels: expected at most "
                                    f"{MOST_PIXELS:,} in all, resize it first")
                if mode in ("I", "F"):
                    raise UserError(f"{path} has pixels of mode {mode}, whose black and white nothing says: expected 8 or "
                                    "16 bits a channel, convert it first")
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                if mode.startswith("I;16"):
                    values = np.asarray(upright).astype(np.uint32)
                    upright = Image.fromarray(((values + 128) // 257).astype(np.uint8))
                if upright.mode in _TRANSPARENT or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
                return upright.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # what a picture's decoder raises for damage is no fixed list
        raise UserError(f"{path} cannot be read as a picture ({str(error)[:200] or type(error).__name__}): expected a .png "
                        "or .jpg file") from error


def square(picture, size):
    """A picture of mode RGB as (size, size, 3) uint8: its shorter side is made `size` pixels long, and the middle is taken.

    One that is of that size already is left as it is, bit by bit.
    """
    from PIL import Image, ImageOps

    size = count("size", size, MOST_SIDE)
    if picture.size != (size, size):
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(picture)


def read_pixels(path, size=None) -> np.ndarray:
    """(H, W, 3) uint8 of a picture's file, see `read_picture`; with a size (size, size, 3), see `square`."""
    picture = read_picture(path)
    return np.asarray(picture) if size is None else square(picture, size)
