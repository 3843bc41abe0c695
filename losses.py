"""The losses, by name: of class ids (B,) int and logits (B, C) float, one value a picture, (B,) float32."""

from collections.abc import Callable
from functools import partial

import keras
from keras import ops

Loss = Callable[[keras.KerasTensor, keras.KerasTensor], keras.KerasTensor]


def softmax_ce_loss(labels, logits):
    """Softmax cross-entropy: -log softmax(logits)[label].

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.

    Returns:
        (B,) float32.
    """
    return softmax_smooth_ce_loss(labels, logits, smoothing=0.0)


def softmax_smooth_ce_loss(labels, logits, smoothing: float = 0.1):
    """Softmax cross-entropy against smoothed targets (Szegedy et al., https://arxiv.org/abs/1512.00567).

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.
        smoothing: share of the target that is spread evenly over all C classes, 0 to 1.

    Returns:
        (B,) float32.
    """
    logits = ops.cast(logits, "float32")
    targets = ops.one_hot(labels, logits.shape[-1], dtype="float32")  # (B, C)
    return keras.losses.categorical_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)


def svm_loss(labels, logits):
    """One-vs-all hinge, as in 2017: mean over classes of max(0, 1 + w * logit), w = -C for the true class, else +1.

    So the true class's logit need only reach 1 / C, and is pulled there C times as hard as each other one is pushed
    below -1. (It is none of the multi-class hinges that compare logits, as Crammer and Singer's does.)

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.

    Returns:
        (B,) float32.
    """
    logits = ops.cast(logits, "float32")
    num_classes = logits.shape[-1]
    weights = 1.0 - (num_classes + 1) * ops.one_hot(labels, num_classes, dtype="float32")  # (B, C)
    return ops.mean(ops.relu(1.0 + weights * logits), axis=-1)


def loss_by_name(name: str, smoothing: float) -> Loss:
    """The loss that `TrainConfig.loss` names: softmax_ce, softmax_smooth_ce (with this smoothing) or svm."""
    return {
        "softmax_ce": softmax_ce_loss,
        "softmax_smooth_ce": partial(softmax_smooth_ce_loss, smoothing=smoothing),
        "svm": svm_loss,
    }[name]
