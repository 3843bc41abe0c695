"""The models of 2017 against what they were: layers, first weights, L2, dropout; ResNet-18; how a model is found."""

from startup import ROOT, UserError, keras

import sys
from dataclasses import replace

import numpy as np
import pytest

from config import RECIPES, TrainConfig
from models import build_model, freeze_features, import_model, model_names, take_weights

MODELS = ("logistic_regression", "single_layer_nn", "vgg_16")
CONVOLUTIONS = [f"{block}_{number}" for block, count in enumerate((2, 2, 3, 3), 1) for number in range(1, count + 1)]


@pytest.fixture(autouse=True)
def float32_again():
    """A model sets the number format of the whole process."""
    yield
    keras.config.set_dtype_policy("float32")


def narrow(name="vgg_16", num_classes=10, **settings):
    return build_model(TrainConfig(**{"model_name": name, "width": 0.05} | settings), num_classes)


def kernels(model):
    return [weight for weight in model.weights if weight.path.endswith("/kernel")]


def biases(model):
    return [weight for weight in model.weights if weight.path.endswith("/bias")]


def values(weight):
    return np.asarray(keras.ops.convert_to_numpy(weight), np.float64).ravel()


@pytest.fixture(scope="module")
def full():
    """VGG-16 as it is trained on Tiny ImageNet: half a gigabyte."""
    return build_model(TrainConfig(), 200)


# VGG-16


def test_full_vgg_16_has_the_weights_of_2017(full):
    assert full.count_params() == 119_200_264
    assert full.input_shape == (None, 56, 56, 3)
    assert full.output_shape == (None, 200)
    assert full.inputs[0].dtype == "uint8"
    assert full.get_layer("flatten").output.shape == (None, 7 * 7 * 512)


def test_each_activation_of_vgg_16_is_a_layer_of_its_own(full):
    for name in CONVOLUTIONS:
        assert full.get_layer(f"conv{name}").activation is keras.activations.linear
        assert full.get_layer(f"relu{name}").input is full.get_layer(f"conv{name}").output
    for number in (1, 2):
        assert full.get_layer(f"relu_fc{number}").input is full.get_layer(f"fc{number}").output
    assert all(full.get_layer(f"fc{number}").activation is keras.activations.linear for number in (1, 2, 3))
    assert len([layer for layer in full.layers if isinstance(layer, keras.layers.ReLU)]) == len(CONVOLUTIONS) + 2


@pytest.mark.parametrize(("name", "fan_in"), [("conv4_2", 9 * 512), ("fc2", 4096), ("fc3", 2048)])
def test_vgg_16_starts_from_an_untruncated_normal(full, name, fan_in):
    """A normal cut off at two deviations, as Keras's HeNormal, has no value beyond 2.3 of its own."""
    scaled = values(full.get_layer(name).kernel) / np.sqrt(2 / fan_in)
    assert scaled.std() == pytest.approx(1, rel=0.02)
    assert scaled.mean() == pytest.approx(0, abs=0.01)
    assert np.mean(np.abs(scaled) > 2) == pytest.approx(0.0455, rel=0.05)
    assert np.abs(scaled).max() > 3


def test_biases_of_vgg_16_start_at_zero(full):
    assert len(biases(full)) == len(CONVOLUTIONS) + 3
    assert not any(values(bias).any() for bias in biases(full))


def test_layers_of_one_shape_start_with_different_weights(full):
    first, second = (values(full.get_layer(name).kernel) for name in ("conv4_2", "conv4_3"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_dropout_is_on_the_two_hidden_dense_layers_alone():
    model = narrow(dropout_keep_prob=0.7)
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.Dropout)]
    assert [layer.rate for layer in found] == [pytest.approx(0.3)] * 2
    assert [layer.input for layer in found] == [model.get_layer(f"relu_fc{number}").output for number in (1, 2)]
    for name in ("logistic_regression", "single_layer_nn"):
        assert not [layer for layer in narrow(name).layers if isinstance(layer, keras.layers.Dropout)]


# The baselines


@pytest.mark.parametrize(("name", "num_hidden"), [("logistic_regression", 0), ("single_layer_nn", 1)])
def test_kernels_and_biases_of_the_baselines_start_from_one_normal(name, num_hidden):
    model = narrow(name, num_classes=200, width=1.0)
    assert len(kernels(model)) == len(biases(model)) == num_hidden + 1
    for kernel, bias in zip(kernels(model), biases(model), strict=True):
        stddev = 0.1 / np.sqrt(kernel.shape[0])
        assert values(kernel).std() == pytest.approx(stddev, rel=0.02)
        assert np.abs(values(kernel)).max() > 3 * stddev
        assert values(bias).std() == pytest.approx(stddev, rel=0.2)  # of 200 numbers or 1,024


def test_the_single_layer_has_1024_units():
    layer = narrow("single_layer_nn", width=1.0).get_layer("fc1")
    assert (layer.units, layer.activation) == (1024, keras.activations.linear)


# All


@pytest.mark.parametrize("name", MODELS)
def test_l2_is_on_kernels_alone(name):
    model = narrow(name, reg=0.02)
    for bias in biases(model):
        bias.assign(keras.ops.ones_like(bias))  # they would count
    expected = [0.02 / 2 * np.sum(values(kernel) ** 2) for kernel in kernels(model)]
    np.testing.assert_allclose([float(loss) for loss in model.losses], expected, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_rescaled_inside_the_model(name):
    levels = np.array([0, 64, 128, 192, 255], np.uint8)
    rescale = narrow(name).get_layer("rescale")
    found = keras.ops.convert_to_numpy(rescale(levels))
    np.testing.assert_array_equal(found, [-1, -0.5, 0, 0.5, 127 / 128])
    assert rescale.input.dtype == "uint8"


@pytest.mark.parametrize("name", MODELS)
def test_a_model_reads_crops_of_any_size_and_tells_any_number_of_classes(name):
    model = narrow(name, num_classes=7, crop_size=40)
    logits = model.predict_on_batch(np.zeros((2, 40, 40, 3), np.uint8))
    assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", MODELS)
def test_with_bfloat16_weights_and_logits_stay_float32(name):
    model = narrow(name, precision="mixed_bfloat16")
    assert model.get_layer("fc1").compute_dtype == "bfloat16"
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    assert model.output.dtype == "float32"
    assert model.predict_on_batch(np.zeros((1, 56, 56, 3), np.uint8)).dtype == np.float32


def test_width_is_a_factor_on_the_units_of_every_hidden_layer():
    model = narrow(width=0.25, num_classes=10)
    units = {layer.name: layer.filters for layer in model.layers if isinstance(layer, keras.layers.Conv2D)}
    assert units == {f"conv{name}": 64 * 2 ** (int(name[0]) - 1) // 4 for name in CONVOLUTIONS}
    assert [model.get_layer(f"fc{number}").units for number in (1, 2, 3)] == [1024, 512, 10]
    assert narrow("single_layer_nn", width=0.25).get_layer("fc1").units == 256


def test_no_layer_is_left_without_units():
    model = narrow(width=0.01, hidden_units=(1, 1))
    assert [model.get_layer(f"fc{number}").units for number in (1, 2)] == [1, 1]


@pytest.mark.parametrize("name", MODELS)
def test_first_weights_are_a_function_of_the_seed(name):
    def fc1(seed):
        return values(narrow(name, seed=seed).get_layer("fc1").kernel)

    first = fc1(3)
    np.testing.assert_array_equal(first, fc1(3))
    assert not np.array_equal(first, fc1(4))


def test_the_penalty_can_be_on_the_last_kernel_alone():
    for name in (*MODELS, "resnet_18", "vgg_16_bn"):
        model = narrow(name, reg=0.02, reg_last_only=True)
        found = [float(loss) for loss in model.losses]
        assert found == [pytest.approx(0.02 / 2 * np.sum(values(kernels(model)[-1]) ** 2), rel=1e-5)]
        assert narrow(name, reg=0.0).losses == []


def test_the_hidden_layers_of_2017_s_svm():
    config = replace(RECIPES["vgg_16_svm"], width=0.05)
    assert (config.loss, config.lr, config.reg, config.reg_last_only) == ("svm", 0.001, 1.0, True)
    model = build_model(config, 10)
    assert [model.get_layer(f"fc{number}").units for number in (1, 2)] == [205, 205]  # of 4096
    assert [layer.name for layer in model.layers if isinstance(layer, keras.layers.Dropout)] == ["dropout1"]


# Weights of another model


def test_weights_are_taken_where_path_and_shape_agree():
    source, model = narrow(num_classes=10, seed=1), narrow(num_classes=7, seed=2)
    before = values(model.get_layer("fc3").kernel)
    theirs = {weight.path: np.asarray(keras.ops.convert_to_numpy(weight)) for weight in source.weights}
    assert take_weights(model, theirs) == ["fc3/kernel", "fc3/bias"]
    for theirs, ours in zip(source.weights[:-2], model.weights[:-2], strict=True):
        np.testing.assert_array_equal(values(ours), values(theirs))
    np.testing.assert_array_equal(values(model.get_layer("fc3").kernel), before)


@pytest.mark.parametrize("name", ["vgg_16", "resnet_18", "logistic_regression"])
def test_frozen_features_leave_the_last_layer(name):
    model = narrow(name)
    last = [weight.path for weight in model.weights][-2:]
    frozen = freeze_features(model)
    assert [weight.path for weight in model.trainable_weights] == last
    assert [*frozen, *last] == [weight.path for weight in model.weights]


# How a model is found


def test_the_root_holds_the_models_and_takes_no_other_file_for_one():
    assert {*MODELS, "resnet_18", "vgg_16_bn"} <= set(model_names())
    assert not {"train", "models", "config", "startup"} & set(model_names())


@pytest.mark.parametrize("name", ["vgg_61", "train", "os", "models"])
def test_an_unknown_name_is_answered_with_those_that_exist(name):
    with pytest.raises(UserError) as error:
        import_model(name)
    for word in (repr(name), *MODELS):
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_only_the_model_that_is_asked_for_is_imported(monkeypatch):
    for name in model_names():
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert import_model("single_layer_nn").__file__ == str(ROOT / "single_layer_nn.py")
    assert [name for name in model_names() if name in sys.modules] == ["single_layer_nn"]


GOOD = "def {name}(config, num_classes) -> {annotation}:\n    return None\n"


@pytest.mark.parametrize("annotation", ["keras.Model", "'keras.Model'", '"keras.Model"'])
def test_a_file_is_a_model_by_its_function(tmp_path, annotation):
    text = "raise SystemExit('it was run')\n" + GOOD.format(name="mine", annotation=annotation)
    (tmp_path / "mine.py").write_text(text)
    assert model_names(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    "text",
    [
        "def mine(config, num_classes) -> keras.Model\n    return 1\n",  # no colon
        "def mine(config, num_classes):\n    return 1\n",
        "def mine(config, num_classes) -> int:\n    return 1\n",
        "def other(config, num_classes) -> keras.Model:\n    return 1\n",
        "class A:\n    def mine(config, num_classes) -> keras.Model:\n        return 1\n",
        "mine = 1\n",
        "",
        "\0",
    ],
)
def test_any_other_file_is_no_model(tmp_path, text):
    (tmp_path / "mine.py").write_text(text)
    (tmp_path / "good.py").write_text(GOOD.format(name="good", annotation="keras.Model"))
    assert model_names(tmp_path) == ["good"]


def test_bytes_that_are_no_text_are_no_model(tmp_path):
    (tmp_path / "mine.py").write_bytes(b"# \xff\xfe\n" + GOOD.format(name="mine", annotation="keras.Model").encode())
    assert model_names(tmp_path) == []


# ResNet-18


def test_resnet_18_has_the_weights_of_its_paper_for_200_classes():
    model = build_model(TrainConfig("resnet_18"), 200)
    convolutions = 3 * 64 * 9 + 4 * 64 * 64 * 9  # the stem, and the first stage
    for filters in (128, 256, 512):
        convolutions += filters // 2 * filters * (9 + 1) + 3 * filters * filters * 9
    normalised = 5 * 64 + 5 * (128 + 256 + 512)
    assert model.count_params() == convolutions + 4 * normalised + 512 * 200 + 200 == 11_281_032
    assert model.get_layer("relu5_2b").output.shape == (None, 4, 4, 512)  # 56 / 16, rounded up


def test_vgg_16_bn_has_the_convolutions_of_vgg_16_and_a_fifteenth_of_its_weights():
    model = build_model(TrainConfig("vgg_16_bn"), 200)
    assert model.count_params() == 7_745_928
    found = [layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
    assert [layer.name for layer in found] == [f"conv{name}" for name in CONVOLUTIONS]
    for name in CONVOLUTIONS:  # the activation comes after the normalisation
        assert model.get_layer(f"relu{name}").input is model.get_layer(f"norm{name}").output
    assert model.get_layer("relu4_3").output.shape == (None, 7, 7, 512)
    assert narrow("vgg_16_bn", schedule="cosine", picture_sizes=(32, 48)).input_shape == (None, None, None, 3)


def test_a_block_of_resnet_18_begins_as_the_identity():
    model = narrow("resnet_18", width=0.25)
    before, after = model.get_layer("relu2_1b").output, model.get_layer("relu2_2b").output
    pictures = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    one, other = keras.Model(model.inputs, [before, after]).predict_on_batch(pictures)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("side", [32, 35, 37, 48])
def test_resnet_18_lies_alike_on_pictures_of_every_side(side):
    """A unit sees the same pixels around its own place, whatever the side: `same` padding would move them by one."""
    model = narrow("resnet_18", width=0.25, schedule="cosine", picture_sizes=(32,))
    early = keras.Model(model.inputs, model.get_layer("relu3_1a").output)  # two strides of 2
    pictures = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    whole, part = early.predict_on_batch(pictures), early.predict_on_batch(pictures[:, :side, :side])
    np.testing.assert_allclose(part[:, :4, :4], whole[:, :4, :4], rtol=1e-4, atol=1e-4)


def test_frozen_normalisation_does_not_move():
    from normalisation import FusedBatchNormalization

    layer = FusedBatchNormalization()
    x = np.random.default_rng(0).normal(3, 2, (8, 5, 5, 4)).astype("float32")
    layer.build(x.shape)
    layer.trainable = False
    np.testing.assert_allclose(layer(x, training=True), x / np.sqrt(1 + layer.epsilon), rtol=1e-5)
    assert not np.any(layer.moving_mean)


def test_resnet_18_takes_pictures_of_any_size_where_they_change():
    config = TrainConfig("resnet_18", width=0.1, schedule="cosine", picture_sizes=(32, 48))
    assert build_model(config, 7).input_shape == (None, None, None, 3)
    assert narrow("resnet_18", crop_size=40).input_shape == (None, 40, 40, 3)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_fused_normalisation_equals_keras_own(precision):
    keras.config.set_dtype_policy(precision)
    from normalisation import FusedBatchNormalization

    ours = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")
    draw = np.random.default_rng(0)
    x = keras.ops.cast(draw.normal(3, 2, (8, 5, 5, 4)), ours.compute_dtype if precision == "float32" else "bfloat16")
    scale, offset = draw.normal(size=(2, 4))
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.gamma.assign(scale)
        layer.beta.assign(offset)
    near = {"rtol": 1e-4, "atol": 1e-4} if precision == "float32" else {"rtol": 0.02, "atol": 0.02}
    for training in (True, False):
        found, expected = ours(x, training=training), theirs(x, training=training)
        assert found.dtype == x.dtype
        np.testing.assert_allclose(keras.ops.cast(found, "float32"), expected, **near)
    np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, rtol=1e-3)
    np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, rtol=1e-3)
    assert {weight.dtype for weight in ours.weights} == {"float32"}


def test_a_saved_resnet_18_gives_the_same(tmp_path):
    model = narrow("resnet_18", precision="mixed_bfloat16", width=0.1)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    expected = model.predict_on_batch(pictures)
    model.save(tmp_path / "model.keras")
    found = keras.saving.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_array_equal(found.predict_on_batch(pictures), expected)
    assert found.get_layer("norm1").compute_dtype == "float32"
