"""Logistic regression on pixels, the simplest baseline (2017: 3 % top-1)."""

import math

import keras

from tiny_imagenet.config import TrainConfig


def logistic_regression(config: TrainConfig, num_classes: int) -> keras.Model:
    """One dense layer from pixels to classes.

    Args:
        config: `crop_size` and `reg` are used.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    images = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)  # (x - 128) / 128
    x = keras.layers.Flatten(name="flatten")(x)  # (B, 3 S^2)
    x = keras.layers.Dense(
        num_classes,
        # As in 2017: an untruncated normal, and the biases from the same distribution as the kernel
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.1 / math.sqrt(x.shape[-1])),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.1 / math.sqrt(x.shape[-1])),
        kernel_regularizer=keras.regularizers.L2(config.reg / 2) if config.reg else None,
        name="fc1",
    )(x)
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="logistic_regression")
