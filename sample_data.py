"""Draws the sample set: ten classes of shapes at 64x64, in Tiny ImageNet's folder layout, so that all runs offline.

Hue, brightness, size, place and angle are random and say nothing about the class, whose name is the outline's shape.
Every picture is a pure function of (seed, split, class, number): a larger set contains the smaller one.
"""

from startup import UserError, command, command_line

import colorsys
import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image, ImageDraw
from tqdm import tqdm

from files import locked

SIZE = 64  # pixels, each side
OVERSAMPLE = 4  # shapes are drawn this many times larger, then averaged down: smooth edges
JPEG_QUALITY = 90
GREY_EVERY = 50  # one picture in so many is a one-channel JPEG; Tiny ImageNet has 2 % of them
RADIUS = (13.0, 21.0)  # pixels, from the shape's middle to its farthest corner
OFF_CENTRE = 9.0  # pixels, the most that a shape's middle is off the picture's, along each axis
TILT = np.pi / 8  # radians, the most that a shape is turned, either way
BACKGROUND = (30.0, 150.0)  # mean brightness, of 255
CONTRAST = (70.0, 120.0)  # how much brighter the shape is: darker ones as well would leave a linear model nothing
LINES, BLOBS = 4, 8  # the most there are of each, behind the shape
NOISE = 8.0  # standard deviation, of 255
BRIGHTNESS = np.array([0.299, 0.587, 0.114])  # weights of red, green and blue, as in JPEG
MARKER = "sample_set.json"  # says that a folder is a sample set, and which one
SPLITS = ("train", "val", "test")


# Outlines: corners as complex numbers x + iy, y pointing down; _fit puts them into the unit circle.


def _arc(start: float, end: float) -> np.ndarray:
    """Points on the unit circle between two angles in degrees."""
    return np.exp(1j * np.radians(np.linspace(start, end, 48)))


def _star(corners: int, inner: float) -> np.ndarray:
    """A star standing upright; its inner corners are at a share `inner` of its radius."""
    radii = np.tile([1.0, inner], corners)
    return radii * np.exp(2j * np.pi * np.arange(2 * corners) / (2 * corners) - 0.5j * np.pi)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64)
    return 16 * np.sin(t) ** 3 - 1j * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))


def _fit(corners) -> np.ndarray:
    """Moves and scales an outline: bounding box around 0, farthest corner at distance 1."""
    points = np.asarray(corners, complex)
    middle = (points.real.min() + points.real.max() + 1j * (points.imag.min() + points.imag.max())) / 2
    return (points - middle) / np.abs(points - middle).max()


@dataclass(frozen=True)
class Shape:
    """One class: its id, its line in words.txt and its outline."""

    class_id: str
    words: str
    outline: np.ndarray


# The ids look like WordNet's and are none of them. As in Tiny ImageNet, wnids.txt is not sorted, and
# words.txt has synonyms behind commas.
SHAPES = (
    Shape("n90000004", "circle, disc", _fit(_arc(0, 360))),
    Shape("n90000009", "square", _fit([-1 - 1j, 1 - 1j, 1 + 1j, -1 + 1j])),
    Shape("n90000001", "triangle", _fit(1j * np.exp(2j * np.pi * np.array([0.5, 1.5, 2.5]) / 3))),
    Shape("n90000007", "star, five-pointed star", _fit(_star(5, 0.42))),
    Shape("n90000003", "cross, plus sign", _fit([c * 1j**k for k in range(4) for c in (3 - 1j, 3 + 1j, 1 + 1j)])),
    Shape("n90000010", "ring, annulus", _fit([*_arc(0, 360), *0.6 * _arc(360, 0)])),
    Shape("n90000002", "crescent, half moon", _fit([*_arc(60, 300), *(1.0 + 1.0 * _arc(240, 120))])),
    Shape("n90000006", "heart", _fit(_heart())),
    Shape("n90000008", "arrow", _fit([-4j, 3 - 1j, 1 - 1j, 1 + 4j, -1 + 4j, -1 - 1j, -3 - 1j])),
    Shape("n90000005", "hourglass, egg timer", _fit([-3 - 4j, 3 - 4j, 0.5, 3 + 4j, -3 + 4j, -0.5])),
)


# One picture.


def _colour(rng: np.random.Generator, brightness: float) -> np.ndarray:
    """A colour of random hue and the given brightness, (3,) float in [0, 255]."""
    pure = 255 * np.array(colorsys.hsv_to_rgb(rng.random(), 1, 1))
    return np.clip(brightness + rng.uniform(0.1, 0.5) * (pure - pure @ BRIGHTNESS), 0, 255)


def _background(rng: np.random.Generator, brightness: float) -> Image.Image:
    """A gradient between two colours in a random direction, with coarse clouds over it, at full oversampling."""
    angle = rng.uniform(0, 2 * np.pi)
    x, y = np.meshgrid(np.linspace(-0.5, 0.5, 8), np.linspace(-0.5, 0.5, 8))
    share = 0.5 + np.clip(x * np.cos(angle) + y * np.sin(angle), -0.5, 0.5)[..., None]
    first, second = (_colour(rng, brightness + rng.uniform(-20, 20)) for _ in range(2))
    pixels = first + share * (second - first) + rng.normal(0, 12, (8, 8, 1))
    small = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return small.resize((SIZE * OVERSAMPLE,) * 2, Image.Resampling.BICUBIC)


def _polygon(draw: ImageDraw.ImageDraw, points: np.ndarray, colour: np.ndarray) -> None:
    corners = OVERSAMPLE * np.stack([points.real, points.imag], axis=1)
    draw.polygon([tuple(corner) for corner in corners], fill=tuple(int(c) for c in colour))


def _clutter(rng: np.random.Generator, draw: ImageDraw.ImageDraw, brightness: float) -> None:
    """Thin lines and small blobs of three to five corners, in colours between background and shape."""
    for _ in range(rng.integers(1, LINES + 1)):
        ends = OVERSAMPLE * rng.uniform(0, SIZE, 4)
        colour = _colour(rng, brightness + rng.uniform(-50, 50))
        draw.line(tuple(ends), fill=tuple(int(c) for c in colour), width=int(rng.integers(3, 7)))
    for _ in range(rng.integers(2, BLOBS + 1)):
        corners = np.exp(1j * np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 6))))
        place = complex(*rng.uniform(0, SIZE, 2))
        _polygon(draw, place + rng.uniform(2, 5) * corners, _colour(rng, brightness + rng.uniform(-60, 60)))


def _place(rng: np.random.Generator, outline: np.ndarray) -> np.ndarray:
    """The outline at a random place, size and angle, in pixels."""
    middle = SIZE / 2 + complex(*rng.uniform(-OFF_CENTRE, OFF_CENTRE, 2)) + 0.5j * SIZE
    return middle + rng.uniform(*RADIUS) * np.exp(1j * rng.uniform(-TILT, TILT)) * outline


def _box(points: np.ndarray) -> tuple[int, int, int, int]:
    """First and last column and row that the points touch: x0, y0, x1, y1."""
    corners = points.real.min(), points.imag.min(), points.real.max(), points.imag.max()
    return tuple(int(np.clip(c, 0, SIZE - 1)) for c in corners)


def draw_picture(outline: np.ndarray, rng: np.random.Generator) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Draws one shape in clutter.

    Args:
        outline: corners as complex numbers in the unit circle, y pointing down.
        rng: all that is random comes from it.

    Returns:
        The picture, 64x64 RGB, and the shape's bounding box (x0, y0, x1, y1) in pixels, ends included.
    """
    brightness = rng.uniform(*BACKGROUND)
    canvas = _background(rng, brightness)
    draw = ImageDraw.Draw(canvas)
    _clutter(rng, draw, brightness)
    points = _place(rng, outline)
    _polygon(draw, points, _colour(rng, brightness + rng.uniform(*CONTRAST)))
    pixels = np.asarray(canvas.reduce(OVERSAMPLE)) + rng.normal(0, NOISE, (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), _box(points)


# The folder.


def _save_picture(path: Path, label: int, key: tuple[int, int, int]) -> str:
    """Draws one picture, saves it and returns its box as four tab-separated numbers; key: seed, split, number."""
    seed, split, number = key
    picture, box = draw_picture(SHAPES[label].outline, np.random.default_rng([seed, split, label, number]))
    if number % GREY_EVERY == GREY_EVERY - 1:
        picture = picture.convert("L")
    picture.save(path, "JPEG", quality=JPEG_QUALITY)
    return "\t".join(map(str, box))


def _draw_train_class(folder: Path, label: int, count: int, seed: int) -> None:
    """train/<class id>/: images/<class id>_0.JPEG and so on, and their boxes."""
    class_id = SHAPES[label].class_id
    images = folder / "train" / class_id / "images"
    images.mkdir(parents=True)
    names = [f"{class_id}_{number}.JPEG" for number in range(count)]
    lines = [f"{name}\t{_save_picture(images / name, label, (seed, 0, k))}\n" for k, name in enumerate(names)]
    (images.parent / f"{class_id}_boxes.txt").write_text("".join(lines))


def _draw_mixed(folder: Path, split: str, num_classes: int, count: int, seed: int) -> None:
    """val/ or test/: the classes take turns; only val/ has a list of labels and boxes."""
    images = folder / split / "images"
    images.mkdir(parents=True)
    lines = []
    for k in range(num_classes * count):
        number, label = divmod(k, num_classes)
        name = f"{split}_{k}.JPEG"
        box = _save_picture(images / name, label, (seed, SPLITS.index(split), number))
        lines.append(f"{name}\t{SHAPES[label].class_id}\t{box}\n")
    if split == "val":
        (images.parent / "val_annotations.txt").write_text("".join(lines))


def _draw_all(folder: Path, num_classes: int, train_per_class: int, val_per_class: int, seed: int) -> None:
    shapes = SHAPES[:num_classes]
    (folder / "wnids.txt").write_text("".join(f"{shape.class_id}\n" for shape in shapes))
    by_id = sorted(SHAPES, key=lambda shape: shape.class_id)  # as in Tiny ImageNet: sorted, and of more than is used
    (folder / "words.txt").write_text("".join(f"{shape.class_id}\t{shape.words}\n" for shape in by_id))
    for label in tqdm(range(num_classes), desc=f"drawing {folder.stem}", unit="class", leave=False, disable=None):
        _draw_train_class(folder, label, train_per_class, seed)
    _draw_mixed(folder, "val", num_classes, val_per_class, seed)
    _draw_mixed(folder, "test", num_classes, 1, seed)


def _identity(**parameters: int) -> dict:
    """What the marker holds. This file's hash is in it: when the drawing changes, an older set is drawn anew."""
    return {**parameters, "drawn_by": hashlib.sha256(Path(__file__).read_bytes()).hexdigest()}


def _read_marker(folder: Path) -> dict | None:
    """The marker of a whole sample set; None for a folder that is missing or empty; anything else is an error."""
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        return json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        raise UserError(f"{folder} exists and is no sample set; move it away, or name another folder") from None


def _draw_aside(folder: Path, identity: dict, **parameters: int) -> None:
    """Draws the set beside its place and, when it is whole, moves it there; an older sample set is removed."""
    place = folder.resolve()
    part = place.with_name(f"{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)
    with locked(place.parent):
        if _read_marker(place) == identity:  # another process has just drawn it
            return
        shutil.rmtree(part, ignore_errors=True)  # of a draw that was killed
        part.mkdir()
        try:
            _draw_all(part, **parameters)
            (part / MARKER).write_text(json.dumps(identity, indent=1) + "\n")
            if place.exists():
                shutil.rmtree(place)
            part.rename(place)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _check_parameters(num_classes: int, train_per_class: int, val_per_class: int, seed: int) -> None:
    if not 1 <= num_classes <= len(SHAPES):
        raise UserError(f"num_classes is {num_classes}; choose 1 to {len(SHAPES)}")
    if train_per_class < 1 or val_per_class < 1:
        raise UserError(f"train_per_class is {train_per_class}, val_per_class {val_per_class}; both must be at least 1")
    if seed < 0:
        raise UserError(f"seed is {seed}; it must not be negative")


def draw_sample_set(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="[DIR]")] = Path("sample-data"),
    num_classes: int = 10,
    train_per_class: int = 320,
    val_per_class: int = 100,
    seed: int = 0,
) -> Path:
    """Draws the sample set into a folder, in Tiny ImageNet's layout; one that is there already is left alone.

    It is drawn beside its place and moved there when whole, so a draw that was killed leaves nothing behind
    that could be taken for a data set. A sample set of other parameters in that place is replaced.

    Args:
        folder: the data set's root.
        num_classes: the first so many shapes, 1 to 10.
        train_per_class: pictures of each class in train/, at least 1.
        val_per_class: pictures of each class in val/, at least 1.
        seed: another seed, other pictures; 0 or more.

    Returns:
        The folder.

    Raises:
        UserError: the folder holds something else, cannot be written, or a parameter is out of range.
    """
    counts = {"num_classes": num_classes, "train_per_class": train_per_class, "val_per_class": val_per_class}
    parameters = {**counts, "seed": seed}
    _check_parameters(**parameters)
    identity = _identity(**parameters)
    folder = Path(folder)
    if _read_marker(folder) == identity:
        print(f"{folder}: the sample set is there already")
        return folder
    try:
        _draw_aside(folder, identity, **parameters)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror or error}; mend that or choose another folder") from error
    print(f"{folder}: drew {num_classes} classes, {train_per_class} train and {val_per_class} val pictures of each")
    return folder


@command
def main() -> None:
    """Draws the set that the command line asks for."""

    @wraps(draw_sample_set)
    def asked(*arguments, **options):
        return partial(draw_sample_set, *arguments, **options)

    command_line(asked)()  # drawn when the command line has been read, whose errors are held back


if __name__ == "__main__":
    main()
