"""Logistic regression on pixels: the first rung (2017: 3 % top-1)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import keras

if TYPE_CHECKING:
    from config import TrainConfig


def logistic_regression(config: TrainConfig, num_classes: int) -> keras.Model:
    """One dense layer from pixels to classes.

    Args:
        config: `crop_size` and `reg` are used.
        num_classes: C.

    Returns:
        A model from pictures (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    pictures = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="pictures")
    x = keras.layers.Rescaling(1 / 128, offset=-1, name="rescale")(pictures)  # (x - 128) / 128
    x = keras.layers.Flatten(name="flatten")(x)  # (B, 3 S^2)
    x = keras.layers.Dense(
        num_classes,
        # 2017: untruncated normal, the biases from the same one as their kernel
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.1 / math.sqrt(x.shape[-1])),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.1 / math.sqrt(x.shape[-1])),
        kernel_regularizer=keras.regularizers.L2(config.reg / 2) if config.reg else None,
        name="fc1",
    )(x)
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(pictures, logits, name="logistic_regression")
