"""Evaluation (centre and 10 crops) and kernel pictures, of VGG-16 with untrained weights: in batches, and one by one.

A round does the whole task once and returns its seconds.
"""

from startup import keras

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from config import BASE, RECIPES
from dataset import open_dataset
from evaluate import BATCH_SIZE, log_probabilities
from input_pipe import CENTER, as_tensor, ten_crops
from models import build_model, with_precision
from visualize import GREY, gradient_of, kernel_pictures, on_floats

CLASSES = 200
PICTURES = 200
LAYER, FILTERS = "conv2_2", 64
GREY_PICTURE = np.full((1, BASE.crop_size, BASE.crop_size, 3), GREY, "float32")


def model_of(precision: str, width: float = 1.0) -> keras.Model:
    """VGG-16, of the full width if no other is given."""
    return build_model(with_precision(replace(BASE, precision=precision, width=width), CLASSES), CLASSES)


def ten_crops_in_batches(data_dir: Path, precision: str = "float32", width: float = 1.0) -> Callable[[], float]:
    """evaluate.py's way: batches of pictures, ten crops of each, from the packed dataset."""
    pictures, model = as_tensor(open_dataset(data_dir).val.images[:PICTURES]), model_of(precision, width)

    def timed_round() -> float:
        start = time.perf_counter()
        for first in range(0, PICTURES, BATCH_SIZE):
            log_p = log_probabilities(model, ten_crops(pictures[first : first + BATCH_SIZE], BASE))
            _ = log_p[CENTER].argmax(axis=-1), log_p.sum(axis=0).argmax(axis=-1)
        return time.perf_counter() - start

    timed_round()
    return timed_round


def ten_crops_in_batches_auto(data_dir: Path) -> Callable[[], float]:
    """The same for a run that was trained with --precision auto."""
    return ten_crops_in_batches(data_dir, "auto")


def ten_crops_in_batches_narrow(data_dir: Path) -> Callable[[], float]:
    """The same for the demo's net, an eighth as wide."""
    return ten_crops_in_batches(data_dir, width=RECIPES["demo"].width)


def ten_crops_one_by_one_narrow(data_dir: Path) -> Callable[[], float]:
    """2017's way for the demo's net."""
    return ten_crops_one_by_one(data_dir, RECIPES["demo"].width)


def ten_crops_one_by_one_auto(data_dir: Path) -> Callable[[], float]:
    """2017's way for a run that was trained with --precision auto."""
    return ten_crops_one_by_one(data_dir, precision="auto")


def ten_crops_one_by_one(data_dir: Path, width: float = 1.0, precision: str = "float32") -> Callable[[], float]:
    """2017's notebook: two loops that read a picture each time, one for the centre and one for the ten crops."""
    data, model = open_dataset(data_dir), model_of(precision, width)
    spare = 64 - BASE.crop_size
    corners = [(0, 0), (0, spare), (spare, 0), (spare, spare), (spare // 2, spare // 2)]

    def crops_of(name: str) -> list[np.ndarray]:
        with Image.open(data.root / name) as opened:
            picture = np.asarray(opened.convert("RGB"))
        return [picture[y : y + BASE.crop_size, x : x + BASE.crop_size] for y, x in corners]

    def by_center(name: str) -> int:
        return int(model.predict_on_batch(crops_of(name)[-1][None]).argmax())

    def by_ten_crops(name: str) -> int:
        batch = np.stack([view for crop in crops_of(name) for view in (crop, crop[:, ::-1])])
        p = keras.ops.softmax(model.predict_on_batch(batch))
        return int(np.asarray(keras.ops.prod(p, axis=0)).argmax())

    names = data.val.filenames[:PICTURES]
    _ = by_center(names[0]), by_ten_crops(names[0])

    def timed_round() -> float:
        start = time.perf_counter()
        _ = [by_center(name) for name in names], [by_ten_crops(name) for name in names]
        return time.perf_counter() - start

    return timed_round


def kernels_at_once(_data_dir: Path) -> Callable[[], float]:
    """All filters in one call, in the window that they see."""
    model = model_of("float32")
    kernel_pictures(model, LAYER, FILTERS)

    def timed_round() -> float:
        start = time.perf_counter()
        kernel_pictures(model, LAYER, FILTERS)
        return time.perf_counter() - start

    return timed_round


def kernels_one_by_one(_data_dir: Path) -> Callable[[], float]:
    """2017's notebook: filter by filter the gradient of its centre unit by the whole picture is built, then run."""
    gradients = single_gradients()

    def timed_round() -> float:
        start = time.perf_counter()
        for gradient in gradients():
            gradient(GREY_PICTURE)
        return time.perf_counter() - start

    return timed_round


def kernels_one_by_one_built(_data_dir: Path) -> Callable[[], float]:
    """The same with the 64 gradients built before the clock starts, which `kernel_pictures` does not do for its own."""
    gradients = list(single_gradients()())
    for gradient in gradients:
        gradient(GREY_PICTURE)

    def timed_round() -> float:
        start = time.perf_counter()
        for gradient in gradients:
            gradient(GREY_PICTURE)
        return time.perf_counter() - start

    return timed_round


def single_gradients() -> Callable[[], Iterator[Callable]]:
    """What gives, one after the other, the function from a picture to the gradient of one filter's centre unit."""
    model = model_of("float32")
    part = on_floats(keras.Model(model.inputs[0], model.get_layer(LAYER).output))
    middle = part.output_shape[1] // 2

    def unit(k: int) -> Callable:
        return lambda x: part(x, training=False)[:, middle, middle, k]

    return lambda: (gradient_of(unit(k), GREY_PICTURE.shape) for k in range(FILTERS))
