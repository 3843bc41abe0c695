"""The losses against values computed by hand."""

import math
from functools import partial

import keras
import numpy as np
import pytest

from losses import loss_by_name, softmax_ce_loss, softmax_smooth_ce_loss, svm_loss

# two images, two classes: softmax is (3/4, 1/4) and (1/2, 1/2)
LOGITS = np.array([[math.log(3), 0.0], [1.0, 1.0]], np.float32)
LABELS = np.array([1, 0], np.int32)


def test_softmax_ce():
    np.testing.assert_allclose(softmax_ce_loss(LABELS, LOGITS), [math.log(4), math.log(2)], rtol=1e-6)


def test_smoothing_spreads_a_tenth_over_all_classes():
    expected = 0.05 * math.log(4 / 3) + 0.95 * math.log(4)  # targets (0.05, 0.95)
    np.testing.assert_allclose(softmax_smooth_ce_loss(LABELS, LOGITS)[0], expected, rtol=1e-6)


def test_svm_weights_the_true_class_by_the_number_of_classes():
    logits = np.array([[0.5, -2.0, 0.0]], np.float32)
    # true class 0: max(0, 1 - 3 * 0.5) = 0; others: max(0, 1 - 2) = 0 and max(0, 1 + 0) = 1; mean of (0, 0, 1)
    np.testing.assert_allclose(svm_loss(np.array([0]), logits), [1 / 3], rtol=1e-6)
    # true class 1: 1 + 3 * 2 = 7; others: 1.5 and 1
    np.testing.assert_allclose(svm_loss(np.array([1]), logits), [9.5 / 3], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("softmax_ce", softmax_ce_loss),
        ("softmax_smooth_ce", partial(softmax_smooth_ce_loss, smoothing=0.2)),
        ("svm", svm_loss),
    ],
)
def test_every_loss_is_found_by_its_name_and_is_float32_in_any_precision(name, loss):
    logits = keras.ops.cast(LOGITS, "bfloat16")
    found = loss_by_name(name, smoothing=0.2)(LABELS, logits)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    np.testing.assert_array_equal(found, loss(LABELS, logits))
