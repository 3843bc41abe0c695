"""ResNet-18 for small pictures: a tenth of VGG-16's weights, and a third of its arithmetic.

After He et al., "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385), with a 3x3 stem of
stride 2 and no first pool. Each block begins as the identity: the scale of its last normalisation starts at 0 (Goyal et
al., https://arxiv.org/abs/1706.02677).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras
from keras import layers

from normalisation import normalisation

if TYPE_CHECKING:
    from config import TrainConfig

STAGES = (64, 128, 256, 512)  # filters; two blocks of two convolutions each


def resnet_18(config: TrainConfig, num_classes: int) -> keras.Model:
    """Eight residual blocks, global average pooling, one dense layer; 11,281,032 weights for 200 classes at width 1.

    Args:
        config: `crop_size`, `picture_sizes`, `width`, `reg` and `reg_last_only` are used.
        num_classes: C.

    Returns:
        A model from pictures (B, S, S, 3) uint8, S = crop_size or, with picture_sizes, any, to logits (B, C) float32.
    """
    size = None if config.picture_sizes else config.crop_size
    pictures = keras.Input((size, size, 3), dtype="uint8", name="pictures")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(pictures)  # (x - 128) / 128
    x = conv(x, round(STAGES[0] * config.width), 3, 2, config.hidden_reg, name="conv1")
    x = layers.ReLU(name="relu1")(normalisation(name="norm1")(x))
    for stage, filters in enumerate(STAGES, start=2):
        for number in (1, 2):
            stride = 2 if number == 1 and stage > 2 else 1
            x = block(x, round(filters * config.width), stride, config.hidden_reg, name=f"{stage}_{number}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # (B, 512)
    x = layers.Dense(num_classes, name="fc", **kernel(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(pictures, logits, name="resnet_18")


def block(x: keras.KerasTensor, filters: int, stride: int, reg: float, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions, added to what they were given; a 1x1 convolution carries that over where shapes change."""
    short = x
    if stride > 1 or x.shape[-1] != filters:
        short = conv(x, filters, 1, stride, reg, name=f"short{name}")
        short = normalisation(name=f"norm_short{name}")(short)
    x = conv(x, filters, 3, stride, reg, name=f"conv{name}a")
    x = layers.ReLU(name=f"relu{name}a")(normalisation(name=f"norm{name}a")(x))
    x = conv(x, filters, 3, 1, reg, name=f"conv{name}b")
    x = normalisation(name=f"norm{name}b", gamma_initializer="zeros")(x)
    return layers.ReLU(name=f"relu{name}b")(layers.Add(name=f"add{name}")([x, short]))


def conv(x: keras.KerasTensor, filters: int, size: int, stride: int, reg: float, name: str) -> keras.KerasTensor:
    """A convolution without biases, which the normalisation after it would take out again.

    With a stride of 2 it is padded on all sides alike. "same" pads a picture of even side at its end alone, one of odd
    side on both: what a net has learnt at one size would then lie half a step off at another, and off the short cut.
    """
    padding = "same"
    if stride > 1 and size > 1:
        x, padding = layers.ZeroPadding2D(size // 2, name=f"pad_{name}")(x), "valid"
    return layers.Conv2D(filters, size, stride, padding, use_bias=False, name=name, **kernel(reg))(x)


def kernel(reg: float) -> dict:
    """Initialiser (He et al., https://arxiv.org/abs/1502.01852, by fan-out) and L2 penalty of one kernel."""
    return {
        "kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        "kernel_regularizer": keras.regularizers.L2(reg / 2) if reg else None,
    }
