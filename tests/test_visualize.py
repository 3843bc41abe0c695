"""Saliency and kernel pictures of models whose answer is known by hand, and figures whose labels must be whole."""

from startup import UserError, keras

import numpy as np
import pytest
from keras import layers
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

import visualize
from config import TrainConfig
from resnet_18 import resnet_18
from vgg_16 import vgg_16
from visualize import SALIENCY, Prediction

RNG = np.random.default_rng(0)
PICTURES = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
CLASSES = np.array([1, 0, 1])


def rescaled(side: int = 8):
    pictures = keras.Input((side, side, 3), dtype="uint8")
    return pictures, layers.Rescaling(1 / 128, offset=-1)(pictures)


def linear_model() -> keras.Model:
    pictures, x = rescaled()
    x = layers.Flatten()(x)
    return randomise(keras.Model(pictures, layers.Dense(2)(x)))


def conv_model(**settings) -> keras.Model:
    """Two convolutions and a pool; the biases are not zero, or the gradient at a grey picture would be."""
    pictures, x = rescaled()
    x = layers.Conv2D(6, 3, padding="same", name="conv1", **settings)(x)
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
    x = layers.Conv2D(8, 3, padding="same", name="conv2", **settings)(x)
    x = layers.ReLU(name="relu2")(x)
    x = layers.Flatten()(x)
    return randomise(keras.Model(pictures, layers.Dense(2, dtype="float32")(x)))


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        values = rng.normal(0, 0.3, weight.shape)
        weight.assign(np.abs(values) if weight.name == "moving_variance" else values)
    return model


def logits(model: keras.Model, pictures: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(pictures))


# Saliency


def test_gradient_of_a_linear_model_is_its_weights():
    model = linear_model()
    kernel = model.get_weights()[0].reshape(8, 8, 3, 2) / 128  # of the logit for one level of 0..255
    expected = np.stack([kernel[..., label] for label in CLASSES])
    np.testing.assert_allclose(visualize.gradient(model, PICTURES, CLASSES), expected, rtol=1e-5)
    map_of_first = np.sqrt((kernel[..., CLASSES[0]] ** 2).sum(axis=-1))
    np.testing.assert_allclose(SALIENCY["gradient"](model, PICTURES, CLASSES)[0], map_of_first, rtol=1e-5)


def test_gradient_equals_finite_differences_of_the_logit():
    model = conv_model()
    slope = visualize.gradient(model, PICTURES, CLASSES)[0]
    place = np.unravel_index(np.abs(slope).argmax(), slope.shape)
    floats = visualize.on_floats(model)
    nudge = np.zeros((1, 8, 8, 3), "float32")
    nudge[0][place] = 0.05
    difference = logits(floats, PICTURES[:1] + nudge) - logits(floats, PICTURES[:1] - nudge)
    assert difference[0, CLASSES[0]] / 0.1 == pytest.approx(slope[place], rel=0.02)


def test_smoothgrad_of_a_linear_model_is_its_gradient():
    model = linear_model()
    smooth = visualize.smoothgrad(model, PICTURES, CLASSES, samples=4)
    np.testing.assert_allclose(smooth, visualize.gradient(model, PICTURES, CLASSES), rtol=1e-4)


def test_smoothgrad_is_the_mean_over_noise_of_the_given_share_of_the_range(monkeypatch):
    model, seen = conv_model(), []
    slopes = visualize._logit_gradient(model, CLASSES)
    monkeypatch.setattr(visualize, "_logit_gradient", lambda *_: lambda x: seen.append(x) or slopes(x))
    smooth = visualize.smoothgrad(model, PICTURES, CLASSES, samples=16, noise=0.2)
    noise = np.stack(seen) - PICTURES
    expected = 0.2 * (int(PICTURES[0].max()) - int(PICTURES[0].min()))
    assert noise[:, 0].std() == pytest.approx(expected, rel=0.05)
    mean = np.mean([slopes(copy) for copy in seen], axis=0)
    np.testing.assert_allclose(smooth, mean, atol=1e-6)


def test_integrated_gradients_of_a_linear_model():
    model = linear_model()
    expected = (PICTURES - 128.0) * visualize.gradient(model, PICTURES, CLASSES)
    found = visualize.integrated_gradients(model, PICTURES, CLASSES, steps=3)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_a_pixel_s_part_is_the_sum_of_its_colours_parts():
    parts = np.array([[[[1.0, -1.0, 0.0], [-2.0, -1.0, 1.0]]]])
    np.testing.assert_array_equal(visualize.size_of_parts(lambda *_: parts)(None, None, None), [[[0.0, 2.0]]])


@pytest.mark.parametrize("baseline", [0, 128])
def test_integrated_gradients_are_complete(baseline):
    model = conv_model()
    even = np.full_like(PICTURES, baseline)
    difference = (logits(model, PICTURES) - logits(model, even))[np.arange(3), CLASSES]
    shares = visualize.integrated_gradients(model, PICTURES, CLASSES, steps=300, baseline=baseline)
    np.testing.assert_allclose(shares.sum(axis=(1, 2, 3)), difference, atol=0.01 * np.abs(difference).max())


def test_brightness_is_what_the_three_colours_share():
    tiles = np.zeros((4, 1, 2, 3))
    tiles[0] = 2.0  # grey
    tiles[1, 0, 0] = (1.0, -1.0, 0.0)  # colour alone
    tiles[3, 0, 1] = (3.0, 0.0, 0.0)
    np.testing.assert_allclose(visualize.brightness_shares(tiles), [1, 0, 1 / 3])  # the third tile is zero


def test_a_field_behind_a_layer_that_is_called_twice_is_the_whole_picture():
    pictures = keras.Input((12, 12, 3), dtype="uint8")
    relu, x = layers.ReLU(), layers.Rescaling(1 / 128, offset=-1)(pictures)
    for number in (1, 2, 3):
        x = relu(layers.Conv2D(2, 3, padding="same", name=f"conv{number}")(x))
    model = keras.Model(pictures, layers.GlobalAveragePooling2D()(x))
    assert visualize.receptive_field(model, "conv3") == (12, 12)


def test_grad_cam_of_two_colour_detectors():
    """conv: red and green levels above grey; logit 0: mean red - mean green, logit 1: mean green."""
    pictures, x = rescaled()
    x = layers.Conv2D(2, 1, use_bias=False)(x)
    x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(pictures, layers.Dense(2, use_bias=False)(x))
    model.set_weights([np.eye(3)[None, None, :, :2], np.array([[1.0, 0.0], [-1.0, 1.0]])])
    picture = np.full((1, 8, 8, 3), 128, np.uint8)
    picture[0, 2, 3, 0] = 192  # red 0.5
    picture[0, 5, 5, 1] = 255  # green 127/128
    red, green = np.zeros((8, 8)), np.zeros((8, 8))
    red[2, 3], green[5, 5] = 0.5 / 64, 127 / 128 / 64  # a mean over 64 places: the gradient is 1/64 at each
    np.testing.assert_allclose(SALIENCY["grad_cam"](model, picture, np.array([0]))[0], red, atol=1e-7)
    np.testing.assert_allclose(SALIENCY["grad_cam"](model, picture, np.array([1]))[0], green, atol=1e-7)


def test_grad_cam_takes_what_follows_the_last_convolution_at_its_size():
    model = conv_model()
    assert visualize._last_maps(model) is model.get_layer("relu2").output
    maps = SALIENCY["grad_cam"](model, PICTURES, CLASSES)
    assert maps.shape == (3, 8, 8)  # scaled up from 4x4
    assert maps.max() > 0


def test_grad_cam_needs_a_convolution():
    with pytest.raises(UserError, match="no convolution, which grad_cam needs"):
        SALIENCY["grad_cam"](linear_model(), PICTURES, CLASSES)


@pytest.mark.parametrize("method", SALIENCY)
def test_maps_have_the_pictures_size_and_depend_on_the_weights(method):
    """Adebayo et al., https://arxiv.org/abs/1810.03292: a map that random weights do not change shows no model."""
    before = SALIENCY[method](conv_model(), PICTURES, CLASSES)
    after = SALIENCY[method](randomise(conv_model(), seed=1), PICTURES, CLASSES)
    assert before.shape == (3, 8, 8)
    assert before.dtype == np.float32
    assert (before >= 0).all()
    for one, other in zip(before, after, strict=True):
        ranks = [np.argsort(np.argsort(m.ravel())) for m in (one, other)]
        assert abs(np.corrcoef(*ranks)[0, 1]) < 0.6


@pytest.mark.parametrize("method", SALIENCY)
def test_mixed_precision_gives_nearly_the_same_maps_in_float32(method):
    expected = SALIENCY[method](conv_model(), PICTURES, CLASSES)
    found = SALIENCY[method](conv_model(dtype="mixed_bfloat16"), PICTURES, CLASSES)
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) < 0.2 * np.linalg.norm(expected)


def test_models_whose_input_is_a_list_of_one_work():
    model = conv_model()
    listed = keras.Model(model.inputs, model.outputs)  # what a run's best.keras holds
    expected = SALIENCY["gradient"](model, PICTURES, CLASSES)
    np.testing.assert_array_equal(SALIENCY["gradient"](listed, PICTURES, CLASSES), expected)
    assert visualize.kernel_pictures(listed, "conv2").shape == (8, 7, 7, 3)  # the middle unit sees 8, one outside
    assert SALIENCY["grad_cam"](listed, PICTURES, CLASSES).shape == (3, 8, 8)


def test_looking_leaves_the_model_as_it_was(tmp_path):
    model = conv_model()
    before = logits(model, PICTURES)
    for method in SALIENCY.values():
        method(model, PICTURES, CLASSES)
    visualize.kernel_pictures(model, "conv2")
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(logits(keras.saving.load_model(tmp_path / "model.keras"), PICTURES), before)


# Kernels


def test_pictures_of_a_first_convolution_are_its_kernel():
    model = conv_model()
    kernel = model.get_layer("conv1").get_weights()[0]  # (3, 3, 3, 6)
    tiles = visualize.kernel_pictures(model, "conv1")
    np.testing.assert_allclose(tiles, kernel.transpose(3, 0, 1, 2) / 128, rtol=1e-5)
    np.testing.assert_array_equal(visualize.kernel_pictures(model, "conv1", max_filters=2), tiles[:2])


def test_an_activation_inside_the_layer_is_left_out():
    pictures, x = rescaled()
    model = keras.Model(pictures, layers.Conv2D(4, 3, activation="relu", name="conv")(x))
    kernel = RNG.normal(size=(3, 3, 3, 4))
    model.set_weights([kernel, np.full(4, -5.0)])  # the ReLU would let nothing through
    np.testing.assert_allclose(visualize.kernel_pictures(model, "conv"), kernel.transpose(3, 0, 1, 2) / 128, rtol=1e-5)


def plain(x):
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same")(x))
    return layers.Conv2D(5, 3, padding="same", name="asked")(layers.MaxPooling2D()(x))


def strided_and_dilated(x):
    x = layers.ReLU()(layers.Conv2D(4, 5, strides=2, padding="same")(x))
    return layers.Conv2D(5, (3, 1), dilation_rate=2, padding="valid", name="asked")(x)


def residual(x):
    x = layers.Conv2D(4, 1)(x)
    branch = layers.BatchNormalization()(layers.Conv2D(4, 3, strides=2, padding="same")(x))
    x = layers.ReLU()(layers.Add()([branch, layers.Conv2D(4, 1, strides=2)(x)]))
    return layers.Conv2D(5, 3, padding="same", name="asked")(x)


def padded_apart(x):
    x = layers.Conv2D(4, 3, strides=2)(layers.ZeroPadding2D(1)(x))
    return layers.Conv2D(5, 3, padding="same", name="asked")(layers.ReLU()(x))


def valid(x):
    x = layers.LeakyReLU()(layers.Conv2D(4, 4)(x))
    x = layers.AveragePooling2D(3, strides=2)(x)
    return layers.DepthwiseConv2D(3, depth_multiplier=2, name="asked")(x)


def large(x):
    x = layers.ReLU()(layers.Conv2D(4, 7, dilation_rate=2, padding="same")(x))
    return layers.Conv2D(5, 7, dilation_rate=2, padding="same", name="asked")(x)


FIELDS = [  # by hand: each kernel adds (kernel - 1) * dilation * (strides before it)
    (plain, (8, 8)),  # 1 + 2, + 1, + 2*2
    (strided_and_dilated, (13, 5)),  # 1 + 4, + 2*2*2 downwards, + 0 across
    (residual, (7, 7)),  # 1 + 2, + 2*2
    (padded_apart, (7, 7)),  # 1 + 2, + 2*2
    (valid, (10, 10)),  # 1 + 3, + 2, + 2*2
    (large, (25, 25)),  # 1 + 12, + 12
]


@pytest.mark.parametrize(("body", "size"), FIELDS)
@pytest.mark.parametrize("side", [19, 20])
def test_all_filters_at_once_in_a_window_equal_each_in_the_whole_picture(body, size, side):
    pictures, x = rescaled(side)
    model = randomise(keras.Model(pictures, body(x)))
    assert visualize.receptive_field(model, "asked") == size
    tiles = visualize.kernel_pictures(model, "asked")
    floats, grey = visualize.on_floats(model), np.full((1, side, side, 3), 128, "float32")
    middle = [length // 2 for length in model.output_shape[1:3]]
    for number, tile in enumerate(tiles[:3]):
        whole = visualize.gradient_of(lambda x, n=number: floats(x)[:, middle[0], middle[1], n], grey.shape)(grey)[0]
        assert tile.shape == (min(size[0], side), min(size[1], side), 3)
        assert place_of(tile, whole) is not None
        assert np.abs(tile).sum() == pytest.approx(np.abs(whole).sum(), rel=1e-4)  # nothing lies outside


def place_of(tile, whole):
    """Where `tile` is found in `whole`."""
    for y in range(whole.shape[0] - tile.shape[0] + 1):
        for x in range(whole.shape[1] - tile.shape[1] + 1):
            if np.allclose(whole[y : y + tile.shape[0], x : x + tile.shape[1]], tile, atol=1e-7):
                return y, x
    return None


def test_fields_of_vgg_16():
    model = vgg_16(TrainConfig(width=0.05), 3)
    sizes = {name: visualize.receptive_field(model, name) for name in ("conv1_2", "conv2_2", "conv4_3")}
    assert sizes == {"conv1_2": (5, 5), "conv2_2": (14, 14), "conv4_3": (92, 92)}
    assert visualize.kernel_pictures(model, "conv4_3", max_filters=2).shape == (2, 56, 56, 3)


def test_fields_of_resnet_18():
    model = resnet_18(TrainConfig("resnet_18", width=0.1), 3)
    second, fourth = visualize.convolutions(model)[1], visualize.convolutions(model)[3]
    assert (second, visualize.receptive_field(model, second)) == ("conv2_1a", (7, 7))
    assert (fourth, visualize.receptive_field(model, fourth)) == ("conv2_2a", (15, 15))


def test_a_layer_that_sees_everything_is_asked_in_the_whole_picture():
    pictures, x = rescaled()
    gate = layers.Reshape((1, 1, 3))(layers.GlobalAveragePooling2D()(x))
    x = layers.Conv2D(4, 3, name="asked")(layers.Multiply()([x, gate]))
    model = keras.Model(pictures, x)
    assert visualize.receptive_field(model, "asked") == (8, 8)
    assert visualize.kernel_pictures(model, "asked").shape == (4, 8, 8, 3)


def test_unknown_layers_are_answered_with_the_list():
    with pytest.raises(UserError, match="no convolution 'conv9'; its convolutions: conv1, conv2"):
        visualize.kernel_pictures(conv_model(), "conv9")
    with pytest.raises(UserError, match="no convolution 'conv9'; it has none"):
        visualize.receptive_field(linear_model(), "conv9")


def test_tiles_are_cut_or_padded_around_their_middle():
    tiles = np.arange(16.0).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(visualize._fit(tiles, 2)[0, ..., 0], [[5, 6], [9, 10]])
    np.testing.assert_array_equal(visualize._fit(tiles, 6)[0, 1:5, 1:5], tiles[0])
    assert visualize._fit(tiles, 6).sum() == tiles.sum()
    assert visualize.kernel_pictures(conv_model(), "conv2", side=7).shape == (8, 7, 7, 3)


def test_levels_scale_each_tile_by_itself_and_leave_zero_grey():
    tiles = np.zeros((3, 1, 3, 1))
    tiles[0, 0, :, 0] = [-2, 0, 1]
    tiles[1, 0, :, 0] = [0.002, 0, 0]
    np.testing.assert_array_equal(visualize.tile_levels(tiles)[0, 0, :, 0], [1, 128, 192])  # 128 + 63.5, to even
    np.testing.assert_array_equal(visualize.tile_levels(tiles)[1, 0, :, 0], [255, 128, 128])
    assert (visualize.tile_levels(tiles)[2] == 128).all()


def test_mosaic_places_tiles_row_by_row():
    tiles = np.zeros((3, 2, 2, 3))
    tiles[2, 0, 0] = 1
    sheet = visualize.mosaic(tiles, columns=2)
    assert sheet.shape == (7, 7, 3)
    assert sheet[4, 1, 0] == 255  # the third tile's first pixel
    assert (sheet[1:3, 1:3] == 128).all()
    assert (sheet[4:6, 4:6] == 255).all()  # no fourth tile
    assert visualize.mosaic(tiles).shape == (4, 10, 3)  # fewer tiles than columns


# Mistakes


def test_class_accuracies():
    found = visualize.class_accuracies(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 0]), 4)
    np.testing.assert_array_equal(found, [0.5, 1, np.nan, 0])


def test_most_confused():
    labels, guesses = np.array([0, 2, 2, 2, 1, 1]), np.array([0, 1, 1, 0, 2, 2])
    assert visualize.most_confused(labels, guesses) == [(1, 2, 2), (2, 1, 2), (2, 0, 1)]
    assert visualize.most_confused(labels, guesses, count=1) == [(1, 2, 2)]
    assert visualize.most_confused(labels, labels) == []


def test_our_figures_stand_under_those_of_2017():
    ours = [("vgg_16", "mine", (0.5, 0.75, 0.625, 1.0)), ("other", "new", (0.0, 0.1, 0.2, 0.3))]
    lines = [line.split() for line in visualize.table_beside_2017(ours).splitlines()]
    assert lines[:4] == [
        ["per", "cent", "centre", "crop", "10", "crops"],
        ["top-1", "top-5", "top-1", "top-5"],
        ["logistic_regression"],
        ["2017", "3"],
    ]
    assert ["2017:", "without", "hue,", "now", "the", "default", "52.86", "77.10", "56.44", "79.29"] in lines
    below = lines.index(["vgg_16"])
    assert lines[below + 8 :] == [
        ["ours:", "mine", "50.00", "75.00", "62.50", "100.00"],
        ["other"],
        ["ours:", "new", "0.00", "10.00", "20.00", "30.00"],
    ]


# Figures

LONG = "a name that is longer than any bar: $x$ " * 4
NO_FORMULA = r"$\foo$"  # matplotlib would take it for one, and fail


def prediction(name: str = "king penguin", true_name: str | None = None, title: str = "a.jpg") -> Prediction:
    picture = RNG.integers(0, 256, (56, 56, 3), dtype=np.uint8)
    names = (name, "two", "three", "four", "five")
    return Prediction(title, picture, names, (0.9, 0.05, 0.03, 0.01, 0.01), RNG.random((56, 56)), true_name)


def drawn(figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def assert_texts_are_inside(figure) -> None:
    drawn(figure)
    used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()  # inches
    assert used.x0 >= 0 and used.y0 >= 0, used
    assert used.x1 <= width and used.y1 <= height, (used, width, height)


@pytest.mark.parametrize("method", SALIENCY)
@pytest.mark.parametrize("count", [1, 5])
def test_prediction_grid_shows_whole_texts(method, count):
    figure = visualize.prediction_grid([prediction(LONG, "a true name", LONG)] * count, method)
    assert_texts_are_inside(figure)
    texts = [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]
    assert sum(text.endswith("true: a true name") for text in texts) == count


def test_prediction_grid_does_not_blur_pixels():
    shown = prediction()
    pixels = drawn(visualize.prediction_grid([shown], "gradient"))
    rows, columns = 42, 18  # the panel's top left corner: 0.35 and 0.15 inches of 120 pixels
    np.testing.assert_array_equal(
        pixels[rows : rows + 224, columns : columns + 224], shown.picture.repeat(4, axis=0).repeat(4, axis=1)
    )


def test_a_map_of_zeros_can_be_shown():
    nothing = Prediction("a.jpg", np.zeros((8, 8, 3), np.uint8), ("one",), (1.0,), np.zeros((8, 8)))
    assert_texts_are_inside(visualize.prediction_grid([nothing], "gradient"))


def test_other_figures_show_whole_texts():
    names = [f"European fire salamander number {i}" for i in range(50)]
    assert_texts_are_inside(visualize.accuracy_figure(np.linspace(0, 1, 50), names))
    assert_texts_are_inside(visualize.accuracy_figure(np.array([1.0, np.nan]), names[:2]))
    assert_texts_are_inside(visualize.bar_figure([f"{names[0]} → {names[1]}"], [10000], "Confused", "pictures"))
    assert_texts_are_inside(visualize.bar_figure([], [], "A model without mistakes", "pictures"))
    assert_texts_are_inside(visualize.kernel_figure(np.ones((3, 5, 5, 3)), "conv1_2 " * 20))
    assert_texts_are_inside(visualize.picture_sheet(PICTURES, ["a title of two lines, no more"] * 3))


def test_names_are_no_formulas():
    with pytest.raises(ValueError, match="foo"):
        figure = Figure()
        figure.text(0, 0, NO_FORMULA)
        drawn(figure)
    names = [NO_FORMULA] * 3
    shown = prediction(NO_FORMULA, NO_FORMULA, NO_FORMULA)
    for figure in (
        visualize.prediction_grid([shown], "gradient"),
        visualize.kernel_figure(np.ones((3, 5, 5, 3)), NO_FORMULA),
        visualize.picture_sheet(PICTURES, names),
        visualize.accuracy_figure(np.ones(3), names),
        visualize.bar_figure(names, [1, 2, 3], NO_FORMULA, NO_FORMULA),
    ):
        assert_texts_are_inside(figure)
        assert NO_FORMULA in {text.get_text() for text in figure.findobj(Text)}


def test_accuracy_figure_of_many_classes_shows_the_best_and_the_worst():
    figure = visualize.accuracy_figure(np.linspace(0, 1, 50), [str(i) for i in range(50)], most=2)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["49", "48", "1", "0"]


def test_every_method_is_explained():
    assert visualize.MEANING.keys() == SALIENCY.keys()
