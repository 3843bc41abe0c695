"""ResNet-18 for small images: a tenth of VGG-16's parameters, and a third of its arithmetic.

After He et al., "Deep Residual Learning for Image Recognition" (https://arxiv.org/abs/1512.03385), with a 3x3 stem of
stride 2 and no max pooling. Each block starts as the identity: the scale of its last batch normalization starts at 0
(Goyal et al., https://arxiv.org/abs/1706.02677).
"""

import keras
from keras import layers

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.layers import batch_norm

STAGES = (64, 128, 256, 512)  # filters; each stage has two blocks of two convolutions


def resnet_18(config: TrainConfig, num_classes: int) -> keras.Model:
    """Eight residual blocks, global average pooling, one dense layer; 11,281,032 parameters for 200 classes at width 1.

    Args:
        config: `crop_size`, `image_sizes`, `width`, `reg` and `reg_last_only` are used.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size or, with image_sizes, any, to logits (B, C) float32.
    """
    size = None if config.image_sizes else config.crop_size
    images = keras.Input((size, size, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)  # (x - 128) / 128
    x = conv(x, round(STAGES[0] * config.width), 3, 2, config.hidden_reg, name="conv1")
    x = layers.ReLU(name="relu1")(batch_norm(name="norm1")(x))
    for stage, filters in enumerate(STAGES, start=2):
        for number in (1, 2):
            stride = 2 if number == 1 and stage > 2 else 1
            x = block(x, round(filters * config.width), stride, config.hidden_reg, name=f"{stage}_{number}")
    x = layers.GlobalAveragePooling2D(name="pool")(x)  # (B, 512)
    x = layers.Dense(num_classes, name="fc", **kernel_options(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="resnet_18")


def block(x: keras.KerasTensor, filters: int, stride: int, reg: float, name: str) -> keras.KerasTensor:
    """Two 3x3 convolutions plus a shortcut, which is the identity or, where the shape changes, a 1x1 convolution."""
    shortcut = x
    if stride > 1 or x.shape[-1] != filters:
        shortcut = conv(x, filters, 1, stride, reg, name=f"short{name}")
        shortcut = batch_norm(name=f"norm_short{name}")(shortcut)
    x = conv(x, filters, 3, stride, reg, name=f"conv{name}a")
    x = layers.ReLU(name=f"relu{name}a")(batch_norm(name=f"norm{name}a")(x))
    x = conv(x, filters, 3, 1, reg, name=f"conv{name}b")
    x = batch_norm(name=f"norm{name}b", gamma_initializer="zeros")(x)
    return layers.ReLU(name=f"relu{name}b")(layers.Add(name=f"add{name}")([x, shortcut]))


def conv(x: keras.KerasTensor, filters: int, size: int, stride: int, reg: float, name: str) -> keras.KerasTensor:
    """A convolution without biases, which batch normalization would cancel.

    With stride 2 it pads all four sides equally. Keras's "same" pads an even side only at its end, but an odd side at
    both ends: features learned at one image size would then be shifted at another, and against the shortcut.
    """
    padding = "same"
    if stride > 1 and size > 1:
        x, padding = layers.ZeroPadding2D(size // 2, name=f"pad_{name}")(x), "valid"
    return layers.Conv2D(filters, size, stride, padding, use_bias=False, name=name, **kernel_options(reg))(x)


def kernel_options(reg: float) -> dict:
    """Initializer (He et al., https://arxiv.org/abs/1502.01852, by fan-out) and L2 penalty of one kernel."""
    return {
        "kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
        "kernel_regularizer": keras.regularizers.L2(reg / 2) if reg else None,
    }
