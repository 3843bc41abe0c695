"""VGG-16 for 64x64 pictures: the third rung (2017: 52 % top-1, 77 % top-5).

After Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(https://arxiv.org/abs/1409.1556), without its fifth block and its fourth pool: the pictures are small.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

if TYPE_CHECKING:
    from config import TrainConfig

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))  # filters of each 3x3 convolution


def vgg_16(config: TrainConfig, num_classes: int) -> keras.Model:
    """Ten 3x3 convolutions in four blocks, three dense layers; 119,200,264 weights for 200 classes at width 1.

    Each activation is a layer of its own, so that what comes before the ReLU can be reached by name:
    `conv1_1` ... `conv4_3`, `fc1` ... `fc3`.

    Args:
        config: `crop_size`, `width`, `hidden_units`, `dropout_layers`, `dropout_keep_prob`, `reg` and `reg_last_only`
            are used.
        num_classes: C.

    Returns:
        A model from pictures (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    pictures = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="pictures")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(pictures)  # (x - 128) / 128
    for block, filters in enumerate(BLOCKS, start=1):
        for number, count in enumerate(filters, start=1):
            units, options = round(count * config.width), kernel(config.hidden_reg)
            x = layers.Conv2D(units, 3, padding="same", name=f"conv{block}_{number}", **options)(x)
            x = layers.ReLU(name=f"relu{block}_{number}")(x)
        if block < len(BLOCKS):
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)  # 56 -> 28 -> 14 -> 7 pixels
    x = layers.Flatten(name="flatten")(x)  # (B, 7 * 7 * 512)
    for number, units in enumerate(config.hidden_units, start=1):
        x = layers.Dense(max(1, round(units * config.width)), name=f"fc{number}", **kernel(config.hidden_reg))(x)
        x = layers.ReLU(name=f"relu_fc{number}")(x)
        if number <= config.dropout_layers:
            x = layers.Dropout(1 - config.dropout_keep_prob, name=f"dropout{number}")(x)
    x = layers.Dense(num_classes, name=f"fc{len(config.hidden_units) + 1}", **kernel(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(pictures, logits, name="vgg_16")


def kernel(reg: float) -> dict:
    """Initialiser and L2 penalty of one kernel; each layer needs its own, for an initialiser repeats its draw.

    He et al., https://arxiv.org/abs/1502.01852, untruncated as in 2017; biases start at 0.
    """
    return {
        "kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"),
        "kernel_regularizer": keras.regularizers.L2(reg / 2) if reg else None,
    }
