"""Top-1 and top-5 accuracy, one value per image; calibration error; accuracy and mistakes class by class.

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

    Ties are broken, so that equal logits do not count as k right answers (as they do in `tf.math.in_top_k`).

    Args:
        labels: (B,) int, class ids.
        logits: (B, C) float.
        k: how many guesses count; all C if there are fewer classes.

    Returns:
        (B,) float32.
    """
    _, guesses = ops.top_k(logits, k=min(k, logits.shape[-1]))  # (B, k), highest first
    hits = ops.equal(guesses, ops.expand_dims(ops.cast(labels, guesses.dtype), -1))
    return ops.cast(ops.any(hits, axis=-1), "float32")


def expected_calibration_error(confidences: np.ndarray, hits: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """How far the probabilities are from the accuracies (Guo et al., https://arxiv.org/abs/1706.04599).

    The images are grouped by confidence into intervals of equal width. The error is the distance between an interval's
    mean confidence and its accuracy, averaged over all images.

    Args:
        confidences: (N,) float, the probability of the predicted class, 0 to 1.
        hits: (N,), 1 where the prediction is right, else 0.
        bins: how many intervals.

    Returns:
        0 (calibrated) to 1.
    """
    places = np.clip(np.ceil(np.asarray(confidences, "float64") * bins).astype(int) - 1, 0, bins - 1)
    surplus = np.bincount(places, np.asarray(confidences, "float64") - hits, minlength=bins)
    return float(np.abs(surplus).sum() / len(places))


def class_accuracies(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """The accuracy of each class, (C,) float; NaN for a class without images.

    Args:
        labels: (N,) int, the true classes.
        guesses: (N,) int, the predicted ones.
        num_classes: C.
    """
    images = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[labels == guesses], minlength=num_classes)
    return np.divide(right, images, out=np.full(num_classes, np.nan), where=images > 0)


def most_confused(labels: np.ndarray, guesses: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """The most frequent mistakes as (true class, predicted class, number of images), most frequent first.

    Args:
        labels, guesses: as for `class_accuracies`.
        count: how many pairs, at most.
    """
    wrong = labels != guesses
    pairs, times = np.unique(np.stack([labels[wrong], guesses[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(times[i])) for i in order]


def confusion_matrix(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """The mean probability of each class over the images of each true class.

    Counts of guesses need many images to fill the matrix; probabilities show doubt as well as mistakes.

    Args:
        labels: (N,) int, the true classes.
        probabilities: (N, C), of each class for each image.

    Returns:
        (C, C) float: a row for each true class; zeros for a class without images.
    """
    members = np.eye(probabilities.shape[1])[labels]  # (N, C), one-hot
    return members.T @ probabilities / np.maximum(members.sum(axis=0), 1)[:, None]


def group_classes(confusion: np.ndarray) -> np.ndarray:
    """Orders the classes so that those that are confused with each other are neighbors.

    The two groups of classes with the highest mean confusion are joined until one is left (average linkage).

    Args:
        confusion: (C, C), 0 or more, from `confusion_matrix`.

    Returns:
        (C,) int, class ids.
    """
    groups, sums = [[label] for label in range(len(confusion))], confusion + confusion.T
    while len(groups) > 1:
        sizes = np.array([len(group) for group in groups])
        means = sums / np.outer(sizes, sizes)
        np.fill_diagonal(means, -1)  # a group is not joined with itself
        first, second = sorted(np.unravel_index(means.argmax(), means.shape))
        groups[first] += groups.pop(second)
        sums[first] += sums[second]
        sums[:, first] += sums[:, second]
        sums = np.delete(np.delete(sums, second, axis=0), second, axis=1)
    return np.array(groups[0])
