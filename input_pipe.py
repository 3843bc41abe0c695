"""Packed images to batches. `python input_pipe.py --data-dir D` checks and packs a dataset and prints what it found.

A batch is a pure function of (seed, step): the order of the images, the crops and the colors are all drawn from
stateless generators. So a resumed run sees exactly the batches that it would have seen, and no state has to be saved.
"""

import tiny_imagenet  # noqa: F401  first: it checks the environment and loads TensorFlow quietly

# isort: split
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tyro

from tiny_imagenet.cli import command
from tiny_imagenet.config import IMAGE_SIZE, TrainConfig
from tiny_imagenet.dataset import Split, describe, open_dataset
from tiny_imagenet.image_folder import build_label_dicts, load_filenames_labels
from tiny_imagenet.image_ops import gather_pixels, resize, resize_weights, resized_crop, scale_saturation, shift_hue
from tiny_imagenet.packing import CORES

__all__ = ["build_label_dicts", "eval_batches", "load_filenames_labels", "open_dataset", "ten_crops", "train_batches"]

EVAL_BATCH_SIZE = 250  # images per step; the result of an evaluation does not depend on it
FOREVER = np.iinfo(np.int64).max
CENTER = 4  # index in `ten_crops`
TEN_CROPS_SIDE = 60  # pixels: the side of the four corners if images are scaled
no_autograph = tf.autograph.experimental.do_not_convert  # nothing here branches on a tensor: saves 0.2 s
Shard = tuple[int, int]  # (process_index, process_count): which of the equal parts of each batch to make


# Batches


def train_batches(
    split: Split, config: TrainConfig, start_step: int = 0, size: int | None = None, shard: Shard = (0, 1)
) -> tf.data.Dataset:
    """The endless training batches.

    Args:
        split: the training images.
        config: `seed`, `batch_size`, `crop_size` and the augmentations are used.
        start_step: number of steps already done.
        size: S, in pixels; None: crop_size.
        shard: (process_index, process_count): which part of each batch to make.

    Returns:
        A dataset of (images (B, S, S, 3) uint8, labels (B,) int32), B = batch_size / process_count.
    """
    gather_images, labels = image_reader(split), tf.constant(split.labels)

    @no_autograph
    def make_batch(step, indices):
        indices = tf.split(indices, shard[1])[shard[0]]
        return train_preprocessing(gather_images(indices), config, step, size, shard), tf.gather(labels, indices)

    steps = tf.data.Dataset.range(start_step, FOREVER)
    indices = shuffled_indices(len(split.labels), config.batch_size, config.seed, start_step)
    batches = tf.data.Dataset.zip(steps, indices).map(make_batch, CORES, deterministic=True)
    return without_tuning(batches.prefetch(8))


def shuffled_indices(num_images: int, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """Batches (B,) int64 of image indices: one shuffle after another; a batch may span two of them."""
    first_epoch, done = divmod(start_step * batch_size, num_images)

    @no_autograph
    def shuffle(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(num_images, dtype=tf.int64), seed=[seed, epoch])
        first = tf.where(epoch == first_epoch, done, 0)
        return tf.gather(order, tf.range(first, num_images))  # a copy; `rebatch` logs an error for each slice

    epochs = tf.data.Dataset.range(first_epoch, FOREVER).map(shuffle).prefetch(1)
    return epochs.rebatch(batch_size, drop_remainder=True)


def eval_batches(
    split: Split,
    config: TrainConfig,
    size: int | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    num_devices: int = 1,
    shard: Shard = (0, 1),
) -> tf.data.Dataset:
    """Every image once, in order, with `eval_preprocessing`; the last batch may be smaller.

    Args:
        split: the images.
        config: `crop_size` and `random_resized_crop` are used.
        size: S, in pixels; None: crop_size.
        batch_size: images per batch, over all processes; rounded up to a multiple of `num_devices`.
        num_devices: over all processes; if there are several, the last batch is filled up with images of weight 0.
        shard: (process_index, process_count): which part of each batch to make.

    Returns:
        A dataset of (images (B, S, S, 3) uint8, labels (B,) int32) and, for several devices, weights (B,) float32.
    """
    gather_images, labels, num_images = image_reader(split), tf.constant(split.labels), len(split.labels)
    batch_size = -(-batch_size // num_devices) * num_devices
    end = -(-num_images // batch_size) * batch_size if num_devices > 1 else num_images

    @no_autograph
    def make_batch(positions):
        indices = tf.minimum(positions, num_images - 1)
        batch = eval_preprocessing(gather_images(indices), config, size), tf.gather(labels, indices)
        return (*batch, tf.cast(positions < num_images, tf.float32)) if num_devices > 1 else batch

    parts = tf.data.Dataset.range(end).batch(batch_size // shard[1]).shard(shard[1], shard[0])
    return without_tuning(parts.map(make_batch, CORES, deterministic=True).prefetch(2))


def image_reader(split: Split) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function that gathers images of a split from the packed file: indices (B,) to (B, 64, 64, 3) uint8."""
    packed, rows = as_tensor(split.packed), split.rows
    return lambda indices: tf.gather(packed, indices if rows is None else tf.gather(rows, indices))


def without_tuning(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off TensorFlow's rewriting and autotuning of a dataset, which gain nothing here.

    Rewriting reads every image first (0.7 s). Autotuning makes the end of an iterator wait for its next round, after
    10 ms, 20 ms, 40 ms ..., so that a call of `fit` takes up to twice as long.
    """
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return dataset.with_options(options)


def as_tensor(images: np.ndarray) -> tf.Tensor:
    """A tensor over the same memory: the mapped pages of the packed file, not a copy of 1.2 GB.

    TensorFlow aborts unless memory is aligned to 64 bytes, as that of a mapped file is; other memory is copied.
    """
    if images.ctypes.data % 64:
        return tf.constant(images)
    return tf.experimental.dlpack.from_dlpack(images.__dlpack__())


# Preprocessing: one function for training, one for evaluation; (B, 64, 64, 3) uint8 to (B, S, S, 3) uint8


def train_preprocessing(
    images: tf.Tensor, config: TrainConfig, step: tf.Tensor, size: int | None = None, shard: Shard = (0, 1)
) -> tf.Tensor:
    """Random crop, flip, hue and saturation, drawn for each image from (seed, step).

    Args:
        images: (B, 64, 64, 3) uint8.
        config: `seed`, `crop_size` and the augmentations are used.
        step: the step's number, a scalar integer.
        size: S, in pixels; None: crop_size.
        shard: (process_index, process_count): which part of the batch the images are.
    """
    # the key of the shuffles is [seed, epoch]; one's complement makes this one different
    seeds = tf.random.split(tf.stack([tf.cast(~config.seed, tf.int64), tf.cast(step, tf.int64)]), 3)
    size = size or config.crop_size  # cropped first, which leaves fewer pixels to the colors
    if config.scales_images:
        images = random_resized_crop(images, config, size, draw_uniform(seeds[0], images, shard, 4))
    else:
        images = random_crop(images, config, size, draw_uniform(seeds[0], images, shard, 3))
    if config.hue > 0:
        turns = draw_uniform(seeds[1], images, shard, 1, -config.hue, config.hue)
        images = shift_hue(images, turns[0, ..., None, None])
    if tuple(config.saturation) != (1.0, 1.0):
        factors = draw_uniform(seeds[2], images, shard, 1, *config.saturation)
        images = scale_saturation(images, factors[0, ..., None, None])
    return images


def draw_uniform(seed, images: tf.Tensor, shard: Shard, count: int, low: float = 0, high: float = 1) -> tf.Tensor:
    """`count` random numbers for each image, uniform in low..high: (count, B, 1) float32."""
    whole_batch = tf.random.stateless_uniform([count, tf.shape(images)[0] * shard[1], 1], seed, low, high)
    return tf.split(whole_batch, shard[1], axis=1)[shard[0]]


def random_crop(images: tf.Tensor, config: TrainConfig, size: int, draws: tf.Tensor) -> tf.Tensor:
    """A square of each image, at a random position and flipped at random. `draws`: (3, B, 1), uniform in 0..1."""
    spare = IMAGE_SIZE - size
    first = tf.cast(draws[:2] * (spare + 1), tf.int32)
    if not config.random_crop:
        first = tf.fill(tf.shape(first), spare // 2)
    rows, columns = tf.unstack(first + tf.range(size))  # (B, S) each
    if config.random_flip:
        columns = tf.where(draws[2] < 0.5, columns, columns[:, ::-1])
    return gather_pixels(images, rows, columns)


def random_resized_crop(images: tf.Tensor, config: TrainConfig, size: int, draws: tf.Tensor) -> tf.Tensor:
    """A square of each image, of random side, scaled, and otherwise as in `random_crop`. `draws`: (4, B, 1)."""
    low, high = config.random_resized_crop
    side = tf.floor(low + draws[0] * (high + 1 - low))
    positions = draws[1:3] if config.random_crop else tf.fill(tf.shape(draws[1:3]), 0.5)
    top, left = tf.unstack(tf.floor(positions * (IMAGE_SIZE - side + 1)))
    rows, columns = resize_weights(top, side, size), resize_weights(left, side, size)
    if config.random_flip:
        columns = tf.where(draws[3, :, :, None] < 0.5, columns, columns[:, ::-1])
    return resize(images, rows, columns)


def eval_preprocessing(images: tf.Tensor, config: TrainConfig, size: int | None = None) -> tf.Tensor:
    """The central square or, for a model trained on scaled images, the whole image, scaled. `size` None: crop_size."""
    size = size or config.crop_size
    if config.scales_images:
        return resized_crop(images, 0, 0, IMAGE_SIZE, size)
    first = (IMAGE_SIZE - size) // 2
    return images[:, first : first + size, first : first + size]


def ten_crops(images: tf.Tensor, config: TrainConfig) -> tf.Tensor:
    """Four corners and the center, and all five mirrored.

    For a model trained on scaled images, corners of `TEN_CROPS_SIDE` are scaled, and the center is the whole image.

    Returns:
        (10, B, S, S, 3) uint8, S = crop_size: top left, top right, bottom left, bottom right, center, then mirrored.
    """
    side = TEN_CROPS_SIDE if config.scales_images else config.crop_size
    end = IMAGE_SIZE - side
    corners = [resized_crop(images, top, left, side, config.crop_size) for top in (0, end) for left in (0, end)]
    five = tf.stack([*corners, eval_preprocessing(images, config)])  # (5, B, S, S, 3)
    return tf.concat([five, tf.reverse(five, axis=[3])], axis=0)


@command
def main() -> None:
    """Runs the command; its arguments are those of `open_dataset`."""
    print(describe(tyro.cli(open_dataset)))


if __name__ == "__main__":
    main()
