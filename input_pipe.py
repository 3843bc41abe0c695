"""Packed pictures to batches; `python input_pipe.py --data-dir D` checks and packs a dataset and says what it found.

A batch is a pure function of (seed, step): the order of the pictures, the crops and the colours are all drawn from
stateless generators. So a resumed run sees exactly the batches that it would have seen, and nothing about the
pipeline has to be saved.
"""

if __name__ == "__main__":
    from dataset import main

    main()  # ends the program: the command answers at once, without TensorFlow, which takes seconds to load

from startup import tf

import numpy as np

from config import PICTURE_SIZE, TrainConfig
from dataset import Split, build_label_dicts, load_filenames_labels, open_dataset
from distribution import WHOLE, Share
from packing import CORES, as_written

__all__ = ["build_label_dicts", "eval_batches", "load_filenames_labels", "open_dataset", "ten_crops", "train_batches"]

EVAL_BATCH_SIZE = 250  # pictures a step; evaluation's result does not depend on it
FOREVER = np.iinfo(np.int64).max
as_it_is = tf.autograph.experimental.do_not_convert  # nothing here branches on a tensor: AutoGraph's 0.2 s are spared
CENTER = 4  # of `ten_crops`
TEN_CROPS_SIDE = 60  # pixels, of the four corners, where pictures are scaled: nearly as much as the whole ones are
TO_UINT8 = 255.5  # 0..1 to 0..255 as tf.image does it: times 255.5, cut off


# Batches


def train_batches(
    split: Split, config: TrainConfig, start_step: int = 0, size: int | None = None, share: Share = WHOLE
) -> tf.data.Dataset:
    """The endless training batches from step `start_step` on.

    Args:
        split: the training pictures, (N, 64, 64, 3) uint8, and labels, (N,) int32.
        config: `seed`, `batch_size`, `crop_size` and the augmentations are used.
        start_step: number of steps already done.
        size: S, in pixels; None: crop_size.
        share: which part of each batch is made; by default all of it.

    Returns:
        A dataset of (pictures (B, S, S, 3) uint8, labels (B,) int32), B = batch_size / share.hosts.
    """
    pictures, labels = as_tensor(split.images), tf.constant(split.labels)

    @as_it_is
    def batch(step, indices):
        indices = own(indices, share)
        return train_preprocessing(tf.gather(pictures, indices), config, step, size, share), tf.gather(labels, indices)

    steps = tf.data.Dataset.range(start_step, FOREVER)
    indices = shuffled_indices(len(split.labels), config.batch_size, config.seed, start_step)
    batches = tf.data.Dataset.zip(steps, indices).map(batch, CORES, deterministic=True).prefetch(8)
    return as_written(batches)


def own(values: tf.Tensor, share: Share, axis: int = 0) -> tf.Tensor:
    """A host's part of what is drawn for a whole batch, along `axis`."""
    return tf.split(values, share.hosts, axis)[share.host]


def shuffled_indices(num_pictures: int, batch_size: int, seed: int, start_step: int) -> tf.data.Dataset:
    """Batches (B,) int64 of picture numbers: one shuffle after another, joined; a batch may span two of them."""
    first_epoch, done = divmod(start_step * batch_size, num_pictures)

    @as_it_is
    def shuffle(epoch):
        order = tf.random.experimental.stateless_shuffle(tf.range(num_pictures, dtype=tf.int64), seed=[seed, epoch])
        first = tf.where(epoch == first_epoch, done, 0)
        return tf.gather(order, tf.range(first, num_pictures))  # a copy; `rebatch` logs an error for each slice

    epochs = tf.data.Dataset.range(first_epoch, FOREVER).map(shuffle).prefetch(1)
    return epochs.rebatch(batch_size, drop_remainder=True)


def eval_batches(
    split: Split, config: TrainConfig, size: int | None = None, batch_size: int = EVAL_BATCH_SIZE
) -> tf.data.Dataset:
    """Every picture once, in order, by `eval_preprocessing`; the last batch may be smaller.

    Args:
        split: pictures (N, 64, 64, 3) uint8 and labels (N,) int32.
        config: `crop_size` and `resized_crop` are used.
        size: S, in pixels; None: crop_size.
        batch_size: pictures a batch.

    Returns:
        A dataset of (pictures (B, S, S, 3) uint8, labels (B,) int32).
    """
    pictures, labels = as_tensor(split.images), tf.constant(split.labels)

    @as_it_is
    def batch(indices):
        return eval_preprocessing(tf.gather(pictures, indices), config, size), tf.gather(labels, indices)

    indices = tf.data.Dataset.range(len(split.labels)).batch(batch_size)
    return as_written(indices.map(batch, CORES, deterministic=True).prefetch(2))


def eval_shares(split: Split, config: TrainConfig, share: Share, size: int | None = None) -> tf.data.Dataset:
    """`eval_batches` for several devices: this host's share of each batch, with weights.

    The devices divide each batch: the last one is filled up with pictures of weight 0.

    Args:
        split, config, size: as for `eval_batches`.
        share: this host's.

    Returns:
        A dataset of (pictures (B, S, S, 3) uint8, labels (B,) int32, weights (B,) float32: 1 or 0).
    """
    pictures, labels, num_pictures = as_tensor(split.images), tf.constant(split.labels), len(split.labels)
    per_host = -(-EVAL_BATCH_SIZE // share.devices) * share.devices // share.hosts
    num_batches = -(-num_pictures // (per_host * share.hosts))

    @as_it_is
    def batch(places):
        indices = tf.minimum(places, num_pictures - 1)
        crops = eval_preprocessing(tf.gather(pictures, indices), config, size)
        return crops, tf.gather(labels, indices), tf.cast(places < num_pictures, tf.float32)

    parts = tf.data.Dataset.range(num_batches * per_host * share.hosts).batch(per_host)
    return as_written(parts.shard(share.hosts, share.host).map(batch, CORES, deterministic=True).prefetch(2))


def as_tensor(images: np.ndarray) -> tf.Tensor:
    """A tensor over the same memory: the mapped pages of the packed file, shared, not a copy of 1.2 GB.

    TensorFlow aborts on memory that does not begin at a multiple of 64 bytes, as a mapped file does; that is copied.
    """
    if images.ctypes.data % 64:
        return tf.constant(images)
    return tf.experimental.dlpack.from_dlpack(images.__dlpack__())


# Preprocessing: one function for training, one for evaluation


def train_preprocessing(
    pictures: tf.Tensor, config: TrainConfig, step: tf.Tensor, size: int | None = None, share: Share = WHOLE
) -> tf.Tensor:
    """Random crop, flip, hue and saturation, each picture by itself, as `config` says; a function of (seed, step).

    The crop comes first because it leaves fewer pixels to the others.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        config: `seed`, `crop_size`, `resized_crop`, `random_crop`, `random_flip`, `hue` and `saturation` are used.
        step: the step's number, a scalar integer.
        size: S, in pixels; None: crop_size.
        share: which part of the batch the pictures are; by default all of it.

    Returns:
        (B, S, S, 3) uint8.
    """
    # the key of the shuffles is [seed, epoch]: one's complement keeps this one apart from it
    seeds = tf.random.split(tf.stack([tf.cast(~config.seed, tf.int64), tf.cast(step, tf.int64)]), 3)
    pictures = (crop_resize_and_flip if config.resizes else crop_and_flip)(pictures, config, seeds[0], size, share)
    if config.hue > 0:
        pictures = shift_hue(pictures, uniform(seeds[1], pictures, share, -config.hue, config.hue))
    if tuple(config.saturation) != (1.0, 1.0):
        pictures = scale_saturation(pictures, uniform(seeds[2], pictures, share, *config.saturation))
    return pictures


def eval_preprocessing(pictures: tf.Tensor, config: TrainConfig, size: int | None = None) -> tf.Tensor:
    """The central square or, for nets that were trained on scaled pictures, the whole picture, scaled.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        config: `crop_size` and `resized_crop` are used.
        size: S, in pixels; None: crop_size.

    Returns:
        (B, S, S, 3) uint8.
    """
    size = size or config.crop_size
    if config.resizes:
        return squares(pictures, 0, 0, PICTURE_SIZE, size)
    first = (PICTURE_SIZE - size) // 2
    return pictures[:, first : first + size, first : first + size]


def ten_crops(pictures: tf.Tensor, config: TrainConfig) -> tf.Tensor:
    """Four corners and the centre, each also mirrored.

    Their side is S. For nets that were trained on scaled pictures it is `TEN_CROPS_SIDE`, scaled to S, and the centre
    is the whole picture, as in `eval_preprocessing`.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        config: `crop_size` and `resized_crop` are used.

    Returns:
        (10, B, S, S, 3) uint8, S = crop_size: top left, top right, bottom left, bottom right, centre, then the five
        mirrored.
    """
    size = config.crop_size
    side = TEN_CROPS_SIDE if config.resizes else size
    end = PICTURE_SIZE - side
    corners = [squares(pictures, top, left, side, size) for top in (0, end) for left in (0, end)]
    five = tf.stack([*corners, eval_preprocessing(pictures, config)])  # (5, B, S, S, 3)
    return tf.concat([five, tf.reverse(five, axis=[3])], axis=0)


def squares(pictures: tf.Tensor, top: int, left: int, side: int, size: int) -> tf.Tensor:
    """The square at one place of each picture, scaled to `size`: (B, 64, 64, 3) to (B, S, S, 3) uint8."""
    if side == size:
        return pictures[:, top : top + side, left : left + side]
    ones = tf.ones([tf.shape(pictures)[0], 1])
    rows, columns = (scaling(place * ones, side * ones, size) for place in (float(top), float(left)))
    return scale(pictures, rows, columns)


# Augmentations: each is compiled by XLA, which fuses its many small steps (crop and colours together ran slower)

compiled = tf.function(jit_compile=True)


def uniform(seed: tf.Tensor, pictures: tf.Tensor, share: Share, low: float, high: float) -> tf.Tensor:
    """One number a picture, (B, 1, 1, 1) float32, evenly from low..high: drawn for the whole batch."""
    return own(tf.random.stateless_uniform([tf.shape(pictures)[0] * share.hosts, 1, 1, 1], seed, low, high), share)


def crop_and_flip(
    pictures: tf.Tensor, config: TrainConfig, seed: tf.Tensor, size: int | None = None, share: Share = WHOLE
) -> tf.Tensor:
    """A square at a random place, mirrored or not: each picture's rows, then its columns, are picked by number.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        config: `crop_size`, `random_crop` and `random_flip` are used.
        seed: (2,) int64.
        size: S, in pixels; None: crop_size.
        share: as for `train_preprocessing`.

    Returns:
        (B, S, S, 3) uint8.
    """
    batch_size, size = tf.shape(pictures)[0], size or config.crop_size
    spare = PICTURE_SIZE - size
    draws = own(tf.random.stateless_uniform([3, batch_size * share.hosts, 1], seed), share, 1)  # top, left, flip
    first = (
        tf.cast(draws[:2] * (spare + 1), tf.int32) if config.random_crop else tf.fill([2, batch_size, 1], spare // 2)
    )
    rows, columns = tf.unstack(first + tf.range(size))  # (B, S) each
    if config.random_flip:
        columns = tf.where(draws[2] < 0.5, columns, columns[:, ::-1])
    return pick(pictures, rows, columns)


@compiled
def pick(pictures: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Of each picture in (B, 64, 64, 3) the pixels in these rows (B, S) and columns (B, S): (B, S, S, 3)."""
    return tf.gather(tf.gather(pictures, rows, batch_dims=1), columns, batch_dims=1, axis=2)


def crop_resize_and_flip(
    pictures: tf.Tensor, config: TrainConfig, seed: tf.Tensor, size: int | None = None, share: Share = WHOLE
) -> tf.Tensor:
    """A square of random side at a random place, mirrored or not, scaled to one size.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        config: `crop_size`, `resized_crop`, `random_crop` and `random_flip` are used.
        seed: (2,) int64.
        size: S, in pixels; None: crop_size.
        share: as for `train_preprocessing`.

    Returns:
        (B, S, S, 3) uint8.
    """
    size, (low, high) = size or config.crop_size, config.resized_crop
    whole = tf.shape(pictures)[0] * share.hosts
    draws = own(tf.random.stateless_uniform([4, whole, 1], seed), share, 1)  # side, top, left, flip
    side = tf.floor(low + draws[0] * (high + 1 - low))
    places = draws[1:3] if config.random_crop else tf.fill(tf.shape(draws[1:3]), 0.5)
    top, left = tf.unstack(tf.floor(places * (PICTURE_SIZE - side + 1)))
    rows, columns = scaling(top, side, size), scaling(left, side, size)
    if config.random_flip:
        columns = tf.where(draws[3, :, :, None] < 0.5, columns, columns[:, ::-1])
    return scale(pictures, rows, columns)


@as_it_is
def scaling(first: tf.Tensor, side: tf.Tensor, size: int) -> tf.Tensor:
    """How much each of 64 pixels weighs in each of `size`, along one axis: bilinear, averaging where it makes smaller.

    The same as `tf.image.resize(..., antialias=True)` of the pixels from `first` on, `side` of them.

    Args:
        first, side: (B, 1) float32, whole numbers.
        size: S.

    Returns:
        (B, S, 64) float32; each row's sum is 1.
    """
    factor = (side / size)[:, None]  # (B, 1, 1)
    middles = first[:, None] + (tf.range(size, dtype=tf.float32)[:, None] + 0.5) * factor  # (B, S, 1)
    pixels = tf.range(PICTURE_SIZE, dtype=tf.float32)  # (64,)
    weights = tf.nn.relu(1 - tf.abs(pixels + 0.5 - middles) / tf.maximum(factor, 1))  # (B, S, 64)
    inside = (pixels >= first[:, None]) & (pixels < (first + side)[:, None])  # (B, 1, 64)
    weights *= tf.cast(inside, tf.float32)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


@compiled
def scale(pictures: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Two matrix products a picture.

    Args:
        pictures: (B, 64, 64, 3) uint8.
        rows, columns: (B, S, 64) float32, as `scaling` gives them.

    Returns:
        (B, S, S, 3) uint8.
    """
    scaled = tf.einsum("bsh,bhwc->bswc", rows, tf.cast(pictures, tf.float32))
    scaled = tf.einsum("btw,bswc->bstc", columns, scaled)
    return tf.cast(scaled + 0.5, tf.uint8)


@compiled
def scale_saturation(pictures: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Multiplies the HSV saturation, at most to 1: as `tf.image.adjust_saturation`, with a factor for each picture.

    Value and hue stay, so every channel c moves on the line to the largest one, v: with saturation (v - min) / v,
    c becomes v - (v - c) * min(factor, v / (v - min)). That spares the way to HSV and back.

    Args:
        pictures: (B, S, S, 3) uint8.
        factors: (B, 1, 1, 1) float32.

    Returns:
        (B, S, S, 3) uint8.
    """
    levels = tf.cast(pictures, tf.float32)
    value = tf.reduce_max(levels, axis=-1, keepdims=True)
    spread = value - tf.reduce_min(levels, axis=-1, keepdims=True)
    factors = tf.minimum(factors, value / tf.maximum(spread, 1e-3))  # grey: spread 0, all channels equal value
    return tf.cast((value - (value - levels) * factors) * (TO_UINT8 / 255), tf.uint8)


@compiled
def shift_hue(pictures: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """Turns the colour wheel: as `tf.image.adjust_hue`, with an angle for each picture.

    Args:
        pictures: (B, S, S, 3) uint8.
        turns: (B, 1, 1, 1) float32, in full turns.

    Returns:
        (B, S, S, 3) uint8.
    """
    hue, saturation, value = tf.split(tf.image.rgb_to_hsv(tf.cast(pictures, tf.float32) / 255), 3, axis=-1)
    rgb = tf.image.hsv_to_rgb(tf.concat([tf.math.floormod(hue + turns, 1.0), saturation, value], axis=-1))
    return tf.cast(rgb * TO_UINT8, tf.uint8)
