"""Training steps of full-width VGG-16 for 200 classes: this repository's, and a straight Keras port of the network.

A round runs a few steps on one fixed batch and returns images per second.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from input_pipe import without_tuning
from tiny_imagenet.models import create_model, resolve_precision
from tiny_imagenet.recipes import BASE, RECIPES
from train import compile_model

NUM_CLASSES = 200
STEPS = {64: 10, 256: 5}  # batch size -> steps per round


def fixed_batch(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (B, 56, 56, 3) uint8 and labels (B,) int32; their content does not affect the time."""
    rng = np.random.default_rng(0)
    shape = (size, BASE.crop_size, BASE.crop_size, 3)
    return rng.integers(0, 256, shape, np.uint8), rng.integers(0, NUM_CLASSES, size, np.int32)


def time_steps(model: keras.Model, batch_size: int) -> Callable[[], float]:
    """A round: `fit` on the same batch several times, after two steps of warm-up."""
    batches = without_tuning(tf.data.Dataset.from_tensors(fixed_batch(batch_size)).repeat())

    def fit(steps: int) -> None:
        model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=0)

    fit(2)

    def run_round() -> float:
        start, steps = time.perf_counter(), STEPS[batch_size]
        fit(steps)
        return steps * batch_size / (time.perf_counter() - start)

    return run_round


def bare_step(config) -> Callable[[], float]:
    """Only the compiled step, with the model, loss, optimizer and metrics that train.py creates for these settings."""
    config = resolve_precision(config, NUM_CLASSES)
    model = create_model(config, NUM_CLASSES)
    compile_model(model, config, total_steps=1)
    return time_steps(model, config.batch_size)


def ours_fast(_data_dir: Path) -> Callable[[], float]:
    """The recipe vgg_16_fast."""
    return bare_step(RECIPES["vgg_16_fast"])


def ours_default(_data_dir: Path) -> Callable[[], float]:
    """2017's settings."""
    return bare_step(BASE)


def keras_port(_data_dir: Path) -> Callable[[], float]:
    """The network as Keras's guides would write it: float32, batches of 64, `compile` and the step of `fit`."""
    layers, penalty = keras.layers, keras.regularizers.L2(BASE.reg / 2)

    def conv(filters):
        return layers.Conv2D(filters, 3, padding="same", activation="relu", kernel_regularizer=penalty)

    network = [keras.Input((BASE.crop_size, BASE.crop_size, 3)), layers.Rescaling(1 / 128, offset=-1)]
    for number, block in enumerate(((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))):
        network += [layers.MaxPooling2D()] if number else []
        network += map(conv, block)
    network.append(layers.Flatten())
    for units in (4096, 2048):
        network += [layers.Dense(units, activation="relu", kernel_regularizer=penalty), layers.Dropout(0.5)]
    model = keras.Sequential([*network, layers.Dense(NUM_CLASSES, kernel_regularizer=penalty)])
    model.compile(
        optimizer=keras.optimizers.SGD(BASE.lr, momentum=BASE.momentum, nesterov=True),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return time_steps(model, BASE.batch_size)
