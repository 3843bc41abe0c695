"""Reads any image file as the model expects it: upright, RGB, its central square scaled to 64x64 pixels."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.errors import UserError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")  # Pillow knows more; some of those start programs


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file of any size and scales its central square to 64x64.

    Args:
        path: the file. Grayscale, CMYK, 16-bit and palette images become RGB; transparent pixels become white; of an
            animation, the first frame is read.

    Returns:
        (64, 64, 3) uint8.

    Raises:
        UserError: it is missing, a folder or not an image; the message names it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images and odd EXIF data
            with Image.open(path, formats=FORMATS) as image:
                upright = _to_rgb(ImageOps.exif_transpose(image))
                return np.asarray(ImageOps.fit(upright, (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS))
    except IsADirectoryError:
        raise UserError(f"{printable(path)} is a folder; name the images in it") from None
    except Image.UnidentifiedImageError:
        raise UserError(f"{printable(path)} is not an image that can be read ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow raises many kinds on damaged data
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        raise UserError(f"cannot read {printable(path)} ({reason})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits per pixel: convert() would clip them at 255
        levels = np.nan_to_num(np.asarray(image, "float64"))
        scales = [1.0] * (image.mode == "F") + [255, 65535, levels.max()]  # the file does not say which level is white
        white = next(scale for scale in scales if levels.max() <= scale)
        image = Image.fromarray(np.rint(255 * (levels / max(white, 1)).clip(0, 1)).astype("uint8"))
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
