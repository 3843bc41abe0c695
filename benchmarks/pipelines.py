"""Training batches with the augmentation of 2017 (random crop, flip, saturation), by this repository and by its peers.

The peers are written as their own documentation shows them, with parallel calls, prefetching and, where the set-up can
keep decoded pictures, a cache. Each round draws batches for some seconds and returns pictures a second.
"""

from startup import tf

import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import keras

from config import BASE, PICTURE_SIZE
from dataset import open_dataset
from input_pipe import load_filenames_labels, train_batches

BATCH = BASE.batch_size
SECONDS = 3.0  # a round


def rate(batches: Iterable) -> Callable[[], float]:
    """A round: pictures a second while batches are drawn, one after another."""
    iterator = iter(batches)
    next(iterator)  # traced, compiled, and the buffers are filled

    def timed_round() -> float:
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < SECONDS:
            for _ in range(20):
                next(iterator)
            count += 20
        return count * BATCH / (time.perf_counter() - start)

    return timed_round


def ours(data_dir: Path) -> Callable[[], float]:
    """This repository: pictures decoded once, gathered by batch, augmented by batch."""
    return rate(train_batches(open_dataset(data_dir).train, BASE))


def ours_crop_and_flip(data_dir: Path) -> Callable[[], float]:
    """The same without saturation."""
    return rate(train_batches(open_dataset(data_dir).train, replace(BASE, saturation=(1.0, 1.0))))


def per_picture(data_dir: Path) -> Callable[[], float]:
    """2017's way in tf.data: each picture is read, decoded and augmented by itself."""
    filenames, labels = load_filenames_labels(data_dir, "train")

    def load(path, label):
        picture = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        picture = tf.image.random_crop(picture, [BASE.crop_size, BASE.crop_size, 3])
        picture = tf.image.random_flip_left_right(picture)
        return tf.image.random_saturation(picture, *BASE.saturation), label

    paths = [str(data_dir / name) for name in filenames]
    pictures = tf.data.Dataset.from_tensor_slices((paths, labels)).shuffle(len(paths)).repeat()
    return rate(pictures.map(load, tf.data.AUTOTUNE, deterministic=False).batch(BATCH).prefetch(tf.data.AUTOTUNE))


def keras_layers(data_dir: Path) -> Callable[[], float]:
    """`image_dataset_from_directory`, cached as uint8 after the first pass, and Keras's random layers in `map`."""
    augment = keras.layers.Pipeline(  # not Sequential, which tf.data takes under TensorFlow alone
        [
            keras.layers.RandomCrop(BASE.crop_size, BASE.crop_size),
            keras.layers.RandomFlip("horizontal"),
            # the layer's factor f stands for f / (1 - f): this is 0.5 to 2
            keras.layers.RandomSaturation((1 / 3, 2 / 3), value_range=(0, 255)),
        ]
    )
    cached = cached_directory(data_dir)
    for _ in cached:  # the first pass fills the cache
        pass
    batches = cached.repeat().map(lambda x, y: (augment(tf.cast(x, tf.float32), training=True), y), tf.data.AUTOTUNE)
    return rate(batches.prefetch(tf.data.AUTOTUNE))


def cached_directory(data_dir: Path, file: str = "") -> tf.data.Dataset:
    """Keras's dataset of batches of the training folder, cached in memory or in a file, as uint8."""
    size = (PICTURE_SIZE, PICTURE_SIZE)
    folder = str(data_dir / "train")
    batches = keras.utils.image_dataset_from_directory(folder, image_size=size, batch_size=BATCH, verbose=False)
    return batches.map(lambda x, y: (tf.cast(x, tf.uint8), y), tf.data.AUTOTUNE).cache(file)


# From the folder to the first batch: seconds


def linked(data_dir: Path) -> Path:
    """A new folder with links to the dataset's files, so that what is written beside them goes elsewhere."""
    folder = Path(tempfile.mkdtemp())
    for name in ("train", "val", "wnids.txt", "words.txt"):
        if (data_dir / name).exists():
            (folder / name).symlink_to((data_dir / name).resolve())
    return folder


def seconds_to_first_batch(batches: Iterable, start: float) -> float:
    """Seconds since `start` when the first batch is there."""
    next(iter(batches))
    return time.perf_counter() - start


def our_first_start(data_dir: Path) -> Callable[[], float]:
    """Checks and packs the dataset, then draws a batch."""

    def timed_round() -> float:
        folder = linked(data_dir)
        start = time.perf_counter()
        seconds = seconds_to_first_batch(train_batches(open_dataset(folder).train, BASE), start)
        shutil.rmtree(folder)
        return seconds

    return timed_round


def our_second_start(data_dir: Path) -> Callable[[], float]:
    """Opens the packed dataset and draws a batch, in a process that has imported TensorFlow and done nothing else."""
    open_dataset(data_dir)

    def timed_round() -> float:
        start = time.perf_counter()
        return seconds_to_first_batch(train_batches(open_dataset(data_dir).train, BASE), start)

    return timed_round


def decode_all(data_dir: Path) -> Callable[[], float]:
    """The least there is to do: every JPEG, training and validation, read and decoded once on all cores."""

    def decode(path):
        return tf.io.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")

    paths = [str(data_dir / name) for mode in ("train", "val") for name in load_filenames_labels(data_dir, mode)[0]]

    def timed_round() -> float:
        start = time.perf_counter()
        pictures = tf.data.Dataset.from_tensor_slices(paths).map(decode, tf.data.AUTOTUNE, deterministic=False)
        for _ in pictures.batch(512).prefetch(tf.data.AUTOTUNE):
            pass
        return time.perf_counter() - start

    return timed_round


def keras_first_pass(data_dir: Path) -> Callable[[], float]:
    """`image_dataset_from_directory` and `cache(file)`: the first pass, which fills the cache."""

    def timed_round() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            for _ in cached_directory(data_dir, f"{folder}/cache"):
                pass
            return time.perf_counter() - start

    return timed_round


def keras_first_batch(data_dir: Path) -> Callable[[], float]:
    """The same, to the first batch alone: most of the work is still to come."""

    def timed_round() -> float:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            return seconds_to_first_batch(cached_directory(data_dir, f"{folder}/cache"), start)

    return timed_round


def keras_second_start(data_dir: Path) -> Callable[[], float]:
    """The same with the cache filled: to the first batch."""
    file = str(Path(tempfile.mkdtemp()) / "cache")
    for _ in cached_directory(data_dir, file):
        pass

    def timed_round() -> float:
        start = time.perf_counter()
        return seconds_to_first_batch(cached_directory(data_dir, file), start)

    return timed_round
