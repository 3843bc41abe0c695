"""Reads any image file as the model expects it: upright, RGB, its central square scaled to 64x64 pixels."""

import errno
import warnings
from functools import cache
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import ExifTags, Image

from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.file_utils import disk_errors

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "QOI", "TGA", "PCX", "SGI")
"""Pillow knows more: some start programs, some only name the format."""
HEIF_SUFFIXES = {".heic", ".heics", ".heif", ".heifs", ".hif"}  # Pillow cannot read them: reported, not overlooked
MAX_PIXELS = 8192 * 8192  # decoded: about 0.5 GB; of a JPEG, after it was scaled down by decoding
LARGE_SIDE = 8 * IMAGE_SIZE  # to which decoding may scale a JPEG down
UPRIGHT = dict(zip(range(2, 9), map(Image.Transpose, (0, 3, 1, 5, 4, 6, 2)), strict=True))
"""EXIF orientation -> what turns the image upright, as in Pillow's ImageOps.exif_transpose."""
UNUSABLE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of the system that concern one file; others (bad disk, too many open files) concern the machine."""

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata and large images


class ImageFile(NamedTuple):
    """What an image file holds."""

    pixels: np.ndarray  # (64, 64, 3) uint8
    is_grayscale: bool
    is_scaled: bool = False  # because it has another size


class BadImageError(UserError):
    """A file that cannot be used as an image; `reason` says why, without its name."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"cannot read {printable(path)} ({printable(reason)})")
        self.reason = printable(reason)


def is_image(name: str) -> bool:
    """Whether a file, by its name, is an image."""
    return name.lower().endswith(_suffixes()) and not name.startswith(".")  # macOS leaves "._x.JPEG" files


@cache
def _suffixes() -> tuple[str, ...]:
    known = Image.registered_extensions().items()
    return tuple({suffix for suffix, form in known if form in (*FORMATS, "MPO")} | HEIF_SUFFIXES)


def read_image(path: str | Path) -> np.ndarray:
    """Reads an image file of any size and scales its central square to 64x64.

    Args:
        path: the file. Grayscale, CMYK, 16-bit and palette images become RGB; transparent pixels become white; of an
            animation, the first frame is read.

    Returns:
        (64, 64, 3) uint8.

    Raises:
        BadImageError: it is missing, a folder or not an image; the message names it.
        UserError: reading it failed for another reason, such as a bad disk or too many open files.
    """
    return read_image_file(path).pixels


def read_image_file(path: str | Path) -> ImageFile:
    """As `read_image`, with what the file held."""
    with disk_errors(Path(path)):
        try:
            with Path(path).open("rb") as file:
                return _decode(file)
        except IsADirectoryError:
            raise BadImageError(path, "a folder; name the images in it") from None
        except Exception as error:  # Pillow raises many kinds on damaged data
            number = getattr(error, "errno", None)
            if isinstance(error, MemoryError) or (number and number not in UNUSABLE):
                raise
            reason = error.strerror if number else str(error).split("\n")[0] or type(error).__name__
            raise BadImageError(path, reason) from None


def _decode(file: BinaryIO) -> ImageFile:
    if not (start := file.read(12)):
        raise ValueError("empty")
    try:
        image = Image.open(file, formats=FORMATS)
        is_scaled = image.size != (IMAGE_SIZE, IMAGE_SIZE)
        image.draft(None, (LARGE_SIDE, LARGE_SIDE))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Image.DecompressionBombError:
        raise ValueError(f"too large: more than {MAX_PIXELS:,} pixels; scale it down") from None
    except Image.UnidentifiedImageError:
        problem = "HEIC or a video" if start[4:8] == b"ftyp" else "not an image, or of a format that cannot be read"
        raise ValueError(f"{problem}; convert it to JPEG or PNG") from None
    image.load()
    bands = image.getbands()
    is_grayscale = len(bands) <= 2 and bands[0] != "P"
    return ImageFile(np.asarray(_turn_upright(_to_small_rgb(image), image)), is_grayscale, is_scaled)


def _turn_upright(small: Image.Image, original: Image.Image) -> Image.Image:
    try:
        return small.transpose(UPRIGHT[original.getexif()[ExifTags.Base.Orientation]])
    except Exception:  # no orientation, or broken metadata, which is no reason to refuse the pixels
        return small


def _to_small_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits per pixel: convert() would clip them at 255
        levels = np.nan_to_num(np.array(image, "float32"), copy=False, posinf=0, neginf=0)
        scales = [1.0] * (image.mode == "F") + [255, 65535, levels.max()]  # the file does not say which level is white
        white = next(scale for scale in scales if levels.max() <= scale)
        shares = np.asarray(_scale(Image.fromarray(levels))) / max(white, 1)
        return Image.fromarray(np.rint(255 * shares.clip(0, 1)).astype("uint8")).convert("RGB")
    if image.mode in ("1", "P", "PA") or "transparency" in image.info:  # resize() would pick single pixels
        image = image.convert("RGBA" if image.has_transparency_data else "L" if image.mode == "1" else "RGB")
    small = _scale(image)
    if not small.has_transparency_data:
        return small.convert("RGB")
    small = small.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", small.size, "white"), small).convert("RGB")


def _scale(image: Image.Image) -> Image.Image:
    """The central square, scaled to 64x64, antialiased; an image of this size is unchanged."""
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.LANCZOS, box)
