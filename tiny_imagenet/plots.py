"""Figures and tables of what a model predicts, where it looks, what its filters respond to and how accurate it is.

All figures are matplotlib's `Figure`, without pyplot, so that nothing global changes.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.text import Text

from tiny_imagenet.saliency import GRAY

BLUE, GREEN, RED = "#56B4E9", "#009E73", "#D55E00"  # color-blind readers can tell them apart (Okabe and Ito)
COLOR_MAP = "magma"  # from black to light yellow in even steps of lightness
MAP_MAXIMUM = 99  # the percentile of a map that gets the brightest color: one extreme pixel would darken all others

EXPLANATIONS = {
    "gradient": "how strongly the top class's logit changes with each pixel",
    "smoothgrad": "how strongly the top class's logit changes with each pixel, averaged over noisy copies",
    "integrated_gradients": "how much each pixel adds to or takes from the top class's logit, compared with even gray",
    "grad_cam": "where the maps of the last convolution support the top class",
}


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for one image."""

    title: str  # the file's name
    image: np.ndarray  # (S, S, 3) uint8, as the model saw it
    names: tuple[str, ...]  # of the most probable classes, best first
    probabilities: tuple[float, ...]  # theirs
    saliency: np.ndarray | None = None  # (S, S) float32, 0 or more, of the best class
    true_name: str | None = None  # of the true class, if it is known


def prediction_grid(predictions: Sequence[Prediction], method: str) -> Figure:
    """Draws each image, its saliency map and its most probable classes as bars; four or more go in two columns.

    The bar of a right answer is green, that of a wrong one red. The map lies over the image in gray, but that of the
    method "gradient" is drawn alone, as in 2017.

    Args:
        predictions: one or more, with their maps.
        method: the name in SALIENCY of the method that made the maps.
    """
    columns = 1 if len(predictions) < 4 else 2
    rows = -(-len(predictions) // columns)
    height = max(2.4, 0.2 * len(predictions[0].names))
    figure = Figure(figsize=(6.8 * columns, rows * height + 0.4), layout="constrained")
    panels = figure.subplots(rows, 3 * columns, squeeze=False, width_ratios=(1, 1, 1.25) * columns)
    for axis in panels.flat:
        axis.set_axis_off()
        axis.set_anchor("N")
    for prediction, (left, middle, right) in zip(predictions, panels.reshape(-1, 3), strict=False):
        truth = ""
        if prediction.true_name is not None:
            mark = "✓" if prediction.names[0] == prediction.true_name else "✗"
            truth = f"   {mark} true: {prediction.true_name}"
        left.set_title(_shorten(prediction.title, 50 - len(truth)) + truth, loc="left", fontsize=9)
        left.imshow(prediction.image, interpolation="nearest")
        middle.imshow(map_image(prediction, method), interpolation="nearest")
        _draw_bars(right, prediction)
    text = f"Map ({method.replace('_', ' ')}): {EXPLANATIONS[method]}; the brighter, the more."
    figure.supxlabel(textwrap.fill(text, 116 * columns), x=0.01, ha="left", fontsize=8)
    return plain_text(figure)


def map_image(prediction: Prediction, method: str) -> np.ndarray:
    """The saliency map in colors, (S, S, 3) uint8: of "gradient" alone, of others over the image in gray.

    Where the map is low, the image shows through.
    """
    levels = np.clip(prediction.saliency / max(np.percentile(prediction.saliency, MAP_MAXIMUM), 1e-30), 0, 1)
    gray = prediction.image.mean(axis=-1, keepdims=True) / 255
    share = 1 if method == "gradient" else 0.2 + 0.5 * levels[..., None]
    return np.rint(255 * (share * colormaps[COLOR_MAP](levels)[..., :3] + (1 - share) * gray)).astype("uint8")


def _draw_bars(axis, prediction: Prediction) -> None:
    """Bars from 0 to 100 % with the class names written over them, so that long names need no margin."""
    count, truth = len(prediction.names), prediction.true_name
    colors = [GREEN if name == truth else BLUE for name in prediction.names]
    if truth is not None and prediction.names[0] != truth:
        colors[0] = RED
    axis.barh(range(count), [1] * count, height=0.82, color="#F2F2F2")
    axis.barh(range(count), prediction.probabilities, height=0.82, color=colors)
    for place, (name, probability) in enumerate(zip(prediction.names, prediction.probabilities, strict=True)):
        axis.text(0.02, place, _shorten(name, 26), va="center", fontsize=8)
        axis.text(0.98, place, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=8)
    axis.set(xlim=(0, 1), ylim=(max(count, 5) - 0.5, -0.5))


def plain_text(figure: Figure) -> Figure:
    r"""Turns formulas off: the names of files and classes come from others, and `$\foo$` would be an error."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def _shorten(text: str, length: int) -> str:
    """Cuts the middle out of a text that is too long; file names of one folder often differ at either end."""
    tail = length // 2
    return text if len(text) <= length else f"{text[: length - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def mosaic(tiles: np.ndarray, columns: int = 8, gap: int = 1) -> np.ndarray:
    """Puts filter images side by side, row by row, with white gaps around them.

    Each tile is scaled by its own largest absolute value, which becomes black or white; zero becomes mid-gray.

    Args:
        tiles: (F, h, w, 3), gradients.
        columns: tiles per row.
        gap: between tiles, in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    levels = np.rint(GRAY + 127 * tiles / np.where(largest > 0, largest, 1)).astype("uint8")
    count, height, width, _ = levels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.pad(levels, [(0, rows * columns - count), (0, gap), (0, gap), (0, 0)], constant_values=255)
    grid = grid.reshape(rows, columns, height + gap, width + gap, 3).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + gap), columns * (width + gap), 3)
    return np.pad(grid, [(gap, 0), (gap, 0), (0, 0)], constant_values=255)


def filter_figure(tiles: np.ndarray, title: str, columns: int = 8) -> Figure:
    """Draws the mosaic of `filter_images`' tiles (F, h, w, 3), each pixel as a sharp square."""
    sheet = mosaic(tiles, columns)
    figure = Figure(figsize=(6.4, 6.4 * sheet.shape[0] / sheet.shape[1] + 0.6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(sheet, interpolation="nearest")
    axis.set_axis_off()
    figure.suptitle(textwrap.fill(title, 76), x=0.01, ha="left", fontsize=10)
    note = "Mid-gray: no influence. Each tile is scaled by its own largest absolute value."
    figure.supxlabel(note, x=0.01, ha="left", fontsize=8)
    return plain_text(figure)


def image_sheet(images: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5) -> Figure:
    """Draws images (S, S, 3) uint8 row by row, each under its own short title of one or two lines."""
    rows = max(-(-len(images) // columns), 1)
    figure = Figure(figsize=(2 * columns, 2.3 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes[: len(images)], images, titles, strict=True):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(textwrap.fill(title, 26), loc="left", fontsize=8)
    return plain_text(figure)


def class_accuracy_figure(accuracies: np.ndarray, class_names: Sequence[str], most: int = 20) -> Figure:
    """Draws each class's accuracy, best first; of more than 2 * `most` classes, only the best and the worst.

    Args:
        accuracies: (C,), 0 to 1, from `class_accuracies`; classes with NaN are left out.
        class_names: C.
        most: how many of the best, and of the worst.
    """
    order = np.argsort(-accuracies, kind="stable")
    order = order[~np.isnan(accuracies[order])]
    title, is_cut = "Accuracy of each class", len(order) > 2 * most
    if is_cut:
        title += f": the best {most} and the worst {most} of {len(order)}"
        order = np.concatenate([order[:most], order[-most:]])
    names = [class_names[label] for label in order]
    figure = bar_figure(names, 100 * accuracies[order], title, "% of its images", "%.1f")
    figure.axes[0].set_xlim(0, 108)
    if is_cut:
        figure.axes[0].axhline(most - 0.5, color="black", linewidth=1, linestyle=":")
    return figure


def bar_figure(names: Sequence[str], values: Sequence[float], title: str, unit: str, form: str = "%d") -> Figure:
    """Draws horizontal bars, the first on top, each labeled with its value in the format `form`."""
    figure = Figure(figsize=(7, 1.1 + 0.22 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.bar_label(axis.barh(range(len(names)), values, color=BLUE), fmt=form, padding=3, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axis.margins(x=0.12)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(unit, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return plain_text(figure)


def confusion_figure(confusion: np.ndarray, class_names: Sequence[str], most: float = 5) -> Figure:
    """Draws a confusion matrix (C, C), 0 to 1, in %, a row for each true class; `most` and above are darkest."""
    figure = Figure(figsize=(12, 11), dpi=130, layout="constrained")
    axis, font_size = figure.subplots(), min(9, 720 / len(class_names))
    drawn = axis.imshow(100 * confusion, f"{COLOR_MAP}_r", vmin=0, vmax=most, interpolation="nearest")
    axis.set_xticks(range(len(class_names)), class_names, fontsize=font_size, rotation=90)
    axis.set_yticks(range(len(class_names)), class_names, fontsize=font_size)
    axis.set(xlabel="predicted class", ylabel="true class")
    figure.colorbar(drawn, shrink=0.5, extend="max", label="mean probability of the predicted class in %")
    return plain_text(figure)


# All 10,000 validation images of Tiny ImageNet: model -> (training, then top-1 and top-5 in % with a single crop, top-1
# and top-5 with 10 crops)
REPORTED_2017 = {
    "logistic_regression": [("", "3", "", "", "")],
    "single_layer_nn": [("", "8", "", "", "")],
    "vgg_16": [
        (": with hue", "49.29", "74.78", "52.20", "77.23"),
        (": with hue, smoothed labels", "49.58", "75.12", "51.97", "76.95"),
        (": with hue, no flip", "46.13", "71.56", "51.27", "75.72"),
        (": with hue, no crop", "44.41", "69.86", "49.79", "74.94"),
        (": with hue, no saturation", "52.54", "76.91", "55.25", "78.95"),
        (": no hue, now the default", "52.86", "77.10", "56.44", "79.29"),
        (": no hue, no saturation", "51.95", "76.21", "54.82", "78.17"),
    ],
}


def compare_with_2017(ours: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """A table of accuracies in %, model by model: first what was reported in 2017, then ours.

    Args:
        ours: per run, its model's name, its own name, and four accuracies, 0 to 1: top-1 and top-5 with a single crop,
            top-1 and top-5 with 10 crops.
    """
    lines = [f"{'accuracy in %':<42}{'single-crop':>16}{'10-crop':>16}", " " * 42 + f"{'top-1':>8}{'top-5':>8}" * 2]
    for model in dict.fromkeys([*REPORTED_2017, *(model for model, *_ in ours)]):
        rows = [(f"2017{training}", *cells) for training, *cells in REPORTED_2017.get(model, ())]
        rows += [(f"ours: {name}", *(f"{100 * p:.2f}" for p in four)) for of, name, four in ours if of == model]
        lines.append(model)
        lines += [f"  {_shorten(row[0], 39):<40}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
