"""Any image file becomes 64x64 RGB, and one that cannot be read is named in one line."""

import os
import struct
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image, ImageOps

from tiny_imagenet.images import BadImageError, read_image

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def save(path: Path, pixels, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_the_central_square_is_cut_out_and_scaled(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels)), pixels)
    wide = np.pad(pixels, ((0, 0), (64, 64), (0, 0)))
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", wide)), pixels)
    for size in ((1, 1), (1, 500), (3, 2)):
        np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.full((*size, 3), 77, np.uint8))), 77)
    board = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)  # averaged, not picked
    assert np.abs(read_image(save(tmp_path / "a.png", board)).astype(int) - 127).max() <= 2


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF data of (tag, type, count, value) as they are, right or wrong."""
    body = b"".join(struct.pack(">HHI4s", *entry) for entry in entries)
    return b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", len(entries)) + body + bytes(4)


ON_ITS_SIDE = (0x0112, 3, 1, b"\0\6\0\0")  # stored by a camera on its side: to be rotated clockwise by 90 degrees


@pytest.mark.parametrize(
    ("data", "is_turned"),
    [
        (exif(ON_ITS_SIDE), True),
        (exif(ON_ITS_SIDE, (0x011A, 2, 4, b"300\0")), True),  # a resolution as text
        (exif((0x0112, 3, 1, b"\0\x63\0\0")), False),
        (exif((0x0112, 2, 4, b"6\0\0\0")), False),
        (exif(ON_ITS_SIDE)[:20], False),
        (b"Exif\0\0garbage", False),
    ],
)
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_orientation_is_applied_and_other_metadata_ignored(tmp_path, data, is_turned, name):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    stored = np.rot90(pixels)  # left: white
    found = read_image(save(tmp_path / name, stored, exif=data)).astype(int)
    assert np.abs(found - (pixels if is_turned else stored)).mean() < 5


def test_a_phone_photo_is_scaled_like_the_whole_image(tmp_path):
    photo = Image.open(PHOTO).resize((4000, 3000), Image.Resampling.BICUBIC)
    exact = ImageOps.fit(photo, (64, 64), Image.Resampling.LANCZOS)
    photo.save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - np.asarray(exact)).max() <= 3


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32] = (255, 0, 0, 255)
    pixels[32:48] = (0, 0, 0, 128)
    found = read_image(save(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(found[[0, 40, 63], 0], [[255, 0, 0], [127, 127, 127], [255, 255, 255]])
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([10, 20, 30, 200, 0, 0])
    palette.paste(0, (0, 0, 64, 32))
    palette.save(tmp_path / "a.gif", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif")[[0, 63], 0], [[255] * 3, [200, 0, 0]])


@pytest.mark.parametrize("name", ["L.jpg", "CMYK.jpg", "RGB.webp", "1.png", "L.tif", "F.tif", "I.tif"])
def test_other_modes_become_rgb(tmp_path, name):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    found = read_image(save(tmp_path / name, pixels, mode=name.partition(".")[0])).astype(int)
    assert found.shape == (64, 64, 3)
    assert np.abs(found[[5, 60]] - np.array([255, 0])[:, None, None]).max() <= 3
    assert (read_image(save(tmp_path / "a.png", np.full((64, 64), 0x80FF, np.uint16))) == 0x80).all(), "16 bits"


def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")
    Image.new("1", (13000, 13000)).save(tmp_path / "large.png")
    Image.new("1", (20000, 20000)).save(tmp_path / "huge.png")
    reasons = {
        "text.jpg": "not an image",
        "half.jpg": "truncated",
        "missing.jpg": "No such file",
        ".": "a folder; name",
    }
    reasons |= {"a.heic": "HEIC", "large.png": "too large: more than 67,108,864 pixels", "huge.png": "too large: more"}
    for name, words in (reasons | {"n" * 300: "File name too long", "\0": "null"}).items():
        with pytest.raises(BadImageError, match=words) as caught:
            read_image(f"{tmp_path}/{name}")
        assert str(caught.value).isprintable() and ascii(str(tmp_path))[1:-1] in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_in_a_closed_folder_is_named_in_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o600)
    with pytest.raises(BadImageError, match="a.jpg .Permission denied"):
        read_image(tmp_path / "closed" / "a.jpg")
