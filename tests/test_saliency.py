"""Saliency maps of models whose gradients are known by hand, or by finite differences."""

import keras
import numpy as np
import pytest
from keras import layers

from tiny_imagenet import saliency
from tiny_imagenet.errors import UserError
from tiny_imagenet.filters import filter_images
from tiny_imagenet.saliency import SALIENCY

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
CLASSES = np.array([1, 0, 1])


def rescaled_input(side: int = 8):
    images = keras.Input((side, side, 3), dtype="uint8")
    return images, layers.Rescaling(1 / 128, offset=-1)(images)


def randomize(model: keras.Model, seed: int = 0) -> keras.Model:
    """Draws all weights, biases too: without them, the gradient at an even gray image would be 0."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(0, 0.3, weight.shape)
        weight.assign(np.abs(values) if weight.name == "moving_variance" else values)
    return model


def linear_model() -> keras.Model:
    images, x = rescaled_input()
    return randomize(keras.Model(images, layers.Dense(2)(layers.Flatten()(x))))


def conv_model(**options) -> keras.Model:
    images, x = rescaled_input()
    x = layers.ReLU()(layers.Conv2D(6, 3, padding="same", name="conv1", **options)(x))
    x = layers.Conv2D(8, 3, padding="same", name="conv2", **options)(layers.MaxPooling2D()(x))
    x = layers.Flatten()(layers.ReLU(name="relu2")(x))
    return randomize(keras.Model(images, layers.Dense(2, dtype="float32")(x)))


def logits(model: keras.Model, images: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(images))


def test_the_gradient_of_a_linear_model_is_its_kernel():
    model = linear_model()
    kernel = model.get_weights()[0].reshape(8, 8, 3, 2) / 128  # of the logit per level of 0..255
    expected = np.stack([kernel[..., label] for label in CLASSES])
    np.testing.assert_allclose(saliency.gradient(model, IMAGES, CLASSES), expected, rtol=1e-5)
    norms = np.sqrt((expected**2).sum(axis=-1))
    np.testing.assert_allclose(SALIENCY["gradient"](model, IMAGES, CLASSES), norms, rtol=1e-5)


def test_the_gradient_equals_finite_differences_of_the_logit():
    model = conv_model()
    slope = saliency.gradient(model, IMAGES, CLASSES)[0]
    place = np.unravel_index(np.abs(slope).argmax(), slope.shape)
    nudge = np.zeros((1, 8, 8, 3), "float32")
    nudge[0][place] = 0.05
    floats = saliency.with_float_input(model)
    difference = logits(floats, IMAGES[:1] + nudge) - logits(floats, IMAGES[:1] - nudge)
    assert difference[0, CLASSES[0]] / 0.1 == pytest.approx(slope[place], rel=0.02)


def test_smoothgrad_is_the_mean_gradient_over_noise_relative_to_the_range(monkeypatch):
    model, seen = conv_model(), []
    slopes = saliency._logit_gradient(model)
    monkeypatch.setattr(saliency, "_logit_gradient", lambda _: lambda x, c: seen.append(x) or slopes(x, c))
    smooth = saliency.smoothgrad(model, IMAGES, CLASSES, samples=16, noise=0.2)
    deviation = 0.2 * (int(IMAGES[0].max()) - int(IMAGES[0].min()))
    assert (np.stack(seen) - IMAGES)[:, 0].std() == pytest.approx(deviation, rel=0.05)
    np.testing.assert_allclose(smooth, np.mean([slopes(copy, CLASSES) for copy in seen], axis=0), atol=1e-6)


@pytest.mark.parametrize("baseline", [0, 128])
def test_integrated_gradients_are_complete(baseline):
    model = conv_model()
    difference = (logits(model, IMAGES) - logits(model, np.full_like(IMAGES, baseline)))[np.arange(3), CLASSES]
    parts = saliency.integrated_gradients(model, IMAGES, CLASSES, steps=300, baseline=baseline)
    np.testing.assert_allclose(parts.sum(axis=(1, 2, 3)), difference, atol=0.01 * np.abs(difference).max())


def test_integrated_gradients_of_a_linear_model():
    model = linear_model()
    parts = (IMAGES - 128.0) * saliency.gradient(model, IMAGES, CLASSES)
    found = SALIENCY["integrated_gradients"](model, IMAGES, CLASSES)
    np.testing.assert_allclose(found, np.abs(parts.sum(axis=-1)), rtol=1e-4, atol=1e-5)


def test_grad_cam_of_two_color_detectors():
    """The convolution finds red and green above gray; logit 0: mean red - mean green, logit 1: mean green."""
    images, x = rescaled_input()
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.Conv2D(2, 1, use_bias=False)(x)))
    model = keras.Model(images, layers.Dense(2, use_bias=False)(x))
    model.set_weights([np.eye(3)[None, None, :, :2], np.array([[1.0, 0.0], [-1.0, 1.0]])])
    image = np.full((1, 8, 8, 3), 128, np.uint8)
    image[0, 2, 3, 0] = 192  # red 0.5
    image[0, 5, 5, 1] = 255  # green 127/128
    red, green = np.zeros((8, 8)), np.zeros((8, 8))
    red[2, 3], green[5, 5] = 0.5 / 64, 127 / 128 / 64  # a mean over 64 places: the gradient at each is 1/64
    np.testing.assert_allclose(SALIENCY["grad_cam"](model, image, np.array([0]))[0], red, atol=1e-7)
    np.testing.assert_allclose(SALIENCY["grad_cam"](model, image, np.array([1]))[0], green, atol=1e-7)


def test_grad_cam_uses_what_follows_the_last_convolution_and_needs_one():
    model = conv_model()
    assert saliency._last_maps(model) is model.get_layer("relu2").output
    with pytest.raises(UserError, match="no convolution, which grad_cam needs"):
        SALIENCY["grad_cam"](linear_model(), IMAGES, CLASSES)


@pytest.mark.parametrize("method", SALIENCY)
def test_maps_depend_on_the_weights_and_hardly_on_the_precision(method):
    """Adebayo et al., https://arxiv.org/abs/1810.03292: a map that random weights do not change shows no model."""
    found = SALIENCY[method](conv_model(), IMAGES, CLASSES)
    assert (found.shape, found.dtype, found.min() >= 0) == ((3, 8, 8), np.float32, True)
    for one, other in zip(found, SALIENCY[method](randomize(conv_model(), seed=1), IMAGES, CLASSES), strict=True):
        ranks = [np.argsort(np.argsort(m.ravel())) for m in (one, other)]
        assert abs(np.corrcoef(*ranks)[0, 1]) < 0.6
    mixed = SALIENCY[method](conv_model(dtype="mixed_bfloat16"), IMAGES, CLASSES)
    assert mixed.dtype == np.float32
    assert np.linalg.norm(mixed - found) < 0.2 * np.linalg.norm(found)


def test_the_model_stays_as_it_was_and_a_saved_one_works(tmp_path):
    """The inputs and outputs of a saved model are lists of one."""
    model = conv_model()
    before, maps = logits(model, IMAGES), [method(model, IMAGES, CLASSES) for method in SALIENCY.values()]
    tiles = filter_images(model, "conv2")
    model.save(tmp_path / "model.keras")
    saved = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(saved, IMAGES), before)
    np.testing.assert_array_equal(filter_images(saved, "conv2"), tiles)
    for method, expected in zip(SALIENCY.values(), maps, strict=True):
        np.testing.assert_array_equal(method(saved, IMAGES, CLASSES), expected)
