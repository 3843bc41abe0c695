"""Filter images: all at once equal one gradient at a time, and their sizes are those worked out by hand."""

import keras
import numpy as np
import pytest
from keras import layers
from test_saliency import conv_model, linear_model, randomize, rescaled_input

from resnet_18 import resnet_18
from tiny_imagenet import filters
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.errors import UserError
from tiny_imagenet.filters import brightness_shares, filter_images
from vgg_16 import vgg_16


@pytest.mark.parametrize("options", [{}, {"activation": "relu", "bias_initializer": keras.initializers.Constant(-5)}])
def test_the_filter_images_of_a_first_convolution_are_its_kernel(options):
    """An activation inside the layer is left out; with these biases, a ReLU would let nothing through."""
    images, x = rescaled_input()
    model = keras.Model(images, layers.Conv2D(20, 3, name="conv", **options)(x))
    expected = model.get_weights()[0].transpose(3, 0, 1, 2) / 128
    np.testing.assert_allclose(filter_images(model, "conv"), expected, rtol=1e-5)
    np.testing.assert_allclose(filter_images(model, "conv", max_filters=2), expected[:2], rtol=1e-5)


def strided_and_dilated(x):
    x = layers.ReLU()(layers.Conv2D(4, 5, strides=2, padding="same")(x))
    return layers.Conv2D(10, (3, 1), dilation_rate=2, name="asked")(x)


def residual(x):
    x = layers.Conv2D(4, 1)(x)
    branch = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same")(x))
    x = layers.ReLU()(layers.Add()([branch, layers.Conv2D(4, 1, strides=2)(x)]))
    return layers.Conv2D(10, 3, padding="same", name="asked")(x)


def average_pooled(x):
    x = layers.AveragePooling2D(3, strides=2)(layers.LeakyReLU()(layers.Conv2D(4, 4)(x)))
    return layers.DepthwiseConv2D(3, depth_multiplier=2, name="asked")(x)


def gated_by_everything(x):
    x = layers.Conv2D(3, 1)(x)  # its biases: times 0, the gate would make no difference
    gate = layers.Reshape((1, 1, 3))(layers.GlobalAveragePooling2D()(x))
    return layers.Conv2D(10, 3, name="asked")(layers.Multiply()([x, layers.Dense(3)(gate)]))


@pytest.mark.parametrize(
    ("body", "size"),
    [  # by hand: each kernel adds (kernel - 1) * dilation * (strides before it)
        (strided_and_dilated, (13, 5)),  # 1 + 4, + 2*2*2 vertically, + 0 horizontally
        (residual, (7, 7)),  # 1 + 2, + 2*2
        (average_pooled, (10, 10)),  # 1 + 3, + 2, + 2*2
        (gated_by_everything, (45, 45)),
    ],
)
def test_all_filters_at_once_equal_one_gradient_at_a_time(body, size):
    images, x = rescaled_input(45)
    model = randomize(keras.Model(images, body(x)))
    tiles = filter_images(model, "asked")
    assert tiles.shape[1:] == (*size, 3)
    part, gray = filters.with_float_input(model), np.full((1, 45, 45, 3), 128, "float32")
    y, x = (length // 2 for length in model.output_shape[1:3])
    gradient = filters.compile_gradient(lambda images: part(images)[:, y, x], gray.shape)
    whole = np.concatenate([gradient(gray, np.array([k])) for k in range(len(tiles))])
    rows, columns = (np.flatnonzero(np.abs(whole).sum(axis=axes)) for axes in ((0, 2, 3), (0, 1, 3)))
    expected = whole[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    np.testing.assert_allclose(tiles, expected, rtol=1e-5, atol=1e-6 * np.abs(whole).max())


def test_sizes_of_the_models():
    in_2017 = {"conv1_2": 5, "conv2_2": 13}
    for create, sides in (vgg_16, in_2017 | {"conv4_3": 56}), (resnet_18, {"conv2_1a": 7, "conv2_2a": 15}):
        model = randomize(create(TrainConfig(width=0.1), 3))
        found = {layer: filter_images(model, layer, max_filters=12).shape[1:3] for layer in sides}
        assert found == {layer: (side, side) for layer, side in sides.items()}


def test_filters_that_do_not_respond_are_gray():
    """Biases start at 0, where a ReLU lets nothing through: no tile can be cropped."""
    model = vgg_16(TrainConfig(width=0.05), 3)
    np.testing.assert_array_equal(filter_images(model, "conv1_2"), np.zeros((3, 56, 56, 3)))


def test_unknown_layers_are_answered_with_the_list():
    with pytest.raises(UserError, match="no convolution 'conv9'; its convolutions: conv1, conv2"):
        filter_images(conv_model(), "conv9")
    with pytest.raises(UserError, match="no convolution 'conv9'; it has none"):
        filter_images(linear_model(), "conv9")


def test_tiles_are_cropped_or_padded_around_their_center():
    tiles = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(filters._crop_or_pad(tiles, 2)[0, ..., 0], [[5, 6], [9, 10]])
    np.testing.assert_array_equal(filters._crop_or_pad(tiles, 3)[0], tiles[0, :3, :3])
    np.testing.assert_array_equal(filters._crop_or_pad(tiles, 7)[0], np.pad(tiles[0], [(1, 2), (1, 2), (0, 0)]))
    assert filter_images(conv_model(), "conv2", side=7).shape == (8, 7, 7, 3)


def test_brightness_is_what_the_three_colors_share():
    tiles = np.zeros((4, 1, 2, 3))
    tiles[0] = 2.0  # gray
    tiles[1, 0, 0] = (1.0, -1.0, 0.0)  # only color
    tiles[3, 0, 1] = (3.0, 0.0, 0.0)
    np.testing.assert_allclose(brightness_shares(tiles), [1, 0, 1 / 3])  # the third tile is zero
