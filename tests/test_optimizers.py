"""Muon, averaged weights and the momentum after a cut of the learning rate, against their mathematics."""

import keras
import numpy as np
import pytest

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.models import create_model
from tiny_imagenet.optimizers import create_optimizer, ema_weights, set_learning_rate


@pytest.fixture(autouse=True)
def restore_dtype_policy():
    yield
    keras.config.set_dtype_policy("float32")


def small_model(precision: str = "float32") -> keras.Model:
    """A convolution, a dense layer with biases, and one that computes the logits."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    conv, hidden = keras.layers.Conv2D(5, 3, name="conv"), keras.layers.Dense(6, name="hidden")
    logits = keras.layers.Dense(2, name="logits")
    return keras.Sequential([keras.Input((4, 4, 3)), conv, keras.layers.Flatten(), hidden, logits])


def build_optimizer(model: keras.Model, learning_rate: float = 1.0, **settings):
    optimizer = create_optimizer(TrainConfig(**{"optimizer": "muon"} | settings), learning_rate, model)
    optimizer.build(model.trainable_variables)
    return optimizer


def random_gradients(model: keras.Model, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=weight.shape).astype("float32") for weight in model.trainable_variables]


def as_matrix(kernel) -> np.ndarray:
    array = np.array(keras.ops.convert_to_numpy(kernel), np.float64)
    return array.reshape(-1, array.shape[-1])


def in_singular_vectors_of(momentum, step) -> np.ndarray:
    left, _, right = np.linalg.svd(as_matrix(momentum), full_matrices=False)
    return left.T @ step @ right.T


@pytest.mark.parametrize(("name", "index"), [("conv", 0), ("hidden", 2)])
def test_muon_steps_along_the_nearest_matrix_whose_singular_values_are_one(name, index):
    model = small_model()
    kernel, gradients = model.get_layer(name).kernel, random_gradients(model)
    before = as_matrix(kernel)
    build_optimizer(model).apply([keras.ops.convert_to_tensor(gradient) for gradient in gradients])
    step = before - as_matrix(kernel)
    found = in_singular_vectors_of(gradients[index], step / (0.2 * np.sqrt(max(step.shape))))
    np.testing.assert_allclose(np.diag(found), 1, atol=0.35)  # as near as its iterations come: 0.7 to 1.2
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-3)


def test_muon_has_nesterov_momentum():
    """The second step is along 0.9 m + g, where m = 0.9 g1 + g2 and g = g2."""
    model = small_model()
    optimizer, kernel = build_optimizer(model, momentum=0.9), model.get_layer("conv").kernel
    first, second = random_gradients(model, 1), random_gradients(model, 2)
    optimizer.apply(first)
    before = as_matrix(kernel)
    optimizer.apply(second)
    found = in_singular_vectors_of(0.9 * (0.9 * first[0] + second[0]) + second[0], before - as_matrix(kernel))
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=2e-3)


def test_adam_trains_scales_biases_and_the_last_layer():
    model = small_model()
    before, gradients = [as_matrix(weight) for weight in model.trainable_variables], random_gradients(model)
    build_optimizer(model, learning_rate=0.01).apply(gradients)
    for weight, old, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        adam = old - 0.01 * 0.25 * np.sign(as_matrix(gradient))  # Adam's first step, at a quarter of the learning rate
        is_adam = np.allclose(as_matrix(weight), adam, atol=1e-5)
        assert is_adam == (not weight.path.endswith(("conv/kernel", "hidden/kernel"))), weight.path


@pytest.mark.parametrize(("optimizer", "exempt"), [("sgd", "bias"), ("muon", ("bias", "logits/kernel"))])
def test_weight_decay_removes_a_share_of_kernels_only(optimizer, exempt):
    model = small_model()
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
    optimizer = build_optimizer(model, 0.1, optimizer=optimizer, weight_decay=0.5)
    optimizer.apply([np.zeros(weight.shape, "float32") for weight in model.trainable_variables])
    for weight in model.trainable_variables:
        expected = 2 if weight.path.endswith(exempt) else 2 * (1 - 0.1 * 0.5)
        np.testing.assert_allclose(weight, np.full(weight.shape, expected), rtol=1e-6, err_msg=weight.path)


def test_muon_in_bfloat16_takes_nearly_the_same_step(monkeypatch):
    monkeypatch.setattr("resnet_18.STAGES", (64, 128))  # built sooner
    steps = []
    for precision in ("float32", "mixed_bfloat16"):
        model = create_model(TrainConfig("resnet_18", precision=precision, width=0.25), 7)
        kernel = model.get_layer("conv3_2b").kernel
        before = as_matrix(kernel)
        build_optimizer(model).apply(random_gradients(model), model.trainable_variables)
        steps.append(before - as_matrix(kernel))
    assert 0 < np.linalg.norm(steps[0] - steps[1]) < 0.05 * np.linalg.norm(steps[0])


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averages_are_used_in_the_block_and_the_weights_come_back(optimizer, precision):
    model = small_model(precision)
    model.compile(create_optimizer(TrainConfig(optimizer=optimizer, ema_momentum=0.75), 0.1, model), "mse")
    kernel, seen, rng = model.get_layer("conv").kernel, [], np.random.default_rng(0)
    x, y = (0.1 * rng.normal(size=shape).astype("float32") for shape in ((8, 4, 4, 3), (8, 2)))  # small: no overflow
    for _ in range(3):
        model.fit(x, y, verbose=0)  # the end of `fit` leaves the weights as they are
        seen.append(as_matrix(kernel))
    average = 0.75 * (0.75 * seen[0] + 0.25 * seen[1]) + 0.25 * seen[2]
    with ema_weights(model):
        np.testing.assert_allclose(as_matrix(kernel), average, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(as_matrix(kernel), seen[-1])
    assert not np.allclose(seen[-1], average)


@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_a_new_learning_rate_applies_to_the_whole_velocity_as_in_tensorflow_1(precision):
    """`accum = m accum + g; w -= lr (g + m accum)`; float16 wraps the optimizer to scale the loss."""
    model = small_model(precision)
    model.compile(create_optimizer(TrainConfig(momentum=0.75), 0.5, model), "mse")
    kernel, accum = as_matrix(model.get_layer("conv").kernel), 0.0
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    for step, learning_rate in enumerate((0.5, 0.5, 0.1, 0.1, 0.02)):
        set_learning_rate(model, learning_rate)
        gradients = random_gradients(model, step)
        optimizer.apply(gradients, model.trainable_variables)
        gradient = as_matrix(gradients[0])
        accum = 0.75 * accum + gradient
        kernel -= learning_rate * (gradient + 0.75 * accum)
        np.testing.assert_allclose(as_matrix(model.get_layer("conv").kernel), kernel, atol=1e-5)


def test_a_new_learning_rate_leaves_averages_of_gradients_as_they_are():
    model = small_model()
    model.compile(create_optimizer(TrainConfig(optimizer="muon"), 0.5, model), "mse")
    model.optimizer.apply(random_gradients(model), model.trainable_variables)
    before = {variable.path: np.array(variable) for variable in model.optimizer.variables}
    set_learning_rate(model, 0.1)
    changed = [v.name for v in model.optimizer.variables if not np.array_equal(v, before[v.path])]
    assert changed == ["learning_rate"]
