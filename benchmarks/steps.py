"""Training steps of full-width VGG-16 for 200 classes: this repository's, and a straight Keras port of the paper.

A round runs a few steps on one fixed batch and returns pictures a second.
"""

from startup import keras, tf

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from config import BASE, RECIPES
from input_pipe import as_written
from models import build_model, with_precision
from train import compile_model

CLASSES = 200
ROUND = {64: 10, 256: 5}  # batch size -> steps of a round


def fixed_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (B, 56, 56, 3) uint8 and labels (B,) int32; their content does not matter to the time."""
    draw = np.random.default_rng(0)
    shape = (size, BASE.crop_size, BASE.crop_size, 3)
    return draw.integers(0, 256, shape, np.uint8), draw.integers(0, CLASSES, size, np.int32)


def fitted(model: keras.Model, batch_size: int) -> Callable[[], float]:
    """A round: `fit` on one batch again and again, after two steps to warm up."""
    batches = as_written(tf.data.Dataset.from_tensors(fixed_batch(batch_size)).repeat())

    def fit(steps: int) -> None:
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    fit(2)

    def timed_round() -> float:
        start, steps = time.perf_counter(), ROUND[batch_size]
        fit(steps)
        return steps * batch_size / (time.perf_counter() - start)

    return timed_round


def bare(config) -> Callable[[], float]:
    """The compiled step alone, with the model, loss, optimizer and metrics that train.py makes of these settings."""
    config = with_precision(config, CLASSES)
    model = build_model(config, CLASSES)
    compile_model(model, config, total_steps=1)
    return fitted(model, config.batch_size)


def ours_fast(_data_dir: Path) -> Callable[[], float]:
    """The recipe vgg_16_fast."""
    return bare(RECIPES["vgg_16_fast"])


def ours_default(_data_dir: Path) -> Callable[[], float]:
    """2017's settings."""
    return bare(BASE)


def keras_port(_data_dir: Path) -> Callable[[], float]:
    """The net as Keras's guides would write it: float32, batches of 64, `compile` and `fit`'s own step."""
    layers, penalty = keras.layers, keras.regularizers.L2(BASE.reg / 2)

    def conv(filters):
        return layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=penalty)

    net = [keras.Input((BASE.crop_size, BASE.crop_size, 3)), layers.Rescaling(1 / 128, offset=-1)]
    for number, block in enumerate(((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))):
        net += [layers.MaxPooling2D()] if number else []
        net += map(conv, block)
    net.append(layers.Flatten())
    for units in (4096, 2048):
        net += [layers.Dense(units, activation="relu", kernel_regularizer=penalty), layers.Dropout(0.5)]
    model = keras.Sequential([*net, layers.Dense(CLASSES, kernel_regularizer=penalty)])
    model.compile(
        optimizer=keras.optimizers.SGD(BASE.lr, momentum=BASE.momentum, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return fitted(model, BASE.batch_size)
