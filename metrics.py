"""Top-1 and top-5 accuracy, one value a picture; how far a model's probabilities are from its accuracy.

A tie between classes goes to the one with the lower id.
"""

import numpy as np
from keras import ops

CALIBRATION_BINS = 15


def accuracy(labels, logits):
    """1 where the label has the highest logit, else 0.

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.

    Returns:
        (B,) float32.
    """
    return top_k_accuracy(labels, logits, k=1)


def top_5_accuracy(labels, logits):
    """1 where the label is among the five highest logits, else 0; arguments and result as for `accuracy`."""
    return top_k_accuracy(labels, logits, k=5)


def top_k_accuracy(labels, logits, k: int):
    """1 where the label is among the k highest logits, else 0.

    Logits that are all alike must not count as k right answers (as they do in `tf.math.in_top_k`), so ties are broken.

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.
        k: how many guesses count; all C where there are fewer classes than that.

    Returns:
        (B,) float32.
    """
    _, guesses = ops.top_k(logits, k=min(k, logits.shape[-1]))  # (B, k), highest first
    hits = ops.equal(guesses, ops.expand_dims(ops.cast(labels, guesses.dtype), -1))
    return ops.cast(ops.any(hits, axis=-1), "float32")


def expected_calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """How far probabilities are from accuracies (Guo et al., https://arxiv.org/abs/1706.04599).

    The pictures are sorted by confidence into intervals of equal width; it is the mean, over all pictures, of the
    distance between the mean confidence and the accuracy of the picture's interval.

    Args:
        confidences: (N,) float, the probability of the class that was guessed, 0 to 1.
        hits: (N,), 1 where the guess is right, else 0.
        bins: how many intervals.

    Returns:
        0 (accurate wherever it is sure) to 1.
    """
    places = np.clip(np.ceil(np.asarray(confidences, "float64") * bins).astype(int) - 1, 0, bins - 1)
    surplus = np.bincount(places, np.asarray(confidences, "float64") - hits, minlength=bins)
    return float(np.abs(surplus).sum() / len(places))
