"""The optimizers that `TrainConfig.optimizer` names: SGD with Nesterov momentum, and Muon."""

from startup import keras

import math
from contextlib import contextmanager

from config import TrainConfig

ops = keras.ops

NEWTON_SCHULZ_STEPS = 3  # of Muon's five: the log has what that costs and saves
ADAM_RATE = 0.25  # of Muon's


def optimizer_for(config: TrainConfig, rate, model: keras.Model) -> keras.optimizers.Optimizer:
    """The optimizer of a run, not yet built.

    Args:
        config: `optimizer`, `momentum`, `weight_decay` and `ema_momentum` are used.
        rate: the learning rate: a number, or a schedule of Keras's.
        model: the one it is to train.
    """
    options = {"momentum": config.momentum, "weight_decay": config.weight_decay or None}
    options |= {"use_ema": config.ema_momentum > 0, "ema_momentum": config.ema_momentum}
    return Muon(rate, model, **options) if config.optimizer == "muon" else SGD(rate, nesterov=True, **options)


@contextmanager
def averaged(model: keras.Model):
    """Within the block the model has its averaged weights, if its optimizer keeps them; then those of the last step.

    Running means of batch normalisation are those of the last steps all the time: with a rate that falls to 0 they fit
    the averages, too, at the end. (At a high rate they would have to be worked out anew: https://arxiv.org/abs/1803.05407.)
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)  # in float16 one that scales the loss
    if not optimizer.use_ema or int(optimizer.iterations) == 0:  # float16 leaves out steps that overflow
        yield
        return
    trained = [ops.copy(weight) for weight in model.trainable_variables]
    averages = optimizer._model_variables_moving_average
    for weight, average in zip(model.trainable_variables, averages, strict=True):
        weight.assign(ops.copy(average))  # a copy: JAX gives the arrays of an evaluation away
    try:
        yield
    finally:
        for weight, value in zip(model.trainable_variables, trained, strict=True):
            weight.assign(value)


class Ours:
    """What both do otherwise than Keras's, which decay biases too, and make averages the weights after each `fit`."""

    def _use_weight_decay(self, variable) -> bool:
        return len(variable.shape) > 1

    def finalize_variable_values(self, var_list) -> None:
        """Leaves the weights as the last step left them: the next `fit` goes on from there."""


class SGD(Ours, keras.optimizers.SGD):
    """Keras's SGD."""


class Muon(Ours, keras.optimizers.Muon):
    """Muon (https://kellerjordan.github.io/posts/muon/) for kernels; Adam for scales, biases and the last layer.

    Each kernel's momentum, as a matrix of a row an input and a column a unit, is replaced by one with the same singular
    vectors and singular values near 1 (0.7 to 1.2, but for the smallest). Keras's own does so for dense kernels alone,
    this one for those of convolutions too, and it multiplies in bfloat16 if the model's layers are not in float32.

    Args:
        rate: the learning rate: a step changes a kernel by at most about 0.2 times the rate, root mean square, as
            AdamW's would (https://arxiv.org/abs/2502.16982); by less where most singular values are among the
            smallest. Adam's own rate is a quarter of it.
        model: the one it is to train; its last kernel makes the logits.
        options: Keras's.
    """

    def __init__(self, rate, model: keras.Model, **options) -> None:
        super().__init__(
            rate,
            adam_weight_decay=None,
            rms_rate=None,
            adam_lr_ratio=ADAM_RATE,
            ns_steps=NEWTON_SCHULZ_STEPS,
            **options,
        )
        self.last_kernel = [weight.path for weight in model.trainable_variables if len(weight.shape) > 1][-1:]
        self.arithmetic = "float32" if model.compute_dtype == "float32" else "bfloat16"  # float16 is too narrow

    def _should_use_adamw(self, variable) -> bool:
        return len(variable.shape) < 2 or variable.path in self.last_kernel

    def zeropower_via_newtonschulz5(self, x, steps: int):
        """The update of one kernel, of any shape (..., F), with a root mean square of at most about 0.2."""
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        matrix = matrix / (ops.norm(matrix) + 1e-7)  # in float32: Keras's own norm follows in `arithmetic`
        update = super().zeropower_via_newtonschulz5(ops.cast(matrix, self.arithmetic), steps)
        scale = 0.2 * math.sqrt(max(matrix.shape))
        return scale * ops.cast(ops.reshape(update, x.shape), x.dtype)
