"""The losses: of class ids (B,) int and logits (B, C) float, one value per image, (B,) float32."""

from collections.abc import Callable
from functools import partial

import keras
from keras import ops


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
    """Softmax cross-entropy with label smoothing (Szegedy et al., https://arxiv.org/abs/1512.00567).

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.
        smoothing: the share of the target that is spread evenly over all C classes, 0 to 1.

    Returns:
        (B,) float32.
    """
    logits = ops.cast(logits, "float32")
    targets = ops.one_hot(labels, logits.shape[-1], dtype="float32")  # (B, C)
    return keras.losses.categorical_crossentropy(targets, logits, from_logits=True, label_smoothing=smoothing)


def svm_loss(labels, logits):
    """One-vs-all hinge, as in 2017: mean over classes of max(0, 1 + w * logit), w = -C for the true class, else +1.

    The true class's logit only has to reach 1 / C, but its gradient is C times as large as that of each other class,
    whose logit is pushed below -1. (Unlike in Crammer and Singer's hinge, no two logits are compared.)

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


def loss_by_name(name: str, smoothing: float) -> Callable:
    """The loss that `TrainConfig.loss` names: softmax_ce, softmax_smooth_ce (with this smoothing) or svm."""
    smooth = partial(softmax_smooth_ce_loss, smoothing=smoothing)
    return {"softmax_ce": softmax_ce_loss, "softmax_smooth_ce": smooth, "svm": svm_loss}[name]
