"""Evaluation (single-crop and 10-crop) and filter images of VGG-16 with random weights: in batches and one by one.

A round does the whole task once and returns its seconds.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from evaluate import BATCH_SIZE, log_probabilities
from input_pipe import CENTER, as_tensor, ten_crops
from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.filters import filter_images
from tiny_imagenet.models import create_model, resolve_precision
from tiny_imagenet.recipes import BASE, RECIPES
from tiny_imagenet.saliency import GRAY, compile_gradient, with_float_input

NUM_CLASSES = 200
NUM_IMAGES = 200
LAYER, FILTERS = "conv2_2", 64
GRAY_IMAGE = np.full((1, BASE.crop_size, BASE.crop_size, 3), GRAY, "float32")


def create_vgg_16(precision: str, width: float = 1.0) -> keras.Model:
    """VGG-16 of 2017's settings, apart from these two."""
    return create_model(resolve_precision(replace(BASE, precision=precision, width=width), NUM_CLASSES), NUM_CLASSES)


def ten_crops_in_batches(data_dir: Path, precision: str = "float32", width: float = 1.0) -> Callable[[], float]:
    """evaluate.py's way: batches of images, ten crops of each, from the packed dataset."""
    images, model = as_tensor(open_dataset(data_dir).val.images[:NUM_IMAGES]), create_vgg_16(precision, width)

    def run_round() -> float:
        start = time.perf_counter()
        for first in range(0, NUM_IMAGES, BATCH_SIZE):
            log_p = log_probabilities(model, ten_crops(images[first : first + BATCH_SIZE], BASE))
            _ = log_p[CENTER].argmax(axis=-1), log_p.sum(axis=0).argmax(axis=-1)
        return time.perf_counter() - start

    run_round()
    return run_round


def ten_crops_in_batches_auto(data_dir: Path) -> Callable[[], float]:
    """The same for a run that was trained with --precision auto."""
    return ten_crops_in_batches(data_dir, "auto")


def ten_crops_in_batches_narrow(data_dir: Path) -> Callable[[], float]:
    """The same for the demo's network, an eighth as wide."""
    return ten_crops_in_batches(data_dir, width=RECIPES["demo"].width)


def ten_crops_one_by_one_narrow(data_dir: Path) -> Callable[[], float]:
    """2017's way for the demo's network."""
    return ten_crops_one_by_one(data_dir, width=RECIPES["demo"].width)


def ten_crops_one_by_one_auto(data_dir: Path) -> Callable[[], float]:
    """2017's way for a run that was trained with --precision auto."""
    return ten_crops_one_by_one(data_dir, precision="auto")


def ten_crops_one_by_one(data_dir: Path, width: float = 1.0, precision: str = "float32") -> Callable[[], float]:
    """2017's notebook: two loops that read one image at a time, for the center crop and for the ten crops."""
    data, model = open_dataset(data_dir), create_vgg_16(precision, width)
    spare = IMAGE_SIZE - BASE.crop_size
    corners = [(0, 0), (0, spare), (spare, 0), (spare, spare), (spare // 2, spare // 2)]

    def read_crops(name: str) -> list[np.ndarray]:
        with Image.open(data.root / name) as opened:
            image = np.asarray(opened.convert("RGB"))
        return [image[y : y + BASE.crop_size, x : x + BASE.crop_size] for y, x in corners]

    def predict_single_crop(name: str) -> int:
        return int(model.predict_on_batch(read_crops(name)[-1][None]).argmax())

    def predict_ten_crops(name: str) -> int:
        batch = np.stack([view for crop in read_crops(name) for view in (crop, crop[:, ::-1])])
        p = keras.ops.softmax(model.predict_on_batch(batch))
        return int(np.asarray(keras.ops.prod(p, axis=0)).argmax())

    names = data.val.filenames[:NUM_IMAGES]
    _ = predict_single_crop(names[0]), predict_ten_crops(names[0])

    def run_round() -> float:
        start = time.perf_counter()
        _ = [predict_single_crop(name) for name in names], [predict_ten_crops(name) for name in names]
        return time.perf_counter() - start

    return run_round


def create_vgg_16_with_biases() -> keras.Model:
    """VGG-16 with random biases: the initial ones are 0, for which no unit responds to an even gray image."""
    model, rng = create_vgg_16("float32"), np.random.default_rng(0)
    for weight in model.weights:
        if len(weight.shape) == 1:
            weight.assign(rng.uniform(0, 0.1, weight.shape))
    return model


def filters_at_once(_data_dir: Path) -> Callable[[], float]:
    """All filters with one batched gradient, which is compiled within the round."""
    model = create_vgg_16_with_biases()
    filter_images(model, LAYER, FILTERS)

    def run_round() -> float:
        start = time.perf_counter()
        filter_images(model, LAYER, FILTERS)
        return time.perf_counter() - start

    return run_round


def filters_one_by_one(_data_dir: Path) -> Callable[[], float]:
    """2017's notebook: filter by filter, the gradient of its center unit is compiled and then run."""
    compile_gradients = single_gradients()

    def run_round() -> float:
        start = time.perf_counter()
        for gradient in compile_gradients():
            gradient(GRAY_IMAGE)
        return time.perf_counter() - start

    return run_round


def filters_one_by_one_compiled(_data_dir: Path) -> Callable[[], float]:
    """The same with the 64 gradients compiled before the round, unlike the one of `filter_images`."""
    gradients = list(single_gradients()())
    for gradient in gradients:
        gradient(GRAY_IMAGE)

    def run_round() -> float:
        start = time.perf_counter()
        for gradient in gradients:
            gradient(GRAY_IMAGE)
        return time.perf_counter() - start

    return run_round


def single_gradients() -> Callable[[], Iterator[Callable]]:
    """A function that compiles, one after the other, the gradient of each filter's center unit."""
    part = create_vgg_16_with_biases()
    part = with_float_input(keras.Model(part.inputs[0], part.get_layer(LAYER).output))
    center = part.output_shape[1] // 2

    def compile_one(k: int) -> Callable:
        gradient = compile_gradient(lambda x: part(x, training=False)[:, center, center, k : k + 1], GRAY_IMAGE.shape)
        return lambda image: gradient(image, np.zeros(1, "int32"))

    return lambda: map(compile_one, range(FILTERS))
