"""One hidden layer of 1,024 ReLU units, the second baseline (2017: 8 % top-1)."""

import math

import keras

from tiny_imagenet.config import TrainConfig


def single_layer_nn(config: TrainConfig, num_classes: int) -> keras.Model:
    """Pixels, 1,024 x width ReLU units, classes.

    Args:
        config: `crop_size`, `width`, `reg` and `reg_last_only` are used.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    images = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)  # (x - 128) / 128
    x = keras.layers.Flatten(name="flatten")(x)  # (B, 3 S^2)
    x = dense(round(1024 * config.width), x, config.hidden_reg, name="fc1")
    x = keras.layers.ReLU(name="relu1")(x)
    x = dense(num_classes, x, config.reg, name="fc2")
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="single_layer_nn")


def dense(units: int, x: keras.KerasTensor, reg: float, name: str) -> keras.KerasTensor:
    """A dense layer without activation; kernel and biases from N(0, 0.1 / sqrt(fan-in)), as in 2017."""
    stddev = 0.1 / math.sqrt(x.shape[-1])
    return keras.layers.Dense(
        units,
        kernel_initializer=keras.initializers.RandomNormal(stddev=stddev),
        bias_initializer=keras.initializers.RandomNormal(stddev=stddev),
        kernel_regularizer=keras.regularizers.L2(reg / 2) if reg else None,
        name=name,
    )(x)
