"""One picture from a file, as pixels: what `minires predict` sees is what training saw."""

from __future__ import annotations

import warnings

import numpy as np

from minires.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg"}
OTHER_SUFFIXES = {".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic"}  # pictures, too, that are not read
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MOST_PIXELS = 2**24  # 4096 x 4096: a picture that unpacks to more is a slip, or meant to fill the memory
_DEEP_MODES = ("I", "F")  # Pillow's names for 16- and 32-bit pixels begin so


def read_picture(path):
    """A Pillow image of mode RGB: upright (its EXIF orientation applied), transparent parts on black, grey in all channels.

    UserError for a file that is no picture, is damaged, has more than MOST_PIXELS or pixels of more than 8 bits a channel.
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
                if mode.startswith(_DEEP_MODES):
                    raise UserError(f"{path} has pixels of mode {mode}: expected 8 bits a channel, convert it first")
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
                    upright = upright.convert("RGBA")
                    black = Image.new("RGBA", upright.size, (0, 0, 0, 255))
                    upright = Image.alpha_composite(black, upright)
                return upright.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # what a picture's decoder raises for damage is no fixed list
        raise UserError(f"{path} cannot be read as a picture ({str(error)[:200] or type(error).__name__}): expected a .png "
                        "or .jpg file") from error


def read_pixels(path) -> np.ndarray:
    """(H, W, 3) uint8, see `read_picture`."""
    return np.asarray(read_picture(path))
