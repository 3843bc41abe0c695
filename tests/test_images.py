"""Any image file becomes 64x64 RGB, and one that cannot be read is named in one line."""

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tiny_imagenet.errors import UserError
from tiny_imagenet.images import read_image

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


def save(path: Path, pixels, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def test_an_image_of_the_right_size_is_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels)), pixels)


def test_the_central_square_is_cut_out(tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128, 1] = 200
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", pixels))[..., 1], 200)


def test_scaling_down_averages(tmp_path):
    """A fine checkerboard becomes even gray; a filter that picks single pixels would leave black and white."""
    board = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.abs(read_image(save(tmp_path / "a.png", board)).astype(int) - 127).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2)])
def test_tiny_images_are_scaled_up(tmp_path, size):
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.full((*size, 3), 77, np.uint8))), 77)


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255  # white above, black below, as it should be seen
    exif = Image.Exif()
    exif[0x0112] = 6  # stored by a camera that was held on its side: to be rotated clockwise by 90 degrees
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", np.rot90(pixels), exif=exif)), pixels)


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


def test_16_bits_are_scaled_and_not_clipped(tmp_path):
    assert (read_image(save(tmp_path / "a.png", np.full((64, 64), 0x80FF, np.uint16))) == 0x80).all()


@pytest.mark.parametrize("name", ["L.jpg", "CMYK.jpg", "RGB.webp", "1.png", "L.tif", "F.tif", "I.tif"])
def test_other_modes_become_rgb(tmp_path, name):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    found = read_image(save(tmp_path / name, pixels, mode=name.partition(".")[0])).astype(int)
    assert found.shape == (64, 64, 3)
    assert np.abs(found[[5, 60]] - np.array([255, 0])[:, None, None]).max() <= 3


def test_a_file_that_cannot_be_read_is_named_in_one_line(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    reasons = {"text.jpg": "not an image", "half.jpg": "truncated", "missing.jpg": "No such file", ".": "is a folder"}
    for name, words in (reasons | {"n" * 300: "File name too long", "\0": "null"}).items():
        with pytest.raises(UserError, match=words) as caught:
            read_image(f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_image_in_a_closed_folder_is_named_in_one_line(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o600)
    with pytest.raises(UserError, match="a.jpg .Permission denied"):
        read_image(tmp_path / "closed" / "a.jpg")
