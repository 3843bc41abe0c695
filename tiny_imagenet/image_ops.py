"""Crops, scales and recolors batches of images, (B, 64, 64, 3) uint8 to (B, S, S, 3) uint8.

XLA compiles each function, fusing its many small steps. Crop and colors compiled together ran slower.
"""

import tensorflow as tf

from tiny_imagenet.config import IMAGE_SIZE

TO_UINT8 = 255.5  # 0..1 to 0..255 as tf.image does it: multiplied and truncated

compile_with_xla = tf.function(jit_compile=True)


@compile_with_xla
def gather_pixels(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """The pixels in these rows (B, S) and columns (B, S) of each image."""
    return tf.gather(tf.gather(images, rows, batch_dims=1), columns, batch_dims=1, axis=2)


@tf.autograph.experimental.do_not_convert  # it branches on no tensor: saves time
def resize_weights(first: tf.Tensor, side: tf.Tensor, size: int) -> tf.Tensor:
    """The weight of each of 64 pixels in each of `size`, along one axis, as in tf.image.resize with antialiasing.

    Args:
        first, side: (B, 1) float32, whole numbers: `side` pixels from `first` on are scaled.
        size: S.

    Returns:
        (B, S, 64) float32; each row's sum is 1.
    """
    factor = (side / size)[:, None]  # (B, 1, 1)
    centers = first[:, None] + (tf.range(size, dtype=tf.float32)[:, None] + 0.5) * factor  # (B, S, 1)
    pixels = tf.range(IMAGE_SIZE, dtype=tf.float32)  # (64,)
    weights = tf.nn.relu(1 - tf.abs(pixels + 0.5 - centers) / tf.maximum(factor, 1))  # (B, S, 64)
    weights *= tf.cast((pixels >= first[:, None]) & (pixels < (first + side)[:, None]), tf.float32)
    return weights / tf.reduce_sum(weights, axis=-1, keepdims=True)


@compile_with_xla
def resize(images: tf.Tensor, rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
    """Scales images with the weights of rows and columns, (B, S, 64) each: two matrix products for each image."""
    scaled = tf.einsum("bsh,bhwc->bswc", rows, tf.cast(images, tf.float32))
    scaled = tf.einsum("btw,bswc->bstc", columns, scaled)
    return tf.cast(scaled + 0.5, tf.uint8)


def resized_crop(images: tf.Tensor, top: int, left: int, side: int, size: int) -> tf.Tensor:
    """The same square of each image, scaled to `size`."""
    if side == size:
        return images[:, top : top + side, left : left + side]
    ones = tf.ones([tf.shape(images)[0], 1])
    rows, columns = (resize_weights(first * ones, side * ones, size) for first in (float(top), float(left)))
    return resize(images, rows, columns)


@compile_with_xla
def scale_saturation(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """tf.image.adjust_saturation with factors (B, 1, 1, 1) float32, one for each image.

    Value and hue do not change, so every channel c moves on a line to the largest one, v: with saturation
    (v - min) / v, c becomes v - (v - c) * min(factor, v / (v - min)). This avoids the conversion to HSV and back.
    """
    levels = tf.cast(images, tf.float32)
    value = tf.reduce_max(levels, axis=-1, keepdims=True)
    spread = value - tf.reduce_min(levels, axis=-1, keepdims=True)
    factors = tf.minimum(factors, value / tf.maximum(spread, 1e-3))  # gray: spread 0, all channels equal value
    return tf.cast((value - (value - levels) * factors) * (TO_UINT8 / 255), tf.uint8)


@compile_with_xla
def shift_hue(images: tf.Tensor, turns: tf.Tensor) -> tf.Tensor:
    """tf.image.adjust_hue with angles (B, 1, 1, 1) float32, one for each image, in full turns of the color wheel."""
    hue, saturation, value = tf.split(tf.image.rgb_to_hsv(tf.cast(images, tf.float32) / 255), 3, axis=-1)
    rgb = tf.image.hsv_to_rgb(tf.concat([tf.math.floormod(hue + turns, 1.0), saturation, value], axis=-1))
    return tf.cast(rgb * TO_UINT8, tf.uint8)
