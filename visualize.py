"""Looks inside a trained model: saliency maps, kernel pictures, and the figures that show them.

Everything here computes or draws; `predict.py` and the notebooks tell the story. Gradients work on both backends.
"""

from startup import UserError, keras, tf

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops
from matplotlib.figure import Figure
from matplotlib.text import Text

GREY = 128  # the level that the models rescale to 0; an even picture of it is "no picture at all"


# --- Gradients with respect to a picture ------------------------------------------------------------------------------


def on_floats(model: keras.Model, size: tuple[int, int] | None = None) -> keras.Model:
    """The same model for float32 pictures: uint8 has no gradient. Layers, and so weights, are shared.

    Args:
        model: takes pictures (B, H, W, 3) uint8.
        size: another (H, W), for a model of convolutions and pools only; None keeps the model's own.

    Returns:
        A model from (B, H, W, 3) float32, levels 0 to 255, to what `model` gives.
    """
    pictures = keras.Input((*(size or model.inputs[0].shape[1:3]), 3), dtype="float32")
    model = keras.Model(model.inputs[0], model.outputs[0])  # not lists of one, which is what a saved model has
    return keras.models.clone_model(model, input_tensors=pictures, clone_function=lambda layer: layer)


def gradient_of(value: Callable, shape: Sequence[int | None]) -> Callable[[np.ndarray], np.ndarray]:
    """The function x -> gradient of the sum of `value(x)` with respect to x, both float32 of the given shape.

    It is traced once, then called as often as needed. TensorFlow's eager gradient of a convolution would also work out
    the weights' part: that takes time, and corrupts TensorFlow 2.21's memory for one picture, a 1x1 kernel, stride 2.
    """

    def total(x):
        return ops.sum(ops.cast(value(x), "float32"))

    def gradient(x):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            result = total(x)
        return tape.gradient(result, x, unconnected_gradients="zero")

    if keras.backend.backend() == "jax":
        import jax

        traced = jax.jit(jax.grad(total))
    else:
        traced = tf.function(gradient, autograph=False).get_concrete_function(tf.TensorSpec(shape, "float32"))
    return lambda x: np.asarray(traced(ops.convert_to_tensor(x)))


def chosen(logits, classes: np.ndarray):
    """(B,): of each row of logits (B, C), the one that `classes` (B,) int names."""
    return ops.take_along_axis(logits, ops.cast(classes, "int32")[:, None], axis=1)[:, 0]


# --- Saliency: which pixels a class's logit hangs on ------------------------------------------------------------------


def gradient(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Gradient of one logit with respect to the picture, as in 2017 (Simonyan et al., https://arxiv.org/abs/1312.6034).

    Args:
        model: pictures (B, H, W, 3) uint8 to logits (B, C).
        images: (B, H, W, 3), levels 0 to 255.
        classes: (B,) int, the class whose logit is asked about, one a picture.

    Returns:
        (B, H, W, 3) float32, signed: change of the logit for one level more at this place and colour.
    """
    return _logit_gradient(model, classes)(images.astype("float32"))


def _logit_gradient(model: keras.Model, classes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from pictures (B, H, W, 3) float32 to their `gradient`."""
    logits = on_floats(model)
    return gradient_of(lambda x: chosen(logits(x, training=False), classes), logits.inputs[0].shape)


def smoothgrad(model, images, classes, samples: int = 25, noise: float = 0.15, seed: int = 0) -> np.ndarray:
    """Mean gradient over noisy copies of the picture (Smilkov et al., https://arxiv.org/abs/1706.03825).

    Args:
        model, images, classes: as for `gradient`.
        samples: noisy copies of each picture.
        noise: their standard deviation, as a share of the picture's own range of levels.
        seed: of the noise.

    Returns:
        As for `gradient`.
    """
    images = images.astype("float32")
    deviation = noise * np.ptp(images, axis=(1, 2, 3), keepdims=True)  # (B, 1, 1, 1)
    rng, slopes = np.random.default_rng(seed), _logit_gradient(model, classes)
    noisy = (images + deviation * rng.standard_normal(images.shape, "float32") for _ in range(samples))
    return sum(slopes(copy) for copy in noisy) / samples


def integrated_gradients(model, images, classes, steps: int = 32, baseline: float = GREY) -> np.ndarray:
    """Gradients along the straight way from an even picture, times the way (Sundararajan et al.).

    They share out logit(picture) - logit(baseline): that is their sum ("completeness",
    https://arxiv.org/abs/1703.01365), but for the error of the sum over `steps`.

    Args:
        model, images, classes: as for `gradient`.
        steps: points on the way, at the middles of as many equal parts.
        baseline: level of the even picture, where the way begins.

    Returns:
        (B, H, W, 3) float32, signed, in units of the logit.
    """
    way = images.astype("float32") - np.float32(baseline)
    shares = (np.arange(steps, dtype="float32") + 0.5) / steps
    slopes = _logit_gradient(model, classes)
    return way * sum(slopes(np.float32(baseline) + share * way) for share in shares) / steps


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The last convolution's maps, weighted by their mean gradient (Selvaraju et al., https://arxiv.org/abs/1610.02391).

    Args:
        model, images, classes: as for `gradient`.

    Returns:
        (B, H, W) float32, 0 or more, scaled up bilinearly from the convolution's own size.

    Raises:
        UserError: the model has no convolution.
    """
    maps = _last_maps(model)
    features = ops.cast(keras.Model(model.inputs[0], maps)(images, training=False), "float32")  # (B, h, w, F)
    head = keras.Model(maps, model.outputs[0])
    slopes = gradient_of(lambda x: chosen(head(x, training=False), classes), maps.shape)(features)
    weights = slopes.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, F)
    weighted = ops.relu(ops.sum(features * weights, axis=-1, keepdims=True))  # (B, h, w, 1)
    return ops.convert_to_numpy(ops.image.resize(weighted, images.shape[1:3], interpolation="bilinear"))[..., 0]


def _last_maps(model: keras.Model):
    """The last tensor as large as the last convolution's output: what its ReLU gives, as in the paper."""
    names = convolutions(model)
    if not names:
        raise UserError(f"the model {model.name!r} has no convolution, which grad_cam needs; use another method")
    shape = model.get_layer(names[-1]).output.shape[:3]
    outputs = [layer.output for layer in model.layers if hasattr(layer.output, "shape")]
    return [output for output in outputs if len(output.shape) == 4 and output.shape[:3] == shape][-1]


def over_colours(slopes: Callable) -> Callable:
    """Makes (B, H, W, 3) gradients a map (B, H, W), 0 or more: root of the sum of squares over colours."""
    return lambda model, images, classes: np.sqrt(np.square(slopes(model, images, classes)).sum(axis=-1))


def size_of_parts(attribute: Callable) -> Callable:
    """Makes (B, H, W, 3) parts of a whole a map (B, H, W), 0 or more: a pixel's part is the sum of its colours'."""
    return lambda model, images, classes: np.abs(attribute(model, images, classes).sum(axis=-1))


# Each: (model, images (B, H, W, 3) uint8, classes (B,) int) -> (B, H, W) float32, 0 or more.
SALIENCY: dict[str, Callable] = {
    "gradient": over_colours(gradient),
    "smoothgrad": over_colours(smoothgrad),
    "integrated_gradients": size_of_parts(integrated_gradients),
    "grad_cam": grad_cam,
}

# --- Kernels: the small picture that each filter of a convolution answers to ------------------------------------------

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
POOLS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
POINTWISE = (  # layers whose output at a place depends on their inputs at that place alone
    *(keras.layers.InputLayer, keras.layers.Rescaling, keras.layers.BatchNormalization, keras.layers.Dropout),
    *(keras.layers.ReLU, keras.layers.LeakyReLU, keras.layers.ELU, keras.layers.PReLU, keras.layers.Activation),
    *(keras.layers.SpatialDropout2D, keras.layers.Concatenate, keras.layers.Add, keras.layers.Subtract),
    *(keras.layers.Multiply, keras.layers.Average, keras.layers.Maximum, keras.layers.Minimum),
)


@dataclass(frozen=True)
class Field:
    """Which pixels, along one axis, an output unit sees: unit i sees `start + i * stride` and the next `size - 1`."""

    start: int
    size: int
    stride: int


@dataclass(frozen=True)
class Window:
    """A picture just large enough for one unit, along one axis: its side, the unit, and the pixels that it sees."""

    side: int
    unit: int
    first: int
    last: int


def convolutions(model: keras.Model) -> list[str]:
    """The names of the model's convolution layers, from the input on."""
    return [layer.name for layer in model.layers if isinstance(layer, CONVOLUTIONS)]


def kernel_pictures(model: keras.Model, layer_name: str, max_filters: int = 64, side: int | None = None) -> np.ndarray:
    """For each filter, the gradient of its centre unit with respect to an even grey picture, before the activation.

    All filters are asked at once: filter k in the k-th of many equal pictures. The pictures are cut to a window in
    which the unit's field touches no border; there the answer is the same as in the whole picture.

    Args:
        model: takes pictures (B, H, W, 3) uint8.
        layer_name: any of its convolutions.
        max_filters: the first so many filters.
        side: of the tiles, in pixels: the field is cut, or zeros put around it; None shows the field as it is.

    Returns:
        (F, h, w, 3) float32, F = min(max_filters, filters): change of the unit for one level more at each pixel. h and
        w are those of the unit's field, so far as it lies in the picture.

    Raises:
        UserError: there is no convolution of that name.
    """
    part = _before_activation(model, layer_name)
    rows, columns = (_window(part, axis) for axis in (0, 1))
    part = on_floats(part, (rows.side, columns.side))
    filters = np.arange(min(max_filters, part.output_shape[-1]))
    grey = np.full((len(filters), rows.side, columns.side, 3), GREY, "float32")
    unit = gradient_of(lambda x: chosen(part(x, training=False)[:, rows.unit, columns.unit], filters), grey.shape)
    tiles = unit(grey)
    tiles = tiles[:, rows.first : rows.last + 1, columns.first : columns.last + 1]
    return tiles if side is None else _fit(tiles, side)


def brightness_shares(tiles: np.ndarray) -> np.ndarray:
    """How much of each tile is brightness: the share of its squared values that is common to its three colours.

    Args:
        tiles: (F, h, w, 3), as `kernel_pictures` gives them; those that are zero all over are left out.

    Returns:
        At most F shares: 1 for black and white, a third, on average, for noise without any order.
    """
    common, whole = 3 * np.square(tiles.mean(axis=-1)).sum(axis=(1, 2)), np.square(tiles).sum(axis=(1, 2, 3))
    return common[whole > 0] / whole[whole > 0]


def receptive_field(model: keras.Model, layer_name: str) -> tuple[int, int]:
    """Height and width, in pixels, of what one unit of the convolution `layer_name` sees of the picture.

    From kernels, strides and pools on the way; it may be larger than the picture. Where another kind of layer is on the
    way, it is the whole picture.
    """
    part = _before_activation(model, layer_name)
    return tuple(field.size if (field := _field(part, axis)) else part.input_shape[1 + axis] for axis in (0, 1))


def _before_activation(model: keras.Model, layer_name: str) -> keras.Model:
    """The model up to one convolution, without its activation where the layer has one of its own."""
    names = convolutions(model)
    if layer_name not in names:
        known = f"its convolutions: {', '.join(names)}" if names else "it has none"
        raise UserError(f"the model {model.name!r} has no convolution {layer_name!r}; {known}")
    layer = model.get_layer(layer_name)
    part = keras.Model(model.inputs[0], layer.output)
    if layer.activation is keras.activations.linear:
        return part
    linear = type(layer).from_config({**layer.get_config(), "activation": None})
    linear.build(layer.input.shape)
    linear.set_weights(layer.get_weights())
    return keras.Model(model.inputs[0], linear(layer.input))


def _window(part: keras.Model, axis: int) -> Window:
    """The smallest window for the middle unit; all of the picture where the unit's field is not inside it.

    A window is whole strides smaller than the picture: then every layer pads as it does there.
    """
    picture, units = part.input_shape[1 + axis], part.output_shape[1 + axis]
    field = _field(part, axis)
    if field is None:
        return Window(picture, units // 2, 0, picture - 1)
    for count in range(1, units + 1):
        side, first = picture - (units - count) * field.stride, field.start + count // 2 * field.stride
        if first >= 0 and first + field.size <= side:
            return Window(side, count // 2, first, first + field.size - 1)
    first = field.start + units // 2 * field.stride
    return Window(picture, units // 2, max(first, 0), min(first + field.size, picture) - 1)


def _field(part: keras.Model, axis: int) -> Field | None:
    """What a unit of the part's output sees along one axis; None where a layer on the way is not known to be local."""
    spans = [_seen(part, axis, unit) for unit in (0, 1)]
    if None in spans:
        return None
    (start, end), (next_start, _) = spans
    return Field(start, end - start + 1, next_start - start)


def _seen(part: keras.Model, axis: int, unit: int) -> tuple[int, int] | None:
    """First and last pixel that one output unit sees, found by going from the output back to the picture."""
    spans = {id(part.output): (unit, unit)}
    for layer in reversed(part.layers):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        seen = spans.get(id(layer.output))  # None: of a layer that is called twice only the first output is known
        span = seen and _before(layer, axis, *seen)
        if span is None:
            return None
        for tensor in keras.tree.flatten(layer.input):
            first, last = spans.get(id(tensor), span)
            spans[id(tensor)] = min(first, span[0]), max(last, span[1])
    return spans[id(part.input)]


def _before(layer: keras.Layer, axis: int, first: int, last: int) -> tuple[int, int] | None:
    """What places first..last of a layer's output see of its input; None for a layer that is not known."""
    if isinstance(layer, POINTWISE):
        return first, last
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return first - layer.padding[axis][0], last - layer.padding[axis][0]
    if not isinstance(layer, CONVOLUTIONS + POOLS):
        return None
    kernel = (layer.pool_size if isinstance(layer, POOLS) else layer.kernel_size)[axis]
    stride = layer.strides[axis]
    reach = (kernel - 1) * (1 if isinstance(layer, POOLS) else layer.dilation_rate[axis])
    places, outputs = layer.input.shape[1 + axis], layer.output.shape[1 + axis]
    padding = max((outputs - 1) * stride + reach + 1 - places, 0) // 2 if layer.padding == "same" else 0
    return first * stride - padding, last * stride - padding + reach


def _fit(tiles: np.ndarray, side: int) -> np.ndarray:
    """Cuts (F, h, w, 3) to (F, side, side, 3) around its middle, or puts zeros around it."""
    for axis in (1, 2):
        have = tiles.shape[axis]
        before = abs(side - have) // 2
        if side < have:
            tiles = np.take(tiles, range(before, before + side), axis)
        else:
            tiles = np.pad(tiles, [(before, side - have - before) if a == axis else (0, 0) for a in range(4)])
    return tiles


def tile_levels(tiles: np.ndarray) -> np.ndarray:
    """Gradients (F, h, w, 3) as uint8 pictures: zero is mid-grey, a tile's largest absolute value black or white."""
    largest = np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)
    scaled = tiles / np.where(largest > 0, largest, 1)  # a tile of zeros stays grey
    return np.rint(GREY + 127 * scaled).astype("uint8")


def mosaic(tiles: np.ndarray, columns: int = 8, gap: int = 1) -> np.ndarray:
    """One picture of many tiles, row by row; the gaps, and the places left over in the last row, are white.

    Args:
        tiles: (F, h, w, 3), the gradients that `kernel_pictures` gives.
        columns: tiles a row.
        gap: between tiles and around them, in pixels.

    Returns:
        (H, W, 3) uint8.
    """
    levels = tile_levels(tiles)
    count, height, width, _ = levels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, "uint8")
    for number, tile in enumerate(levels):
        y, x = gap + number // columns * (height + gap), gap + number % columns * (width + gap)
        sheet[y : y + height, x : x + width] = tile
    return sheet


# --- How good a model is ----------------------------------------------------------------------------------------------

# Tiny ImageNet, all 10,000 validation pictures: model -> (training, per cent by the centre crop, by ten crops), the two
# as top-1 and top-5, of which most were not reported.
REPORTED_2017 = {
    "logistic_regression": (("", ("3", ""), ("", "")),),
    "single_layer_nn": (("", ("8", ""), ("", "")),),
    "vgg_16": (
        (": crop, flip, saturation, hue", ("49.29", ""), ("52.20", "")),
        (": the same, smoothed labels", ("49.58", ""), ("51.97", "")),
        (": without flip", ("46.13", ""), ("51.27", "")),
        (": without crop", ("44.41", ""), ("49.79", "")),
        (": without saturation", ("52.54", ""), ("55.25", "")),
        (": without hue, now the default", ("52.86", "77.10"), ("56.44", "79.29")),
        (": without hue and saturation", ("51.95", ""), ("54.82", "")),
    ),
}


def table_beside_2017(ours: Sequence[tuple[str, str, Sequence[float]]]) -> str:
    """Accuracies in per cent, model by model: first what was reported in 2017, then ours.

    Args:
        ours: a run each: its model's name, its own, and four shares of the validation pictures, 0 to 1: top-1 and top-5
            by the centre crop, top-1 and top-5 by ten crops.
    """
    lines = [f"{'per cent':<42}{'centre crop':>16}{'10 crops':>16}", " " * 42 + f"{'top-1':>8}{'top-5':>8}" * 2]
    for model in dict.fromkeys([*REPORTED_2017, *(model for model, *_ in ours)]):
        rows = [(f"2017{training}", *center, *ten) for training, center, ten in REPORTED_2017.get(model, ())]
        rows += [(f"ours: {name}", *(f"{100 * p:.2f}" for p in four)) for of, name, four in ours if of == model]
        lines.append(model)
        lines += [f"  {_shorten(row[0], 39):<40}" + "".join(f"{cell:>8}" for cell in row[1:]) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def class_accuracies(labels: np.ndarray, guesses: np.ndarray, num_classes: int) -> np.ndarray:
    """(C,) float: the share of each class's pictures that was recognised; NaN for a class without pictures.

    Args:
        labels: (N,) int, the true classes.
        guesses: (N,) int, the model's.
        num_classes: C.
    """
    pictures = np.bincount(labels, minlength=num_classes)
    right = np.bincount(labels[labels == guesses], minlength=num_classes)
    return np.divide(right, pictures, out=np.full(num_classes, np.nan), where=pictures > 0)


def most_confused(labels: np.ndarray, guesses: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """The most frequent mistakes, as (true class, the model's, number of pictures), most frequent first.

    Args:
        labels, guesses: as for `class_accuracies`.
        count: how many pairs at most.
    """
    wrong = labels != guesses
    pairs, times = np.unique(np.stack([labels[wrong], guesses[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-times, kind="stable")[:count]
    return [(int(pairs[i, 0]), int(pairs[i, 1]), int(times[i])) for i in order]


# --- Figures: matplotlib without pyplot, so that nothing global changes; lengths are in inches ------------------------

BLUE, ORANGE, LIGHT_GREY = "#56B4E9", "#E69F00", "#D9D9D9"  # told apart by colour-blind readers too (Okabe and Ito)
MAP_COLOURS = "magma"  # black to yellow, even steps of lightness
DPI = 120
SIDE = 224 / DPI  # of a picture: 56 pixels are drawn as squares of exactly 4x4
LONGEST_NAME = 26  # letters; longer names are cut, so that they fit into their bar

MEANING = {
    "gradient": "how strongly the top class's logit changes with each pixel",
    "smoothgrad": "how strongly the top class's logit changes with each pixel, mean over noisy copies",
    "integrated_gradients": "how much each pixel adds to the top class's logit, or takes from it, against even grey",
    "grad_cam": "where the last convolution's maps speak for the top class",
}


@dataclass(frozen=True)
class Prediction:
    """What a model says of one picture, ready to be shown."""

    title: str  # the file's name
    picture: np.ndarray  # (S, S, 3) uint8, as the model saw it
    names: tuple[str, ...]  # of the most probable classes, best first
    probabilities: tuple[float, ...]  # theirs
    saliency: np.ndarray | None = None  # (S, S) float32, 0 or more, for the best class
    true_name: str | None = None  # where it is known


def prediction_grid(predictions: Sequence[Prediction], method: str) -> Figure:
    """Each picture with its most probable classes as bars, and its saliency map; two a row from four pictures on.

    Args:
        predictions: one or more, with their maps.
        method: the name in SALIENCY of the method that the maps come from.
    """
    columns = 1 if len(predictions) < 4 else 2
    rows = -(-len(predictions) // columns)
    bars = max(SIDE, 0.16 * max(len(prediction.names) for prediction in predictions))  # inches: many need more
    width, row = 2 * SIDE + 2.8, bars + 0.4
    figure = Figure(figsize=(columns * width + 0.1, rows * row + 0.75), dpi=DPI)
    for number, prediction in enumerate(predictions):
        left, top = 0.15 + number % columns * width, 0.35 + number // columns * row
        _picture_panel(_panel(figure, left, top, SIDE, SIDE), prediction)
        _bar_panel(_panel(figure, left + SIDE + 0.1, top, 2.4, bars), prediction, bars)
        _map_panel(_panel(figure, left + SIDE + 2.6, top, SIDE, SIDE), prediction.saliency)
    known = any(prediction.true_name for prediction in predictions)
    _explain_maps(figure, rows * row + 0.2, method, "Orange bar: the true class. " if known else "")
    return plain_texts(figure)


def plain_texts(figure: Figure) -> Figure:
    r"""Makes matplotlib draw the figure's texts as they are; it would take what stands between two $ for a formula.

    Names of files and classes come from others: `$\foo$` would end the drawing with an error.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def _panel(figure: Figure, left: float, top: float, width: float, height: float):
    """Axes without frame or ticks at a place given in inches from the figure's top left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def _picture_panel(axes, prediction: Prediction) -> None:
    axes.imshow(prediction.picture, interpolation="nearest")
    truth = "" if prediction.true_name is None else f"   true: {prediction.true_name}"
    axes.set_title(_shorten(prediction.title, 66 - len(truth)) + truth, loc="left", fontsize=9)


def _bar_panel(axes, prediction: Prediction, height: float) -> None:
    """Bars from 0 to 100 %, the class's name written over its bar, so that a long name needs no margin.

    `height`, in inches, gives the size of the letters.
    """
    count = len(prediction.names)
    colours = [ORANGE if name == prediction.true_name else BLUE for name in prediction.names]
    axes.barh(range(count), [1] * count, height=0.82, color="#F2F2F2")
    axes.barh(range(count), prediction.probabilities, height=0.82, color=colours)
    size = min(9, 0.7 * 72 * height / max(count, 5))  # points
    for place, (name, probability) in enumerate(zip(prediction.names, prediction.probabilities, strict=True)):
        axes.text(0.02, place, _shorten(name, LONGEST_NAME), va="center", fontsize=size)
        axes.text(0.98, place, f"{100 * probability:.1f} %", va="center", ha="right", fontsize=size)
    axes.set(xlim=(0, 1), ylim=(max(count, 5) - 0.5, -0.5))


def _map_panel(axes, saliency: np.ndarray) -> None:
    axes.imshow(saliency / max(saliency.max(), np.finfo("float32").tiny), MAP_COLOURS, vmin=0, vmax=1)


def _explain_maps(figure: Figure, top: float, method: str, more: str) -> None:
    """One colour bar for all maps, and what they and the bars mean."""
    across = figure.get_size_inches()[0]
    scale = _panel(figure, across - SIDE - 0.15, top, SIDE, 0.12)
    scale.imshow(np.linspace(0, 1, 256)[None], MAP_COLOURS, aspect="auto", extent=(0, 1, 0, 1))
    scale.set_axis_on()
    scale.set(yticks=[], xticks=[0, 1])
    scale.set_xticklabels(["0", "map's maximum"], fontsize=8)
    scale.get_xticklabels()[1].set_horizontalalignment("right")
    text = f"{more}Map ({method.replace('_', ' ')}): {MEANING[method]}. Each map has its own maximum."
    letters = int((across - SIDE - 0.5) * 15)  # of 8 points, what fits beside the colour bar
    note = _panel(figure, 0.15, top, across - SIDE - 0.5, 0.4)
    note.text(0, 1, textwrap.fill(text, letters), va="top", fontsize=8)


def _shorten(text: str, letters: int) -> str:
    """Cuts the middle out of a text that is too long; both ends tell pictures of a folder apart."""
    if len(text) <= letters:
        return text
    tail = letters // 2
    return f"{text[: letters - tail - 1].rstrip()}…{text[-tail:].lstrip()}"


def kernel_figure(tiles: np.ndarray, title: str, columns: int = 8) -> Figure:
    """The mosaic of `kernel_pictures`' tiles (F, h, w, 3), each pixel enlarged to a sharp square."""
    sheet = mosaic(tiles, columns)
    side = 6.4
    heading = textwrap.wrap(title, 76)
    height, above = side * sheet.shape[0] / sheet.shape[1], 0.15 + 0.19 * len(heading)
    figure = Figure(figsize=(side + 0.3, above + height + 0.4), dpi=DPI)
    axes = _panel(figure, 0.15, above, side, height)
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title("\n".join(heading), loc="left", fontsize=10)
    axes.text(0, -0.05 / height, "Mid-grey: no influence. Each tile is scaled by its own largest absolute value.",
              transform=axes.transAxes, va="top", fontsize=8)  # fmt: skip
    return plain_texts(figure)


def picture_sheet(pictures: Sequence[np.ndarray], titles: Sequence[str], columns: int = 5) -> Figure:
    """Pictures (S, S, 3) uint8 row by row, each under its own short title, of one line or two."""
    rows = -(-len(pictures) // columns)
    width, row = SIDE + 0.1, SIDE + 0.4
    figure = Figure(figsize=(columns * width + 0.1, rows * row + 0.1), dpi=DPI)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        left, top = 0.1 + number % columns * width, 0.4 + number // columns * row
        axes = _panel(figure, left, top, SIDE, SIDE)
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(textwrap.fill(title, 27), loc="left", fontsize=8)
    return plain_texts(figure)


def accuracy_figure(accuracies: np.ndarray, class_names: Sequence[str], most: int = 20) -> Figure:
    """Bars of each class's accuracy, best first; of more than 2 * `most` classes, the best and the worst.

    Args:
        accuracies: (C,), 0 to 1, as `class_accuracies` gives them; classes with NaN are left out.
        class_names: C.
        most: how many of the best, and of the worst, are shown where not all are.
    """
    order = [label for label in np.argsort(-accuracies, kind="stable") if not np.isnan(accuracies[label])]
    title, cut = "Accuracy of each class", len(order) > 2 * most
    if cut:
        title += f": the best {most} and the worst {most} of {len(order)}"
        order = order[:most] + order[-most:]
    values = [100 * accuracies[label] for label in order]
    figure = bar_figure([class_names[label] for label in order], values, title, "% of its pictures", "%.1f")
    figure.axes[0].set(xlim=(0, 108), xticks=range(0, 101, 20))
    if cut:
        figure.axes[0].axhline(most - 0.5, color="black", linewidth=1, linestyle=":")
    return figure


def bar_figure(names: Sequence[str], values: Sequence[float], title: str, unit: str, form: str = "%d") -> Figure:
    """Horizontal bars, first on top, each with its value, written in the format `form`."""
    figure = Figure(figsize=(7, 1.1 + 0.22 * len(names)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh([str(number) for number in range(len(names))], values, color=BLUE)
    axes.bar_label(bars, fmt=form, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel(unit, fontsize=9)
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    return plain_texts(figure)
