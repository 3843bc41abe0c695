"""The optimizers that `TrainConfig.optimizer` names: SGD with Nesterov momentum, and Muon."""

import math
from contextlib import contextmanager

import keras
from keras import ops

from tiny_imagenet.config import TrainConfig


def create_optimizer(config: TrainConfig, learning_rate, model: keras.Model) -> keras.optimizers.Optimizer:
    """Creates the optimizer of a run.

    Args:
        config: `optimizer`, `momentum`, `weight_decay` and `ema_momentum` are used.
        learning_rate: a number, or a Keras learning rate schedule.
        model: the model that it will train.
    """
    options = {"momentum": config.momentum, "weight_decay": config.weight_decay or None}
    options |= {"use_ema": config.ema_momentum > 0, "ema_momentum": config.ema_momentum}
    if config.optimizer == "muon":
        return Muon(learning_rate, model, **options)
    return SGD(learning_rate, nesterov=True, **options)


def set_learning_rate(model: keras.Model, learning_rate: float) -> None:
    """Sets the learning rate. As in TensorFlow 1, it applies to the whole velocity of SGD at once.

    Keras multiplies each gradient by the learning rate before adding it to the velocity, `v = m v - lr g`, which would
    keep the old learning rate for some steps. The averages of Muon and Adam are of gradients only.
    """
    optimizer = _inner_optimizer(model)
    before = float(optimizer.learning_rate)
    optimizer.learning_rate = learning_rate
    if isinstance(optimizer, SGD) and float(optimizer.learning_rate) != before:
        for velocity in optimizer.momentums:
            velocity.assign(velocity * (learning_rate / before))


def _inner_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)  # float16 wraps it to scale the loss


@contextmanager
def ema_weights(model: keras.Model):
    """Inside the block, the model has the moving average of its weights if its optimizer keeps one.

    The moving averages of batch normalization stay those of the last steps. They fit the averaged weights too once the
    learning rate has fallen to 0. (At a high one they would need recomputing: https://arxiv.org/abs/1803.05407.)
    """
    optimizer = _inner_optimizer(model)
    if not optimizer.use_ema or int(optimizer.iterations) == 0:  # float16 skips steps that overflow
        yield
        return
    last = [ops.copy(weight) for weight in model.trainable_variables]
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(model.trainable_variables, averages, strict=True):
        weight.assign(ops.copy(average))  # a copy, because JAX donates the arrays to the evaluation
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, last, strict=True):
            weight.assign(value)


class OptimizerMixin:
    """Changes to Keras's optimizers: no weight decay on biases, and `fit` does not replace the weights by their EMA."""

    def _use_weight_decay(self, variable) -> bool:
        return len(variable.shape) > 1

    def finalize_variable_values(self, var_list) -> None:
        """Keeps the weights of the last step, from which the next `fit` continues."""


class SGD(OptimizerMixin, keras.optimizers.SGD):
    """Keras's SGD."""


class Muon(OptimizerMixin, keras.optimizers.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for kernels; Adam for scales, biases and the last layer.

    Each kernel's momentum, as a matrix with one row per input and one column per unit, is replaced by a matrix with the
    same singular vectors and with singular values near 1 (0.7 to 1.2, except for the smallest). Keras's Muon does this
    for dense kernels; this one also does it for convolutions, and in bfloat16 if the model does not compute in float32.

    Args:
        learning_rate: a step changes a kernel by at most about 0.2 times this, root mean square, as AdamW would
            (https://arxiv.org/abs/2502.16982); by less if most singular values are among the smallest. Adam's
            learning rate is a quarter of it.
        model: the model that it will train; its last kernel computes the logits.
        options: passed to Keras's Muon.
    """

    def __init__(self, learning_rate, model: keras.Model, **options) -> None:
        # 3 Newton-Schulz steps instead of Muon's 5: results/LOG.md says what that costs and saves
        settings = {"adam_weight_decay": None, "rms_rate": None, "adam_lr_ratio": 0.25, "ns_steps": 3}
        super().__init__(learning_rate, **settings, **options)
        self.last_kernel = [weight.path for weight in model.trainable_variables if len(weight.shape) > 1][-1:]
        self.matmul_dtype = "float32" if model.compute_dtype == "float32" else "bfloat16"  # float16 would overflow

    def _should_use_adamw(self, variable) -> bool:
        return len(variable.shape) < 2 or variable.path in self.last_kernel

    def zeropower_via_newtonschulz5(self, x, steps: int):
        """Computes the update of one kernel, of any shape (..., F), with a root mean square of at most about 0.2."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        matrix = matrix / (ops.norm(matrix) + 1e-7)  # in float32; Keras normalizes again in `matmul_dtype`
        update = super().zeropower_via_newtonschulz5(ops.cast(matrix, self.matmul_dtype), steps)
        scale = 0.2 * math.sqrt(max(matrix.shape))
        return scale * ops.cast(ops.reshape(update, x.shape), x.dtype)
