"""Draws the sample set, ten classes of shapes in Tiny ImageNet's folder layout, so that everything can run offline.

The class is the shape's outline; hue, brightness, size, position and angle are random and do not depend on it. Each
image is a pure function of (seed, split, class, number), so a larger set contains the smaller one.
"""

import colorsys
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

from tiny_imagenet.cli import command
from tiny_imagenet.config import IMAGE_SIZE, MAX_INT
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import disk_errors, folder_lock, remove, write_atomically

OVERSAMPLE = 4  # shapes are drawn this many times larger, then averaged down, for smooth edges
GRAYSCALE_EVERY = 50  # one image in 50 is a one-channel JPEG; in Tiny ImageNet it is about the same share
RADIUS = (13.0, 21.0)  # pixels, from the shape's center to its farthest corner
MAX_OFFSET, MAX_TILT = 9.0, np.pi / 8  # of the shape: pixels from the image's center along each axis; radians
BACKGROUND = (30.0, 150.0)  # mean brightness, of 255
CONTRAST = (70.0, 120.0)  # the shape is always brighter than its background: otherwise a linear model would not learn
MAX_LINES, MAX_BLOBS = 4, 8  # of the clutter behind the shape
NOISE = 8.0  # standard deviation, of 255
LUMA = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue in the brightness, as in JPEG
MARKER = "sample_set.json"  # marks a folder as a sample set and says which one

# Outlines: corners as complex numbers x + iy, with y pointing down; _fit scales them to the unit circle


def _arc(start: float, end: float) -> np.ndarray:
    """Points on the unit circle, between two angles in degrees."""
    return np.exp(1j * np.radians(np.linspace(start, end, 48)))


def _star() -> np.ndarray:
    return np.tile([1.0, 0.42], 5) * np.exp(2j * np.pi * np.arange(10) / 10 - 0.5j * np.pi)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64)
    return 16 * np.sin(t) ** 3 - 1j * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))


def _fit(corners) -> np.ndarray:
    """Moves and scales an outline: the bounding box is centered on 0, and the farthest corner is at distance 1."""
    points = np.asarray(corners, complex)
    center = (points.real.min() + points.real.max() + 1j * (points.imag.min() + points.imag.max())) / 2
    return (points - center) / np.abs(points - center).max()


@dataclass(frozen=True)
class Shape:
    """One class: its id, its names in words.txt and its outline."""

    class_id: str
    names: str
    outline: np.ndarray


# The ids look like WordNet's but are not in it. As in Tiny ImageNet, they are not sorted, and names have synonyms
SHAPES = (
    Shape("n90000004", "circle, disc", _fit(_arc(0, 360))),
    Shape("n90000009", "square", _fit([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])),
    Shape("n90000001", "triangle", _fit(1j * np.exp(2j * np.pi * np.array([0.5, 1.5, 2.5]) / 3))),
    Shape("n90000007", "star, five-pointed star", _fit(_star())),
    Shape("n90000003", "cross, plus sign", _fit([c * 1j**k for k in range(4) for c in (3 - 1j, 3 + 1j, 1 + 1j)])),
    Shape("n90000010", "ring, annulus", _fit([*_arc(0, 360), *0.6 * _arc(360, 0)])),
    Shape("n90000002", "crescent, half moon", _fit([*_arc(60, 300), *(1.0 + 1.0 * _arc(240, 120))])),
    Shape("n90000006", "heart", _fit(_heart())),
    Shape("n90000008", "arrow", _fit([-4j, 3 - 1j, 1 - 1j, 1 + 4j, -1 + 4j, -1 - 1j, -3 - 1j])),
    Shape("n90000005", "hourglass, egg timer", _fit([-3 - 4j, 3 - 4j, 0.5, 3 + 4j, -3 + 4j, -0.5])),
)


def _color(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """A color of random hue and the given brightness, (3,) float in [0, 255]."""
    pure = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), 1, 1))
    return np.clip(brightness + rng.uniform(0.1, 0.5) * (pure - pure @ LUMA), 0, 255)


def _background(rng: np.random.Generator, brightness: float) -> Image.Image:
    """A gradient between two colors in a random direction, with coarse clouds over it, oversampled."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 8), np.linspace(-0.5, 0.5, 8))
    share = 0.5 + np.clip(x * np.cos(angle) + y * np.sin(angle), -0.5, 0.5)[..., None]
    first, second = (_color(rng, brightness + rng.uniform(-20, 20)) for _ in range(2))
    pixels = first + share * (second - first) + rng.normal(0, 12, (8, 8, 1))
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return small.resize((IMAGE_SIZE * OVERSAMPLE,) * 2, Image.Resampling.BICUBIC)


def _polygon(draw: ImageDraw.ImageDraw, points: np.ndarray, color: np.ndarray) -> None:
    corners = OVERSAMPLE * np.stack([points.real, points.imag], axis=1)
    draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(c) for c in color))


def _clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, brightness: float) -> None:
    """Thin lines and small blobs of three to five corners, in colors between those of background and shape."""
    for _ in range(rng.integers(1, MAX_LINES + 1)):
        ends = OVERSAMPLE * rng.uniform(0, IMAGE_SIZE, 4)
        color = _color(rng, brightness + rng.uniform(-50, 50))
        draw.line(tuple(ends), fill=tuple(int(c) for c in color), width=int(rng.integers(3, 7)))
    for _ in range(rng.integers(2, MAX_BLOBS + 1)):
        corners = np.exp(1j * np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 6))))
        center = complex(*rng.uniform(0, IMAGE_SIZE, 2))
        _polygon(draw, center + rng.uniform(2, 5) * corners, _color(rng, brightness + rng.uniform(-60, 60)))


def draw_image(outline: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, ...]]:
    """Draws one shape in clutter.

    Args:
        outline: corners as complex numbers in the unit circle, with y pointing down.
        rng: the only source of randomness.

    Returns:
        The image, 64x64 RGB, and the shape's bounding box (x0, y0, x1, y1) in pixels, ends included.
    """
    brightness = rng.uniform(*BACKGROUND)
    canvas = _background(rng, brightness)
    draw = ImageDraw.Draw(canvas)
    _clutter(rng, draw, brightness)
    center = IMAGE_SIZE / 2 + complex(*rng.uniform(-MAX_OFFSET, MAX_OFFSET, 2)) + 0.5j * IMAGE_SIZE
    points = center + rng.uniform(*RADIUS) * np.exp(1j * rng.uniform(-MAX_TILT, MAX_TILT)) * outline
    _polygon(draw, points, _color(rng, brightness + rng.uniform(*CONTRAST)))
    pixels = np.asarray(canvas.reduce(OVERSAMPLE)) + rng.normal(0, NOISE, (IMAGE_SIZE, IMAGE_SIZE, 3))
    box = points.real.min(), points.imag.min(), points.real.max(), points.imag.max()
    box = tuple(int(np.clip(corner, 0, IMAGE_SIZE - 1)) for corner in box)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), box


def _save_image(path: Path, label: int, key: tuple[int, int, int]) -> str:
    """Draws and saves the image `key` (seed, split, number) of a class; its box as four tab-separated numbers."""
    seed, split, number = key
    image, box = draw_image(SHAPES[label].outline, np.random.default_rng([seed, split, label, number]))
    if number % GRAYSCALE_EVERY == GRAYSCALE_EVERY - 1:
        image = image.convert("L")
    image.save(path, "JPEG", quality=90)
    return "\t".join(map(str, box))


def _draw_train_class(folder: Path, label: int, count: int, seed: int) -> None:
    """train/CLASS_ID/: the images and a list of their boxes."""
    class_id = SHAPES[label].class_id
    images = folder / "train" / class_id / "images"
    images.mkdir(parents=True)
    names = [f"{class_id}_{number}.JPEG" for number in range(count)]
    lines = [f"{name}\t{_save_image(images / name, label, (seed, 0, k))}\n" for k, name in enumerate(names)]
    (images.parent / f"{class_id}_boxes.txt").write_text("".join(lines))


def _draw_mixed(folder: Path, split: str, num_classes: int, count: int, seed: int) -> None:
    """val/ or test/: the classes take turns; only val/ has a list of labels and boxes."""
    images = folder / split / "images"
    images.mkdir(parents=True)
    lines = []
    for k in range(num_classes * count):
        (number, label), name = divmod(k, num_classes), f"{split}_{k}.JPEG"
        box = _save_image(images / name, label, (seed, 1 if split == "val" else 2, number))
        lines.append(f"{name}\t{SHAPES[label].class_id}\t{box}\n")
    if split == "val":
        (images.parent / "val_annotations.txt").write_text("".join(lines))


def _draw_all(folder: Path, num_classes: int, train_per_class: int, val_per_class: int, seed: int) -> None:
    folder.mkdir()
    (folder / "wnids.txt").write_text("".join(f"{shape.class_id}\n" for shape in SHAPES[:num_classes]))
    by_id = sorted(SHAPES, key=lambda shape: shape.class_id)  # sorted, and more than are used, as in Tiny ImageNet
    (folder / "words.txt").write_text("".join(f"{shape.class_id}\t{shape.names}\n" for shape in by_id))
    for label in tqdm(range(num_classes), desc="drawing", unit="class", leave=False, disable=None):
        _draw_train_class(folder, label, train_per_class, seed)
    _draw_mixed(folder, "val", num_classes, val_per_class, seed)
    _draw_mixed(folder, "test", num_classes, 1, seed)


def _read_marker(folder: Path) -> dict | None:
    """The marker of a complete sample set, or None if the folder is missing or empty."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} exists and is not a sample set; move it away or choose another folder") from None


def draw_sample_set(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]")] = Path("sample-data"),
    num_classes: int = 10,
    train_per_class: int = 320,
    val_per_class: int = 100,
    seed: int = 0,
) -> Path:
    """Draws the sample set in Tiny ImageNet's layout, unless it is already there; another sample set is replaced.

    Args:
        folder: the dataset's root.
        num_classes: how many of the ten shapes, from the first (1 to 10).
        train_per_class: images of each class in train/ (1 or more).
        val_per_class: images of each class in val/ (1 or more).
        seed: of all images (0 or more).

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else or cannot be written, or an argument is out of range.
    """
    counts = {"num_classes": num_classes, "train_per_class": train_per_class, "val_per_class": val_per_class}
    parameters = counts | {"seed": seed}
    for name, value in parameters.items():
        low, high = int(name != "seed"), len(SHAPES) if name == "num_classes" else MAX_INT
        if not low <= value <= high:
            raise UserError(f"{name} is {value}; it must be {low} to {high}")
    identity = parameters | {"drawn_by": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}
    place = folder.resolve()

    def write(temporary: Path) -> None:
        _draw_all(temporary, **parameters)
        (temporary / MARKER).write_text(json.dumps(identity, indent=1) + "\n")
        remove(place)  # an older sample set, kept until now

    with disk_errors(folder):
        place.parent.mkdir(parents=True, exist_ok=True)
    with folder_lock(place.parent):
        if _read_marker(folder) == identity:
            print(f"{folder}: the sample set is already there")
            return folder
        write_atomically(place, write)
    print(
        f"{folder}: {num_classes} classes, each with {train_per_class} training and {val_per_class} validation images"
    )
    return folder


@command
def main() -> None:
    """Runs the command."""
    tyro.cli(draw_sample_set)


if __name__ == "__main__":
    main()
