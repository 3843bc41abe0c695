"""A modern VGG-16: batch normalization after each convolution, global average pooling instead of two dense layers.

It has the convolutions of `vgg_16.py` but only a fifteenth of its parameters, most of which are in the first dense
layer.
"""

import keras
from keras import layers

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.layers import batch_norm
from vgg_16 import BLOCKS, kernel_options


def vgg_16_bn(config: TrainConfig, num_classes: int) -> keras.Model:
    """Ten 3x3 convolutions in four blocks, global average pooling, one dense layer; 7,745,928 parameters (200 classes).

    Args:
        config: `crop_size`, `image_sizes`, `width`, `dropout_keep_prob`, `reg` and `reg_last_only` are used.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size or, with image_sizes, any, to logits (B, C) float32.
    """
    size = None if config.image_sizes else config.crop_size
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)  # (x - 128) / 128
    for block, filters in enumerate(BLOCKS, start=1):
        for number, count in enumerate(filters, start=1):
            name = f"{block}_{number}"
            units, options = round(count * config.width), kernel_options(config.hidden_reg)
            x = layers.Conv2D(units, 3, padding="same", use_bias=False, name=f"conv{name}", **options)(x)
            x = layers.ReLU(name=f"relu{name}")(batch_norm(name=f"norm{name}")(x))
        if block < len(BLOCKS):
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)  # 56 -> 28 -> 14 -> 7 pixels
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # (B, 512)
    x = layers.Dropout(1 - config.dropout_keep_prob, name="dropout")(x)
    x = layers.Dense(num_classes, name="fc", **kernel_options(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="vgg_16_bn")
