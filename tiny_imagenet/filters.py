"""Filter images: which change of an even gray image each filter of a convolution responds to."""

from collections.abc import Sequence

import keras
import numpy as np

from tiny_imagenet.errors import UserError
from tiny_imagenet.saliency import GRAY, compile_gradient, conv_layer_names, with_float_input

SMALL_SIDES = (24, 40)  # pixels, of the images that are tried first: these, plus the remainder of the whole side by
STRIDE = 8  # so that strided layers, whose "same" padding depends on the side, see the same
BATCH_SIZE = 8  # images; their activations fit into the cache of a processor, so more at a time take longer
ROUNDING = 1e-6  # of a tile's largest absolute value: what convolutions on a GPU may leave where zeros belong


def filter_images(model: keras.Model, layer_name: str, max_filters: int = 64, side: int | None = None) -> np.ndarray:
    """For each filter, the gradient of its center unit with respect to an even gray image, before the activation.

    Each batch of gray images gives the gradients of as many filters, one per image. Images smaller than the model's
    give the same gradients if what the unit sees lies well within them, and take a fraction of the time.

    Args:
        model: takes images (B, H, W, 3) uint8.
        layer_name: any of its convolutions.
        max_filters: how many filters, at most; the first ones.
        side: of the tiles, in pixels; the gradient is cropped or padded with zeros. None: as below.

    Returns:
        (F, h, w, 3) float32, the change of the unit per level. h and w: where any of the F gradients is not zero.

    Raises:
        UserError: the model has no convolution of that name.
    """
    part = _before_activation(model, layer_name)
    whole = part.input_shape[1:3]
    smaller = [[side + length % STRIDE for length in whole] for side in SMALL_SIDES if side + STRIDE < min(whole)]
    for size in (*smaller, whole):
        tiles = _crop_zeros(_center_gradients(part, size, max_filters))
        if max(tiles.shape[1:3]) <= 0.6 * min(size):  # far from the borders, where zeros are padded
            break
    return tiles if side is None else _crop_or_pad(tiles, side)


def _center_gradients(part: keras.Model, size: Sequence[int], max_filters: int) -> np.ndarray:
    """The gradients (F, H, W, 3) of the center unit of each filter, for gray images of `size` (H, W)."""
    part = with_float_input(part, size)
    _, height, width, count = part.output_shape
    gradients = compile_gradient(lambda x: part(x, training=False)[:, height // 2, width // 2], part.inputs[0].shape)
    filters = np.arange(min(max_filters, count))
    gray = np.full((BATCH_SIZE, *size, 3), GRAY, "float32")
    batches = np.split(filters, range(BATCH_SIZE, len(filters), BATCH_SIZE))
    return np.concatenate([gradients(gray[: len(batch)], batch) for batch in batches])


def _before_activation(model: keras.Model, layer_name: str) -> keras.Model:
    """The model up to one convolution, without the activation that the layer itself may have."""
    names = conv_layer_names(model)
    if layer_name not in names:
        known = f"its convolutions: {', '.join(names)}" if names else "it has none"
        raise UserError(f"model {model.name!r} has no convolution {layer_name!r}; {known}")
    layer = model.get_layer(layer_name)
    if layer.activation is keras.activations.linear:
        return keras.Model(model.inputs[0], layer.output)
    linear = type(layer).from_config({**layer.get_config(), "activation": None})
    linear.build(layer.input.shape)
    linear.set_weights(layer.get_weights())
    return keras.Model(model.inputs[0], linear(layer.input))


def _crop_zeros(tiles: np.ndarray) -> np.ndarray:
    """Crops tiles (F, H, W, 3) to the rows and columns where any of them is not zero, up to rounding errors."""
    used = (np.abs(tiles) > ROUNDING * np.abs(tiles).max(axis=(1, 2, 3), keepdims=True)).any(axis=(0, 3))  # (H, W)
    rows, columns = (np.flatnonzero(used.any(axis=axis)) for axis in (1, 0))
    if not len(rows):  # no filter responds at all
        return tiles
    return tiles[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _crop_or_pad(tiles: np.ndarray, side: int) -> np.ndarray:
    """Crops tiles (F, h, w, 3) around their center to (F, side, side, 3), or pads them with zeros."""
    padded = np.pad(tiles, [(0, 0), (side, side), (side, side), (0, 0)])
    top, left = (side + int((length - side) / 2) for length in tiles.shape[1:3])
    return padded[:, top : top + side, left : left + side]


def brightness_shares(tiles: np.ndarray) -> np.ndarray:
    """How much of each filter is brightness: the share of its squared values that its three colors have in common.

    Args:
        tiles: (F, h, w, 3) from `filter_images`; those that are all zero are left out.

    Returns:
        At most F shares: 1 for black and white, a third on average for noise.
    """
    common, total = 3 * np.square(tiles.mean(axis=-1)).sum(axis=(1, 2)), np.square(tiles).sum(axis=(1, 2, 3))
    return common[total > 0] / total[total > 0]
