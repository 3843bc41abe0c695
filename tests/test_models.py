"""The models of 2017 against what they were: layers, initial weights, L2, dropout; the newer ones; finding a model."""

import sys
from dataclasses import replace

import keras
import numpy as np
import pytest

from benchmarks.summary import VGG_16_FLOP
from tiny_imagenet import ROOT, models
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.errors import UserError
from tiny_imagenet.layers import FusedBatchNormalization
from tiny_imagenet.models import InitialWeights, create_model, initialize_from, model_names
from tiny_imagenet.recipes import RECIPES

ALL_MODELS = ("logistic_regression", "resnet_18", "single_layer_nn", "vgg_16", "vgg_16_bn")
CONVOLUTIONS = [f"{block}_{number}" for block, count in enumerate((2, 2, 3, 3), 1) for number in range(1, count + 1)]
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)


@pytest.fixture(autouse=True)
def restore_dtype_policy():
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def shallow(monkeypatch):
    """ResNet-18 with two of its four stages, which is built sooner."""
    monkeypatch.setattr("resnet_18.STAGES", (64, 128))


def narrow(name="vgg_16", num_classes=10, **settings):
    return create_model(TrainConfig(**{"model_name": name, "width": 0.05} | settings), num_classes)


def weights_of(model, kind=""):
    arrays = {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in model.weights}
    return {path: array for path, array in arrays.items() if path.endswith(kind)}


def layers_of(model, kind):
    return [layer for layer in model.layers if isinstance(layer, kind)]


# The models of 2017


def test_full_vgg_16_is_that_of_2017():
    full = create_model(TrainConfig(), 200)
    assert full.count_params() == 119_200_264
    assert (full.input_shape, full.output_shape, full.inputs[0].dtype) == ((None, 56, 56, 3), (None, 200), "uint8")
    assert full.get_layer("flatten").output.shape == (None, 7 * 7 * 512)
    relus = {f"relu{name}": f"conv{name}" for name in CONVOLUTIONS} | {"relu_fc1": "fc1", "relu_fc2": "fc2"}
    assert {layer.name: layer.input for layer in layers_of(full, keras.layers.ReLU)} == {
        relu: full.get_layer(name).output
        for relu, name in relus.items()  # each activation is a separate layer
    }
    products = 0
    for layer in map(full.get_layer, (*relus.values(), "fc3")):
        assert layer.activation is keras.activations.linear
        assert not np.any(layer.bias)
        places = np.prod(layer.output.shape[1:-1], dtype=int)  # 1 for a dense layer
        products += places * np.prod(layer.kernel.shape, dtype=int)
    assert 3 * 2 * products == VGG_16_FLOP  # forwards, backwards to the inputs and to the kernels
    # Untruncated normals; Keras's HeNormal is truncated at two standard deviations: nothing is above 2.3 of its own
    for name, fan_in in (("conv4_2", 9 * 512), ("fc2", 4096), ("fc3", 2048)):
        scaled = np.asarray(full.get_layer(name).kernel) / np.sqrt(2 / fan_in)
        assert scaled.std() == pytest.approx(1, rel=0.02)
        assert scaled.mean() == pytest.approx(0, abs=0.01)
        assert np.mean(np.abs(scaled) > 2) == pytest.approx(0.0455, rel=0.05)
        assert np.abs(scaled).max() > 3
    first, second = (np.ravel(full.get_layer(name).kernel) for name in ("conv4_2", "conv4_3"))
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01


def test_width_and_dropout_of_vgg_16():
    model = narrow(width=0.25, dropout_keep_prob=0.7)
    filters = {layer.name: layer.filters for layer in layers_of(model, keras.layers.Conv2D)}
    assert filters == {f"conv{name}": 64 * 2 ** (int(name[0]) - 1) // 4 for name in CONVOLUTIONS}
    assert [model.get_layer(f"fc{number}").units for number in (1, 2, 3)] == [1024, 512, 10]
    dropouts = layers_of(model, keras.layers.Dropout)
    assert [layer.rate for layer in dropouts] == [pytest.approx(0.3)] * 2
    assert [layer.input for layer in dropouts] == [model.get_layer(f"relu_fc{number}").output for number in (1, 2)]
    assert narrow(width=0.01, hidden_units=(1, 1)).get_layer("fc2").units == 1  # never 0
    svm = create_model(replace(RECIPES["vgg_16_svm"], width=0.05), 10)
    assert [svm.get_layer(f"fc{number}").units for number in (1, 2)] == [205, 205]  # 4096 each
    assert [layer.name for layer in layers_of(svm, keras.layers.Dropout)] == ["dropout1"]


@pytest.mark.parametrize(("name", "num_hidden"), [("logistic_regression", 0), ("single_layer_nn", 1)])
def test_kernels_and_biases_of_the_baselines_start_from_one_normal(name, num_hidden):
    model = narrow(name, num_classes=200, width=1.0)
    kernels, biases = (list(weights_of(model, kind).values()) for kind in ("kernel", "bias"))
    assert [bias.shape for bias in biases] == [(1024,)] * num_hidden + [(200,)]
    for kernel, bias in zip(kernels, biases, strict=True):
        stddev = 0.1 / np.sqrt(kernel.shape[0])
        assert kernel.std() == pytest.approx(stddev, rel=0.02)
        assert np.abs(kernel).max() > 3 * stddev
        assert bias.std() == pytest.approx(stddev, rel=0.2)  # of only 200 or 1,024 numbers
    assert not layers_of(model, keras.layers.Dropout)


# All models


@pytest.mark.parametrize("name", ALL_MODELS)
def test_initial_weights_depend_on_the_seed_and_l2_is_on_all_kernels_or_only_on_the_last(shallow, name):
    model, other = narrow(name, reg=0.02, seed=1), narrow(name, reg=0.02, reg_last_only=True, seed=2)
    again, kernels = weights_of(narrow(name, seed=1)), weights_of(model, "/kernel")
    assert all(np.array_equal(value, again[path]) for path, value in weights_of(model).items())
    assert not any(np.array_equal(value, kernels[path]) for path, value in weights_of(other, "/kernel").items())
    penalties = [0.02 / 2 * np.sum(kernel**2.0) for kernel in kernels.values()]
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(np.ones(layer.bias.shape))  # which would add to the penalty
    np.testing.assert_allclose(sorted(map(float, model.losses)), sorted(penalties), rtol=1e-4)
    *_, kernel = weights_of(other, "/kernel").values()
    assert [float(loss) for loss in other.losses] == [pytest.approx(0.02 / 2 * np.sum(kernel**2.0), rel=1e-4)]


@pytest.mark.parametrize("name", ALL_MODELS)
def test_any_crop_size_and_number_of_classes_and_float32_weights_in_bfloat16(shallow, name):
    model = narrow(name, num_classes=7, crop_size=40, precision="mixed_bfloat16", reg=0.0)
    logits = model.predict_on_batch(IMAGES[:, :40, :40])
    assert (logits.shape, logits.dtype, model.losses) == ((2, 7), np.float32, [])
    assert model.layers[-2].compute_dtype == "bfloat16"
    assert {weight.dtype for weight in model.weights} == {"float32"}
    rescale = keras.Model(model.inputs, model.get_layer("rescale").output)
    levels = np.broadcast_to(np.array([0, 64, 128, 192], np.uint8)[:, None, None, None], (4, 40, 40, 3))
    np.testing.assert_array_equal(np.float32(rescale.predict_on_batch(levels))[:, 0, 0, 0], [-1, -0.5, 0, 0.5])


@pytest.mark.parametrize(
    ("unit", "name", "picked"),
    [("a unit", "vgg_16", "mixed_bfloat16"), ("a unit", "single_layer_nn", "float32"), ("", "vgg_16", "float32")],
)
def test_precision_auto_depends_on_the_device_and_the_model(monkeypatch, capsys, unit, name, picked):
    monkeypatch.setattr(models, "bfloat16_unit", lambda: unit)
    config = TrainConfig(name, precision="auto", width=0.05)
    assert models.resolve_precision(config, 10) == replace(config, precision=picked)
    assert f"precision auto: {picked} (" in capsys.readouterr().out
    assert models.resolve_precision(replace(config, precision="mixed_float16"), 10).precision == "mixed_float16"


# Weights of another run


@pytest.mark.parametrize(("freeze", "ids"), [(True, "abc"), (False, "xyz")])
def test_another_run_s_features_are_loaded_and_the_last_layer_is_new(shallow, capsys, freeze, ids):
    """It is new where the features are frozen, or if no class is known."""
    config = TrainConfig("resnet_18", width=0.05, init_from="runs/other", freeze_features=freeze)
    model, source = create_model(config, 3), weights_of(narrow("resnet_18", num_classes=3, seed=1))
    before = weights_of(model)
    initialize_from(model, config, ids, None)  # of a run that is resumed: freezes, but loads nothing
    assert all(np.array_equal(value, before[path]) for path, value in weights_of(model).items())
    assert ([weight.path for weight in model.trainable_weights] == ["fc/kernel", "fc/bias"]) == freeze
    initialize_from(model, config, ids, InitialWeights(source, "abc"))
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[path] if path.startswith("fc/") else source[path])
    counts = f"{len(source) - 2} of {len(source)}"
    assert f"loaded {counts} weights from runs/other; new: fc/kernel, fc/bias" in capsys.readouterr().out
    other = InitialWeights({path: value[..., :1] for path, value in source.items()}, "abc")  # of another width
    with pytest.raises(UserError, match="init_from: runs/other has no conv1/kernel of the right shape.*--width"):
        initialize_from(model, config, ids, other)


def test_the_last_layer_is_matched_by_class_id(shallow, capsys):
    config = TrainConfig("resnet_18", width=0.05, init_from="runs/other")
    model, source = create_model(config, 4), weights_of(narrow("resnet_18", num_classes=3, seed=1))
    source["fc/bias"] = np.array([1, 2, 3], np.float32)
    before = weights_of(model)
    initialize_from(model, config, ("c", "new", "a", "b"), InitialWeights(source, ("a", "b", "c")))
    np.testing.assert_array_equal(weights_of(model)["fc/bias"], [3, 0, 1, 2])
    kernel = weights_of(model)["fc/kernel"]
    np.testing.assert_array_equal(kernel[:, [0, 2, 3]], source["fc/kernel"][:, [2, 0, 1]])
    np.testing.assert_array_equal(kernel[:, 1], before["fc/kernel"][:, 1])
    assert "it knows 3 of the 4 classes by their ids" in capsys.readouterr().out


def test_a_model_of_one_layer_has_no_features_to_freeze():
    with pytest.raises(UserError, match="freeze_features: logistic_regression has only one layer"):
        models.freeze_features(narrow("logistic_regression"))


# Finding a model


def test_only_the_requested_model_is_imported_and_an_unknown_one_is_named(monkeypatch):
    assert model_names() == list(ALL_MODELS)
    for name in ALL_MODELS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert models.import_model("single_layer_nn").__file__ == str(ROOT / "single_layer_nn.py")
    assert [name for name in ALL_MODELS if name in sys.modules] == ["single_layer_nn"]
    for name in ("vgg_61", "train", "os"):
        with pytest.raises(UserError, match=f"model_name is '{name}'; the models are: {', '.join(ALL_MODELS)}"):
            models.import_model(name)


def test_a_file_is_a_model_because_of_its_function(tmp_path):
    files = {
        "model_1": b"raise SystemExit('it was run')\ndef model_1(config, num_classes) -> keras.Model: pass",
        "model_2": b"def model_2(config, num_classes) -> 'keras.Model': pass",
        "no_colon": b"def no_colon(config, num_classes) -> keras.Model pass",
        "no_annotation": b"def no_annotation(config, num_classes): pass",
        "other_annotation": b"def other_annotation(config, num_classes) -> int: pass",
        "other_name": b"def model(config, num_classes) -> keras.Model: pass",
        "method": b"class A:\n    def method(config, num_classes) -> keras.Model: pass",
        "null": b"\0",
        "not_utf8": b"# \xff\xfe\ndef not_utf8(config, num_classes) -> keras.Model: pass",
    }
    for name, data in files.items():
        (tmp_path / f"{name}.py").write_bytes(data)
    assert model_names(tmp_path) == ["model_1", "model_2"]


# The models with batch normalization


def test_resnet_18_has_the_parameters_of_its_paper():
    model = create_model(TrainConfig("resnet_18"), 200)
    smaller_stem, fewer_classes, moving_averages = 3 * 64 * (7 * 7 - 3 * 3), 800 * (512 + 1), 9_600
    assert model.count_params() == 11_689_512 - smaller_stem - fewer_classes + moving_averages == 11_281_032
    assert model.get_layer("relu5_2b").output.shape == (None, 4, 4, 512)  # 56 / 16, rounded up


def test_vgg_16_bn_has_the_convolutions_of_vgg_16_and_a_fifteenth_of_its_parameters():
    config = TrainConfig("vgg_16_bn", schedule="cosine", image_sizes=(32, 48), random_resized_crop=(44, 64))
    model = create_model(config, 200)
    assert (model.count_params(), model.input_shape) == (7_745_928, (None, None, None, 3))
    assert [layer.name for layer in layers_of(model, keras.layers.Conv2D)] == [f"conv{name}" for name in CONVOLUTIONS]
    for name in CONVOLUTIONS:  # the activation comes after the normalization
        assert model.get_layer(f"relu{name}").input is model.get_layer(f"norm{name}").output
    assert model.get_layer("relu4_3").output.shape == (None, None, None, 512)


def test_resnet_18_is_aligned_the_same_at_every_image_size_and_its_blocks_start_as_the_identity(shallow):
    """A unit sees the same pixels around its own place, whatever the size: "same" padding would shift them by one."""
    sizes = {"schedule": "cosine", "image_sizes": (32,), "random_resized_crop": (44, 64)}
    model = narrow("resnet_18", width=0.25, **sizes)
    outputs = [model.get_layer(name).output for name in ("relu2_1b", "relu2_2b", "relu3_1a")]  # two strides of 2
    early = keras.Model(model.inputs, outputs)
    before, after, whole = early.predict_on_batch(IMAGES)
    np.testing.assert_array_equal(before, after)
    for side in (32, 35, 37, 48):
        part = early.predict_on_batch(IMAGES[:, :side, :side])[-1]
        np.testing.assert_allclose(part[:, :4, :4], whole[:, :4, :4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.02)])
def test_fused_batch_normalization_equals_that_of_keras(dtype, tolerance):
    ours = FusedBatchNormalization(momentum=0.9, epsilon=1e-5)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, dtype="float32")
    rng = np.random.default_rng(0)
    x = keras.ops.cast(rng.normal(3, 2, (8, 5, 5, 4)), dtype)
    scale, offset = rng.normal(size=(2, 4))
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.gamma.assign(scale)
        layer.beta.assign(offset)
    for trainable, training in ((False, True), (True, True), (True, False)):  # frozen, it does not update
        ours.trainable = theirs.trainable = trainable
        found, expected = ours(x, training=training), theirs(x, training=training)
        assert found.dtype == x.dtype
        np.testing.assert_allclose(keras.ops.cast(found, "float32"), expected, rtol=tolerance, atol=tolerance)
        for name in ("moving_mean", "moving_variance"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-3)
    assert {weight.dtype for weight in ours.weights} == {"float32"}
