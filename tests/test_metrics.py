"""Accuracies, calibration and mistakes against values worked out by hand."""

import numpy as np
import pytest
from keras import ops

from metrics import (
    accuracy,
    class_accuracies,
    confusion_matrix,
    expected_calibration_error,
    group_classes,
    most_confused,
    top_5_accuracy,
)

FALLING = [[7, 6, 5, 4, 3, 2, 1]] * 4


@pytest.mark.parametrize(
    ("labels", "logits", "top_1", "top_5"),
    [
        ([0, 1, 4, 5], FALLING, [1, 0, 0, 0], [1, 1, 1, 0]),
        (range(7), np.zeros((7, 7)), [1, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]),  # equal logits are not all right
        ([1, 0], [[1.1, 0], [1, 1]], [0, 1], [1, 1]),  # fewer classes than guesses
    ],
)
def test_top_1_and_top_5(labels, logits, top_1, top_5):
    labels, logits = np.array(labels, np.int32), np.array(logits, np.float32)
    np.testing.assert_array_equal(ops.convert_to_numpy(accuracy(labels, logits)), top_1)
    np.testing.assert_array_equal(ops.convert_to_numpy(top_5_accuracy(labels, logits)), top_5)


def test_expected_calibration_error():
    # 2 bins: (0, 0.5] has 0.4 and 0.5, one right; (0.5, 1] has 0.9 and 1.0, one right
    confidences, hits = np.array([0.4, 0.5, 0.9, 1.0]), np.array([1, 0, 0, 1])
    expected = 2 / 4 * abs(0.45 - 0.5) + 2 / 4 * abs(0.95 - 0.5)
    assert expected_calibration_error(confidences, hits, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(np.array([0.0, 1.0], "float32"), np.array([0, 1])) == 0
    assert expected_calibration_error(np.ones(4), np.array([1, 1, 1, 0])) == pytest.approx(0.25)


def test_class_accuracies():
    found = class_accuracies(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0]), 4)
    np.testing.assert_array_equal(found, [0.5, 1, np.nan, 0])


def test_most_confused():
    labels, guesses = np.array([0, 2, 2, 2, 1, 1]), np.array([0, 1, 1, 0, 2, 2])
    assert most_confused(labels, guesses) == [(1, 2, 2), (2, 1, 2), (2, 0, 1)]
    assert most_confused(labels, guesses, count=1) == [(1, 2, 2)]
    assert most_confused(labels, labels) == []


def test_confusion_matrix():
    probabilities = np.array([[0.5, 0.5, 0], [1, 0, 0], [0.2, 0.3, 0.5]])
    found = confusion_matrix(np.array([0, 0, 2]), probabilities)
    np.testing.assert_allclose(found, [[0.75, 0.25, 0], [0, 0, 0], [0.2, 0.3, 0.5]])  # class 1 has no images


def test_group_classes():
    confusion = np.eye(5)
    confusion[0, 3], confusion[4, 1] = 0.4, 0.3  # in either direction
    confusion[2, 1] = 0.2  # class 2 joins 1 and 4: mean 0.1; to 0 and 3, its mean is (0.15 + 0) / 2
    confusion[2, 0] = 0.15
    before = confusion.copy()
    np.testing.assert_array_equal(group_classes(confusion), [0, 3, 1, 4, 2])
    np.testing.assert_array_equal(confusion, before)
    np.testing.assert_array_equal(group_classes(np.ones((1, 1))), [0])
