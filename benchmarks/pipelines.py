"""Training batches with 2017's augmentation (random crop, flip, saturation), from this repository and from its peers.

The peers are written as their own documentation shows them, with parallel calls, prefetching and, where decoded images
can be kept, a cache. Each round draws batches for a few seconds and returns images per second.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import keras
import tensorflow as tf

from input_pipe import train_batches
from tiny_imagenet.config import IMAGE_SIZE
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.image_folder import load_filenames_labels
from tiny_imagenet.recipes import BASE

BATCH = BASE.batch_size
SECONDS = 3.0  # per round


def time_batches(batches: Iterable) -> Callable[[], float]:
    """A round: images per second while batches are drawn one after the other."""
    iterator = iter(batches)
    next(iterator)  # traces, compiles and fills the buffers

    def run_round() -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            for _ in range(20):
                next(iterator)
            count += 20
        return count * BATCH / (time.perf_counter() - start)

    return run_round


def ours(data_dir: Path) -> Callable[[], float]:
    """This repository: images are decoded once, then gathered and augmented in batches."""
    return time_batches(train_batches(open_dataset(data_dir).train, BASE))


def ours_crop_and_flip(data_dir: Path) -> Callable[[], float]:
    """The same without saturation."""
    return time_batches(train_batches(open_dataset(data_dir).train, replace(BASE, saturation=(1.0, 1.0))))


def per_image(data_dir: Path) -> Callable[[], float]:
    """2017's way in tf.data: each image is read, decoded and augmented by itself."""
    filenames, labels = load_filenames_labels("train", data_dir)

    def load(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.image.random_crop(image, [BASE.crop_size, BASE.crop_size, 3])
        image = tf.image.random_flip_left_right(image)
        return tf.image.random_saturation(image, *BASE.saturation), label

    paths = [str(data_dir / name) for name in filenames]
    images = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    return time_batches(images.map(load, tf.data.AUTOTUNE, deterministic=False).batch(BATCH).prefetch(tf.data.AUTOTUNE))


def keras_layers(data_dir: Path) -> Callable[[], float]:
    """`image_dataset_from_directory`, cached as uint8 by the first pass, and Keras's random layers in `map`."""
    augment = keras.layers.Pipeline(  # not Sequential, which works in tf.data only under TensorFlow
        [
            keras.layers.RandomCrop(BASE.crop_size, BASE.crop_size),
            keras.layers.RandomFlip("horizontal"),
            # the layer uses f / (1 - f) as its factor: this is 0.5 to 2
            keras.layers.RandomSaturation((1 / 3, 2 / 3), value_range=(0, 255)),
        ]
    )
    cached = cached_directory(data_dir)
    for _ in cached:  # the first pass fills the cache
        pass
    batches = cached.repeat().map(lambda x, y: (augment(tf.cast(x, tf.float32), training=True), y), tf.data.AUTOTUNE)
    return time_batches(batches.prefetch(tf.data.AUTOTUNE))


def cached_directory(data_dir: Path, file: str = "") -> tf.data.Dataset:
    """Keras's dataset of batches of the training folder, cached as uint8 in memory or in a file."""
    size = (IMAGE_SIZE, IMAGE_SIZE)
    folder = str(data_dir / "train")
    batches = keras.utils.image_dataset_from_directory(folder, image_size=size, batch_size=BATCH, verbose=False)
    return batches.map(lambda x, y: (tf.cast(x, tf.uint8), y), tf.data.AUTOTUNE).cache(file)


# From the folder to the first batch: seconds


def link_dataset(data_dir: Path) -> Path:
    """A new folder with links to the dataset's files, so that packing writes into the new folder."""
    folder = Path(tempfile.mkdtemp())
    for name in ("train", "val", "wnids.txt", "words.txt"):
        if (data_dir / name).exists():
            (folder / name).symlink_to((data_dir / name).resolve())
    return folder


def seconds_to_first_batch(batches: Iterable, start: float) -> float:
    """Seconds from `start` until the first batch is ready."""
    next(iter(batches))
    return time.perf_counter() - start


def our_first_start(data_dir: Path) -> Callable[[], float]:
    """Checks and packs the dataset, then draws a batch."""

    def run_round() -> float:
        folder = link_dataset(data_dir)
        start = time.perf_counter()
        seconds = seconds_to_first_batch(train_batches(open_dataset(folder).train, BASE), start)
        shutil.rmtree(folder)
        return seconds

    return run_round


def our_second_start(data_dir: Path) -> Callable[[], float]:
    """Opens the packed dataset and draws a batch, in a process that has so far only imported TensorFlow."""
    open_dataset(data_dir)

    def run_round() -> float:
        start = time.perf_counter()
        return seconds_to_first_batch(train_batches(open_dataset(data_dir).train, BASE), start)

    return run_round


def decode_all(data_dir: Path) -> Callable[[], float]:
    """The minimum: every JPEG, training and validation, is read and decoded once, on all cores."""

    def decode(path):
        return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")

    paths = [str(data_dir / name) for mode in ("train", "val") for name in load_filenames_labels(mode, data_dir)[0]]

    def run_round() -> float:
        start = time.perf_counter()
        images = tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE, deterministic=False)
        for _ in images.batch(512).prefetch(tf.data.AUTOTUNE):
            pass
        return time.perf_counter() - start

    return run_round


def keras_first_pass(data_dir: Path) -> Callable[[], float]:
    """`image_dataset_from_directory` and `cache(file)`: the first pass, which fills the cache."""

    def run_round() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for _ in cached_directory(data_dir, f"{folder}/cache"):
                pass
            return time.perf_counter() - start

    return run_round


def keras_first_batch(data_dir: Path) -> Callable[[], float]:
    """The same, but only to the first batch: most of the work is still to come."""

    def run_round() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            return seconds_to_first_batch(cached_directory(data_dir, f"{folder}/cache"), start)

    return run_round


def keras_second_start(data_dir: Path) -> Callable[[], float]:
    """The same with a filled cache, to the first batch."""
    file = str(Path(tempfile.mkdtemp()) / "cache")
    for _ in cached_directory(data_dir, file):
        pass

    def run_round() -> float:
        start = time.perf_counter()
        return seconds_to_first_batch(cached_directory(data_dir, file), start)

    return run_round
