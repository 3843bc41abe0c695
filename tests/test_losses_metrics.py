"""Losses and accuracies against values worked out by hand."""

from startup import keras

import math

import numpy as np
import pytest

from losses import loss_by_name, softmax_ce_loss, softmax_smooth_ce_loss, svm_loss
from metrics import accuracy, expected_calibration_error, top_5_accuracy, top_k_accuracy

# two pictures, two classes: softmax is (3/4, 1/4) and (1/2, 1/2)
LOGITS = np.array([[math.log(3), 0.0], [1.0, 1.0]], np.float32)
LABELS = np.array([1, 0], np.int32)


def numpy(tensor):
    return keras.ops.convert_to_numpy(tensor)


def test_softmax_ce():
    np.testing.assert_allclose(numpy(softmax_ce_loss(LABELS, LOGITS)), [math.log(4), math.log(2)], rtol=1e-6)


def test_smoothing_spreads_a_tenth_over_all_classes():
    # targets (0.05, 0.95): 0.05 * log(4/3) + 0.95 * log(4)
    expected = 0.05 * math.log(4 / 3) + 0.95 * math.log(4)
    np.testing.assert_allclose(numpy(softmax_smooth_ce_loss(LABELS, LOGITS))[0], expected, rtol=1e-6)


def test_svm_weighs_the_true_class_by_the_number_of_classes():
    logits = np.array([[0.5, -2.0, 0.0]], np.float32)
    # true class 0: max(0, 1 - 3 * 0.5) = 0; others: max(0, 1 - 2) = 0 and max(0, 1 + 0) = 1; mean of (0, 0, 1)
    np.testing.assert_allclose(numpy(svm_loss(np.array([0]), logits)), [1 / 3], rtol=1e-6)
    # true class 1: others 1.5 and 1; its own 1 + 3 * 2 = 7
    np.testing.assert_allclose(numpy(svm_loss(np.array([1]), logits)), [9.5 / 3], rtol=1e-6)


@pytest.mark.parametrize("name", ["softmax_ce", "softmax_smooth_ce", "svm"])
def test_every_loss_is_one_float32_a_picture_in_any_precision(name):
    loss = loss_by_name(name, smoothing=0.1)(LABELS, keras.ops.cast(LOGITS, "bfloat16"))
    assert loss.shape == (2,)
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"


def test_the_smoothing_of_the_settings_is_used():
    by_name = loss_by_name("softmax_smooth_ce", smoothing=0.0)(LABELS, LOGITS)
    np.testing.assert_allclose(numpy(by_name), numpy(softmax_ce_loss(LABELS, LOGITS)), rtol=1e-6)


def test_top_1_and_top_5():
    logits = np.array([[7, 6, 5, 4, 3, 2, 1]] * 4, np.float32)
    labels = np.array([0, 1, 4, 5])
    np.testing.assert_array_equal(numpy(accuracy(labels, logits)), [1, 0, 0, 0])
    np.testing.assert_array_equal(numpy(top_5_accuracy(labels, logits)), [1, 1, 1, 0])


def test_ties_are_not_all_right():
    logits = np.zeros((7, 7), np.float32)
    assert numpy(accuracy(np.arange(7), logits)).sum() == 1
    assert numpy(top_5_accuracy(np.arange(7), logits)).sum() == 5


def test_fewer_classes_than_guesses():
    np.testing.assert_array_equal(numpy(top_5_accuracy(LABELS, LOGITS)), [1, 1])
    np.testing.assert_array_equal(numpy(top_k_accuracy(LABELS, LOGITS, k=1)), [0, 1])


def test_expected_calibration_error():
    # of 2 intervals: (0, 0.5] has 0.4 and 0.5, one right; (0.5, 1] has 0.9 and 1.0, one right
    confidences, hits = np.array([0.4, 0.5, 0.9, 1.0]), np.array([1, 0, 0, 1])
    expected = 2 / 4 * abs(0.45 - 0.5) + 2 / 4 * abs(0.95 - 0.5)
    assert expected_calibration_error(confidences, hits, bins=2) == pytest.approx(expected)
    assert expected_calibration_error(np.array([0.0, 1.0], "float32"), np.array([0, 1])) == 0
    assert expected_calibration_error(np.ones(4), np.array([1, 1, 1, 0])) == pytest.approx(0.25)
