"""Figures keep their texts whole, their pixels sharp and their colors right; tables compare with 2017."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from tiny_imagenet import plots
from tiny_imagenet.plots import Prediction
from tiny_imagenet.saliency import SALIENCY

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
GREEN, RED = int(plots.GREEN[1:], 16), int(plots.RED[1:], 16)
NO_FORMULA = r"$\foo$"  # matplotlib would take it for a formula, and fail
LONG = f"{NO_FORMULA}, a name that is longer than any bar " * 4
NAMES = ("king penguin", LONG, "three", "four", "five")
PREDICTION = Prediction(LONG, IMAGES[0], NAMES, (0.9, 0.05, 0.03, 0.01, 0.01), RNG.random((8, 8)), "king penguin")


def draw(figure: Figure) -> np.ndarray:
    """The figure's pixels (H, W, 3); all its texts must be inside."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    used, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert used.x0 >= 0 and used.y0 >= 0, used
    assert used.x1 <= width and used.y1 <= height, (used, width, height)
    return np.asarray(canvas.buffer_rgba())[..., :3]


def colors_of(pixels: np.ndarray) -> set[int]:
    return set(np.unique(pixels.reshape(-1, 3).astype(int) @ (65536, 256, 1)))


@pytest.mark.parametrize("count", [1, 5])
def test_prediction_grid(count):
    figure = plots.prediction_grid([PREDICTION] * count, "integrated_gradients")  # which has the longest explanation
    pixels = draw(figure)
    texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]
    assert sum(text.endswith("true: king penguin") for text in texts) == count
    assert any(plots.EXPLANATIONS["integrated_gradients"] in text for text in texts)
    assert sum("✓" in text for text in texts) == count
    assert colors_of(pixels) >= colors_of(IMAGES[0]) | {GREEN}  # the image is not blurred
    assert RED not in colors_of(pixels)


def test_a_wrong_answer_is_red_and_the_right_one_green():
    figure = plots.prediction_grid([replace(PREDICTION, true_name="three")], "gradient")
    assert colors_of(draw(figure)) >= {GREEN, RED}
    assert "✗ true: three" in figure.axes[0].get_title(loc="left")


def test_a_map_is_bright_from_its_99th_percentile_on_and_lies_over_the_gray_image():
    saliency = np.linspace(0, 1, 4096).reshape(64, 64)
    saliency[0, 0] = 1e6  # one hot pixel
    image = np.full((64, 64, 3), (0, 50, 100), np.uint8)  # its mean is 50
    prediction = replace(PREDICTION, image=image, saliency=saliency)
    alone, over = (plots.map_image(prediction, method).astype(int) for method in ("gradient", "grad_cam"))
    black, brightest = np.array([0, 0, 4]), np.array([252, 253, 191])  # the ends of magma
    np.testing.assert_array_equal(alone[[0, 63], [0, 63]], [brightest, brightest])
    np.testing.assert_array_equal(alone[0, 1], black)
    assert 100 < alone[32, 0].max() < 200  # the hot pixel dims nothing
    np.testing.assert_allclose(over[0, 1], 0.2 * black + 0.8 * 50, atol=1)
    np.testing.assert_allclose(over[63, 63], 0.7 * brightest + 0.3 * 50, atol=1)


def test_a_map_of_zeros_and_an_unknown_class_can_be_drawn():
    prediction = replace(PREDICTION, saliency=np.zeros((8, 8)), true_name=None)
    assert not {GREEN, RED} & colors_of(draw(plots.prediction_grid([prediction], "grad_cam")))
    assert plots.EXPLANATIONS.keys() == SALIENCY.keys()


def test_other_figures_keep_their_texts_whole_and_take_no_name_for_a_formula():
    names = [f"{NO_FORMULA} European fire salamander number {i}" for i in range(50)]
    draw(plots.class_accuracy_figure(np.array([1.0, np.nan]), names[:2]))
    draw(plots.bar_figure([" → ".join(names[:2])], [10000], f"The most frequent mistakes of {NO_FORMULA}", NO_FORMULA))
    draw(plots.bar_figure([], [], "A model without mistakes", "images"))
    draw(plots.filter_figure(np.ones((3, 5, 5, 3)), f"{NO_FORMULA} " * 20))
    draw(plots.image_sheet(IMAGES, [f"{NO_FORMULA}, a title of two lines, no more"] * 3, columns=2))
    draw(plots.image_sheet([], []))
    draw(plots.confusion_figure(np.eye(50), names))
    figure = plots.class_accuracy_figure(np.linspace(0, 1, 50), names, most=2)
    draw(figure)
    assert [label.get_text()[-2:] for label in figure.axes[0].get_yticklabels()] == ["49", "48", " 1", " 0"]


def test_mosaic_scales_each_tile_and_places_them_row_by_row():
    tiles = np.zeros((3, 2, 2, 3))
    tiles[0, 0, 0], tiles[0, 1, 1] = -2, 1
    tiles[2, 0, 0] = 0.001
    sheet = plots.mosaic(tiles, columns=2)
    assert sheet.shape == (7, 7, 3)
    np.testing.assert_array_equal(sheet[1:3, 1:3, 0], [[1, 128], [128, 192]])  # 128 + 63.5, rounded to even
    np.testing.assert_array_equal(sheet[1:3, 4:6, 0], [[128, 128], [128, 128]])
    np.testing.assert_array_equal(sheet[4:6, 1:3, 0], [[255, 128], [128, 128]])
    assert (sheet[4:6, 4:6] == 255).all()  # no fourth tile
    assert (sheet[[0, 3, 6]] == 255).all()
    assert plots.mosaic(tiles).shape == (4, 10, 3)  # fewer tiles than columns


def test_our_accuracies_stand_below_those_of_2017():
    ours = [("vgg_16", "mine", (0.5, 0.75, 0.625, 1.0)), ("other", "new", (0.0, 0.1, 0.2, 0.3))]
    lines = [" ".join(line.split()) for line in plots.compare_with_2017(ours).splitlines()]
    assert lines[2:4] == ["logistic_regression", "2017 3"]
    assert "2017: no hue, now the default 52.86 77.10 56.44 79.29" in lines
    below = lines[lines.index("vgg_16") + 8 :]
    assert below == ["ours: mine 50.00 75.00 62.50 100.00", "other", "ours: new 0.00 10.00 20.00 30.00"]
