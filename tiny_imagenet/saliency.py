"""Saliency maps: which pixels the logit of a class depends on, by four methods, with either backend of Keras."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tiny_imagenet.errors import UserError

GRAY = 128  # the models rescale this level to 0, so an image of nothing else is the neutral input


# Gradients


def with_float_input(model: keras.Model, size: Sequence[int | None] | None = None) -> keras.Model:
    """The same model for float32 images, because uint8 has no gradient. It shares its layers with the original.

    Args:
        model: takes images (B, H, W, 3) uint8.
        size: (H, W) if it shall not be the model's own.

    Returns:
        A model from (B, H, W, 3) float32, levels 0 to 255, to the outputs of `model`.
    """
    images = keras.Input((*(size or model.inputs[0].shape[1:3]), 3), dtype="float32")
    model = keras.Model(model.inputs[0], model.outputs[0])  # a saved model has lists of one in their place
    return keras.models.clone_model(model, input_tensors=images, clone_function=lambda layer: layer)


def compile_gradient(function: Callable, shape: Sequence[int | None]) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Compiles the gradient of one output per image, once for many calls.

    It is always traced. An eager gradient of a convolution would compute the kernel's gradient too, which takes time
    and, for a single image, a 1x1 kernel and a stride of 2, corrupts the memory of TensorFlow 2.21.

    Args:
        function: from x (B, ...) float32 to outputs (B, C).
        shape: of x; B may be None.

    Returns:
        The function (x, classes (B,) int) -> gradient of the sum of `function(x)[i, classes[i]]` with respect to x.
    """

    def total(x, classes):
        outputs = ops.cast(function(x), "float32")
        return ops.sum(outputs * ops.one_hot(classes, outputs.shape[-1]))

    def tape_gradient(x, classes):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            result = total(x, classes)
        return tape.gradient(result, x, unconnected_gradients="zero")

    if keras.backend.backend() == "jax":
        import jax

        traced = jax.jit(jax.grad(total))
    else:
        specs = tf.TensorSpec(shape, "float32"), tf.TensorSpec(shape[:1], "int32")
        traced = tf.function(tape_gradient, autograph=False).get_concrete_function(*specs)
    return lambda x, classes: np.asarray(traced(ops.convert_to_tensor(x), ops.convert_to_tensor(classes, "int32")))


# Methods


def gradient(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Gradient of one logit with respect to the image, as in 2017 (Simonyan et al., https://arxiv.org/abs/1312.6034).

    Args:
        model: from images (B, H, W, 3) uint8 to logits (B, C).
        images: (B, H, W, 3), levels 0 to 255.
        classes: (B,) int, the class of the logit for each image.

    Returns:
        (B, H, W, 3) float32, signed: the change of the logit per level.
    """
    return _logit_gradient(model)(images.astype("float32"), classes)


def _logit_gradient(model: keras.Model) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    logits = with_float_input(model)
    return compile_gradient(lambda x: logits(x, training=False), logits.inputs[0].shape)


def smoothgrad(model, images, classes, samples: int = 25, noise: float = 0.15, seed: int = 0) -> np.ndarray:
    """Mean gradient over noisy copies of the image (Smilkov et al., https://arxiv.org/abs/1706.03825).

    Args:
        model, images, classes: as for `gradient`.
        samples: noisy copies of each image.
        noise: their standard deviation, as a share of the image's range of levels.
        seed: of the noise.

    Returns:
        As for `gradient`.
    """
    images = images.astype("float32")
    deviation = noise * np.ptp(images, axis=(1, 2, 3), keepdims=True)  # (B, 1, 1, 1)
    rng, slopes = np.random.default_rng(seed), _logit_gradient(model)
    noisy = (images + deviation * rng.standard_normal(images.shape, "float32") for _ in range(samples))
    return sum(slopes(copy, classes) for copy in noisy) / samples


def integrated_gradients(model, images, classes, steps: int = 32, baseline: float = GRAY) -> np.ndarray:
    """Each pixel's contribution to logit(image) - logit(baseline) (Sundararajan et al.).

    The contributions add up to that difference ("completeness", https://arxiv.org/abs/1703.01365), except for the error
    of integrating in `steps`.

    Args:
        model, images, classes: as for `gradient`.
        steps: points on the straight line from the baseline to the image, at the centers of equal parts.
        baseline: level of the even image where the line starts.

    Returns:
        (B, H, W, 3) float32, signed, in units of the logit.
    """
    line = images.astype("float32") - np.float32(baseline)
    shares = (np.arange(steps, dtype="float32") + 0.5) / steps
    slopes = _logit_gradient(model)
    return line * sum(slopes(np.float32(baseline) + share * line, classes) for share in shares) / steps


def grad_cam(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """The last convolution's maps, weighted by their mean gradient (Selvaraju et al., https://arxiv.org/abs/1610.02391).

    Args:
        model, images, classes: as for `gradient`.

    Returns:
        (B, H, W) float32, 0 or more, scaled up smoothly from the convolution's own size.

    Raises:
        UserError: the model has no convolution.
    """
    maps = _last_maps(model)
    features = ops.cast(keras.Model(model.inputs[0], maps)(images, training=False), "float32")  # (B, h, w, F)
    head = keras.Model(maps, model.outputs[0])
    slopes = compile_gradient(lambda x: head(x, training=False), maps.shape)(features, classes)
    weights = slopes.mean(axis=(1, 2), keepdims=True)  # (B, 1, 1, F)
    weighted = ops.relu(ops.sum(features * weights, axis=-1, keepdims=True))  # (B, h, w, 1)
    scaled = ops.image.resize(weighted, images.shape[1:3], interpolation="bicubic")  # bilinear would show diamonds
    return ops.convert_to_numpy(ops.relu(scaled))[..., 0]


def _last_maps(model: keras.Model):
    """The last tensor of the size of the last convolution's output: after its ReLU, as in the paper."""
    names = conv_layer_names(model)
    if not names:
        raise UserError(f"model {model.name!r} has no convolution, which grad_cam needs; use another method")
    shape = model.get_layer(names[-1]).output.shape[:3]
    outputs = [layer.output for layer in model.layers if hasattr(layer.output, "shape")]
    return [output for output in outputs if len(output.shape) == 4 and output.shape[:3] == shape][-1]


def conv_layer_names(model: keras.Model) -> list[str]:
    """The names of the model's convolutions, starting at the input."""
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
    return [layer.name for layer in model.layers if isinstance(layer, kinds)]


def norm_over_colors(method: Callable) -> Callable:
    """Turns gradients (B, H, W, 3) into maps (B, H, W), 0 or more: the root of the sum of squares over the colors."""
    return lambda model, images, classes: np.sqrt(np.square(method(model, images, classes)).sum(axis=-1))


def sum_over_colors(method: Callable) -> Callable:
    """Turns contributions (B, H, W, 3) into maps (B, H, W), 0 or more: the absolute value of each pixel's sum."""
    return lambda model, images, classes: np.abs(method(model, images, classes).sum(axis=-1))


# Each: (model, images (B, H, W, 3) uint8, classes (B,) int) -> (B, H, W) float32, 0 or more
SALIENCY: dict[str, Callable] = {
    "gradient": norm_over_colors(gradient),
    "smoothgrad": norm_over_colors(smoothgrad),
    "integrated_gradients": sum_over_colors(integrated_gradients),
    "grad_cam": grad_cam,
}
