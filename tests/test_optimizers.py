"""Muon against its mathematics, averaged weights against theirs, and that runs with both resume exactly."""

from startup import keras

import numpy as np
import pytest
from test_resume import final_state, points
from test_train import shallow, tiny_fixed

import checkpoints
import train
from config import TrainConfig
from models import build_model
from optimizers import ADAM_RATE, averaged, optimizer_for


@pytest.fixture(autouse=True)
def float32_again():
    """Other tests find the number format that they expect."""
    yield
    keras.config.set_dtype_policy("float32")


def small_net(precision: str = "float32") -> keras.Model:
    """A convolution, a dense layer with biases, and one that makes the logits."""
    keras.config.set_dtype_policy(precision)
    keras.utils.set_random_seed(0)
    layers = keras.layers
    net = [keras.Input((4, 4, 3)), layers.Conv2D(5, 3, name="conv"), layers.Flatten(), layers.Dense(6, name="hidden")]
    return keras.Sequential([*net, layers.Dense(2, name="logits")])


def muon(model: keras.Model, rate: float = 1.0, **settings):
    optimizer = optimizer_for(TrainConfig(optimizer="muon", **settings), rate, model)
    optimizer.build(model.trainable_variables)
    return optimizer


def gradients(model: keras.Model, seed: int = 0) -> list:
    draw = np.random.default_rng(seed)
    return [draw.normal(size=weight.shape).astype("float32") for weight in model.trainable_variables]


def as_matrix(kernel) -> np.ndarray:
    array = np.asarray(keras.ops.convert_to_numpy(kernel), np.float64)
    return array.reshape(-1, array.shape[-1])


@pytest.mark.parametrize("name", ["conv", "hidden"])
def test_muon_takes_the_nearest_matrix_whose_singular_values_are_one(name):
    model = small_net()
    kernel = model.get_layer(name).kernel
    before, given = as_matrix(kernel), gradients(model)
    muon(model).apply([keras.ops.convert_to_tensor(gradient) for gradient in given])
    step = before - as_matrix(kernel)
    index = [weight is kernel for weight in model.trainable_variables].index(True)
    left, _, right = np.linalg.svd(as_matrix(given[index]), full_matrices=False)
    found = left.T @ (step / (0.2 * np.sqrt(max(step.shape)))) @ right.T
    np.testing.assert_allclose(np.diag(found), 1, atol=0.35)  # its iterations come that near: 0.7 to 1.2
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-3)


def test_muon_adds_its_momentum():
    """The second step follows 0.9 m + g, of which m = 0.9 g1 + g2 and g = g2: Nesterov's."""
    model = small_net()
    optimizer, kernel = muon(model, momentum=0.9), model.get_layer("conv").kernel
    first, second = gradients(model, 1), gradients(model, 2)
    optimizer.apply(first)
    before = as_matrix(kernel)
    optimizer.apply(second)
    step = before - as_matrix(kernel)
    left, _, right = np.linalg.svd(as_matrix(0.9 * (0.9 * first[0] + second[0]) + second[0]), full_matrices=False)
    found = left.T @ step @ right.T
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=2e-3)


def test_scales_biases_and_the_last_layer_are_left_to_adam():
    model = small_net()
    before = [np.array(keras.ops.convert_to_numpy(weight)) for weight in model.trainable_variables]
    given = gradients(model)
    muon(model, rate=0.01).apply(given)
    for weight, old, gradient in zip(model.trainable_variables, before, given, strict=True):
        by_adam = old - 0.01 * ADAM_RATE * np.sign(gradient)  # Adam's first step
        equal = np.allclose(keras.ops.convert_to_numpy(weight), by_adam, atol=1e-5)
        assert equal == (not weight.path.endswith(("conv/kernel", "hidden/kernel"))), weight.path


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_weight_decay_takes_a_share_of_the_kernels_alone(optimizer):
    model = small_net()
    for weight in model.trainable_variables:
        weight.assign(np.full(weight.shape, 2.0))
    chosen = optimizer_for(TrainConfig(optimizer=optimizer, weight_decay=0.5), 0.1, model)
    chosen.build(model.trainable_variables)
    chosen.apply([np.zeros(weight.shape, "float32") for weight in model.trainable_variables])
    spared = ("bias", "logits/kernel") if optimizer == "muon" else ("bias",)
    for weight in model.trainable_variables:
        expected = 2 if weight.path.endswith(spared) else 2 * (1 - 0.1 * 0.5)
        np.testing.assert_allclose(weight, np.full(weight.shape, expected), rtol=1e-6, err_msg=weight.path)


def test_muon_in_bfloat16_takes_nearly_the_same_step():
    steps = {}
    for precision in ("float32", "mixed_bfloat16"):
        config = TrainConfig("resnet_18", precision=precision, width=0.25, optimizer="muon")
        model = build_model(config, 7)
        kernel = model.get_layer("conv5_2b").kernel
        assert kernel.dtype == "float32"
        before = as_matrix(kernel)
        optimizer_for(config, 1.0, model).apply(gradients(model), model.trainable_variables)
        steps[precision] = before - as_matrix(kernel)
    one, other = steps.values()
    assert np.linalg.norm(one - other) < 0.03 * np.linalg.norm(one)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
@pytest.mark.parametrize("precision", ["float32", "mixed_float16"])
def test_averages_are_evaluated_and_the_weights_come_back(optimizer, precision):
    model = small_net(precision)
    model.compile(optimizer_for(TrainConfig(optimizer=optimizer, ema_momentum=0.75), 0.1, model), "mse")
    kernel, seen = model.get_layer("conv").kernel, []
    draw = np.random.default_rng(0)
    x, y = (0.1 * draw.normal(size=shape).astype("float32") for shape in ((8, 4, 4, 3), (8, 2)))  # small: no overflow
    for _ in range(3):
        model.fit(x, y, verbose=0)  # each one's end leaves the weights alone
        seen.append(as_matrix(kernel))
    average = seen[0]
    for weights in seen[1:]:
        average = 0.75 * average + 0.25 * weights
    with averaged(model):
        np.testing.assert_allclose(as_matrix(kernel), average, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(as_matrix(kernel), seen[-1])
    assert not np.allclose(seen[-1], average)


@shallow()
def test_a_run_by_muon_with_averages_keeps_them_and_resumes_exactly(sample_dir, tmp_path):
    config = tiny_fixed(
        sample_dir, tmp_path, optimizer="muon", ema_momentum=0.8, keep_checkpoints=20, picture_sizes=(32,)
    )
    folder = train.train(config)
    whole, points_before = final_state(folder), points(folder)
    with np.load(folder / "checkpoints" / "step_00000020" / "arrays.npz") as arrays:
        named = {name.partition(" ")[2]: array for name, array in arrays.items()}
    kept = np.asarray(checkpoints.load_run(folder).model.get_layer("fc").kernel)
    (average,) = [array for name, array in named.items() if "average" in name and "fc_kernel" in name]
    np.testing.assert_array_equal(kept, average)
    assert not np.array_equal(kept, named["fc/kernel"])
    train.train(config, resume_from=checkpoints.checkpoints(folder)[0].name)
    assert final_state(folder) == whole
    assert points(folder) == points_before
