"""Batch normalization (Ioffe and Szegedy, https://arxiv.org/abs/1502.03167), fused where TensorFlow can."""

import keras
import tensorflow as tf
from keras import layers


def batch_norm(name: str, **options) -> layers.Layer:
    """Creates batch normalization whose moving averages suit short training runs: they move by a tenth per step."""
    return FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=name, **options)


def has_batch_norm(model: keras.Model) -> bool:
    """Whether a model has a layer of batch normalization."""
    return any(isinstance(layer, layers.BatchNormalization) for layer in model.layers)


def copy_model(model: keras.Model, kind: type[layers.BatchNormalization], images=None, **changes) -> keras.Model:
    """Copies a functional model and its weights.

    Args:
        model: the model.
        kind: of its batch normalization: FusedBatchNormalization, or Keras's own, which Keras opens anywhere.
        images: its input tensor; None: like the original's.
        changes: to the configuration of every layer.
    """

    def copy_layer(layer):
        kind_of_layer = kind if isinstance(layer, layers.BatchNormalization) else type(layer)
        return kind_of_layer.from_config(layer.get_config() | changes)

    copy = keras.models.clone_model(model, input_tensors=images, clone_function=copy_layer)
    copy.set_weights(model.get_weights())
    return copy


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras's layer, computed by TensorFlow's fused operation: a network is about 1.2 times as fast on CPUs.

    It computes in float32 and returns the dtype of its inputs. With other backends it is Keras's own.
    """

    def __init__(self, **options) -> None:
        super().__init__(**(options | {"dtype": "float32", "autocast": False}))

    def call(self, inputs, training=None, mask=None):
        """Normalizes (B, H, W, F), any float dtype; in training over the batch, which updates the moving averages."""
        if keras.backend.backend() != "tensorflow":
            return keras.ops.cast(super().call(inputs, training=training, mask=mask), inputs.dtype)
        training = bool(training and self.trainable)
        outputs, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            inputs,
            self.gamma,
            self.beta,
            *(() if training else (self.moving_mean, self.moving_variance)),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
            variance *= (count - 1) / count  # the operation returns the unbiased variance, Keras keeps the biased one
            for average, value in ((self.moving_mean, mean), (self.moving_variance, variance)):
                average.assign(average * self.momentum + value * (1 - self.momentum))
        return outputs
