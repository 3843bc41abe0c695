"""VGG-16 for 64x64 images, the best model of 2017 (then 52 % top-1, 77 % top-5).

After Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition"
(https://arxiv.org/abs/1409.1556), without the fifth block and the fourth pooling, because the images are small.
"""

import keras
from keras import layers

from tiny_imagenet.config import TrainConfig

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))  # filters of each 3x3 convolution


def vgg_16(config: TrainConfig, num_classes: int) -> keras.Model:
    """Ten 3x3 convolutions in four blocks, three dense layers; 119,200,264 parameters for 200 classes at width 1.

    Each activation is a separate layer, so that the values before the ReLU can be reached by layer name:
    `conv1_1` ... `conv4_3`, `fc1` ... `fc3`.

    Args:
        config: `crop_size`, `width`, `hidden_units`, `dropout_layers`, `dropout_keep_prob`, `reg` and `reg_last_only`
            are used.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    images = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="images")
    x = layers.Rescaling(1 / 128, offset=-1, name="rescale")(images)  # (x - 128) / 128
    for block, filters in enumerate(BLOCKS, start=1):
        for number, count in enumerate(filters, start=1):
            units, options = round(count * config.width), kernel_options(config.hidden_reg)
            x = layers.Conv2D(units, 3, padding="same", name=f"conv{block}_{number}", **options)(x)
            x = layers.ReLU(name=f"relu{block}_{number}")(x)
        if block < len(BLOCKS):
            x = layers.MaxPooling2D(2, name=f"pool{block}")(x)  # 56 -> 28 -> 14 -> 7 pixels
    x = layers.Flatten(name="flatten")(x)  # (B, 7 * 7 * 512)
    for number, units in enumerate(config.hidden_units, start=1):
        units, options = max(1, round(units * config.width)), kernel_options(config.hidden_reg)
        x = layers.Dense(units, name=f"fc{number}", **options)(x)
        x = layers.ReLU(name=f"relu_fc{number}")(x)
        if number <= config.dropout_layers:
            x = layers.Dropout(1 - config.dropout_keep_prob, name=f"dropout{number}")(x)
    x = layers.Dense(num_classes, name=f"fc{len(config.hidden_units) + 1}", **kernel_options(config.reg))(x)
    logits = layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, logits, name="vgg_16")


def kernel_options(reg: float) -> dict:
    """Initializer and L2 penalty of one kernel. Each layer needs its own: an initializer always draws the same values.

    He et al., https://arxiv.org/abs/1502.01852, untruncated as in 2017; biases start at 0.
    """
    return {
        "kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal"),
        "kernel_regularizer": keras.regularizers.L2(reg / 2) if reg else None,
    }
