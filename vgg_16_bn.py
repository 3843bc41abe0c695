"""VGG-16 of today: batch normalisation after each convolution, a global average in the place of two dense layers.

The convolutions are those of `vgg_16.py`. A fifteenth of its weights is left: nearly all of those were in the first
dense layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

from normalisation import normalisation
from vgg_16 import BLOCKS, kernel

if TYPE_CHECKING:
    from config import TrainConfig


def vgg_16_bn(config: TrainConfig, num_classes: int) -> keras.Model:
    """Ten 3x3 convolutions in four blocks, global average pooling, one dense layer; 7,745,928 weights for 200 classes.

    Args:
        config: `crop_size`, `picture_sizes`, `width`, `dropout_keep_prob`, `reg` and `reg_last_only` are used.
        num_classes: C.

    Returns:
        A model from pictures (B, S, S, 3) uint8, S = crop_size or, with picture_sizes, any, to logits (B, C) float32.
    """
    size = None if config.picture_sizes else config.crop_size
    pictures = keras.Input((size, size, 3), dtype="uint8", name="pictures")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(pictures)  # (x - 128) / 128
    for block, filters in enumerate(BLOCKS, start=1):
        for number, count in enumerate(filters, start=1):
            name = f"{block}_{number}"
            units, options = round(count * config.width), kernel(config.hidden_reg)
            x = layers.Conv2D(units, 3, padding="same", use_bias=False, name=f"conv{name}", **options)(x)
            x = layers.ReLU(name=f"relu{name}")(normalisation(name=f"norm{name}")(x))
        if block < len(BLOCKS):
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)  # 56 -> 28 -> 14 -> 7 pixels
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # (B, 512)
    x = layers.Dropout(1 - config.dropout_keep_prob, name="dropout")(x)
    x = layers.Dense(num_classes, name="fc", **kernel(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(pictures, logits, name="vgg_16_bn")
