"""The model of a run is opened as it was saved; what does not fit its config.json, or brings code, is refused."""

import os
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers import make_run
from keras import layers
from test_faults import file_size_limit

from tiny_imagenet.errors import UserError
from tiny_imagenet.model_io import load_run, save_model
from tiny_imagenet.run_dir import read_config


@pytest.fixture
def run(sample_dir, tmp_path):
    """The folder of a run that has a model."""
    return make_run(tmp_path, sample_dir, model_name="logistic_regression", crop_size=40)


def save(run, shape=(40, 40, 3), num_classes=10, features=layers.Flatten):
    """Saves another model in its place."""
    images = keras.Input(shape)
    model = keras.Model(images, layers.Dense(num_classes)(features()(images)))
    save_model(model, read_config(run)[0])
    return model


@pytest.mark.parametrize("side", [40, None])
def test_a_model_is_opened_as_it_was_saved_and_takes_one_image_size(run, side):
    model, images = save(run, (side, side, 3), features=layers.GlobalAveragePooling2D), np.ones((2, 40, 40, 3), "uint8")
    found = load_run(run)
    assert found.model.input_shape == (None, 40, 40, 3)
    np.testing.assert_array_equal(found.model.predict_on_batch(images), model.predict_on_batch(images))
    assert (found.config, found.class_names) == (read_config(run)[0], read_config(run)[1].class_names)


def test_a_full_disk_keeps_the_model_before(run):
    before = (run / "best.keras").read_bytes()
    with file_size_limit(100), pytest.raises(UserError, match="cannot write .*best.keras"):
        save(run)
    assert (run / "best.keras").read_bytes() == before
    assert not list(run.rglob(".writing-*"))


def test_a_missing_or_damaged_model_and_one_that_is_not_ours_are_named(run, tmp_path):
    path, config = run / "best.keras", run / "config.json"
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("é", "")
    for damage in (whole[:1000], b"", path.read_bytes().replace("é".encode(), b"\xff\xfe")):  # a name not in UTF-8
        path.write_bytes(damage)
        with pytest.raises(UserError, match="cannot load .*best.keras .*; get it, or train it, again"):
            load_run(run)
    path.unlink()
    with pytest.raises(UserError, match="best.keras does not exist.*--resume"):
        load_run(run)
    config.write_text(config.read_text().replace('"logistic_regression"', '"os"'))
    with pytest.raises(UserError, match="model_name is 'os'; the models are: .*vgg_16"):
        load_run(run)
    with pytest.raises(UserError, match="nowhere is not a run"):
        load_run(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["best.keras", "weights.npz", "config.json"])
def test_what_is_no_regular_file_is_refused(run, name):
    path = run / name
    for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
        path.unlink(missing_ok=True) if not path.is_dir() else path.rmdir()
        make(path)
        with pytest.raises(UserError, match=f"^{path} is not a regular file; remove it, or restore the original file$"):
            load_run(run)


@pytest.mark.parametrize("name", ["best.keras", "weights.npz"])
def test_a_small_file_that_takes_much_memory_is_refused(run, name):
    with zipfile.ZipFile(run / name, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("large.npy", "w") as file:
        for _ in range(1000):  # 100 MB of zeros in 0.1 MB
            file.write(bytes(10**5))
    with pytest.raises(UserError, match=f"cannot load {run / name} .it expands to 100,.* bytes.; get it, or train"):
        load_run(run)


def test_weights_are_compared_with_the_model_before_they_are_read(run):
    weights = {weight.path: np.zeros(weight.shape, "float16") for weight in load_run(run).model.weights}
    for value in (np.zeros(2**40 // 2**30), np.zeros((), "float32"), np.zeros((4800, 10), "complex64")):
        np.savez(run / "weights.npz", **weights | {"fc1/kernel": value})
        with pytest.raises(UserError, match=r"weights.npz \(fc1/kernel is .*, not float \(4800, 10\)\); get it"):
            load_run(run)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(run, value):
    model = load_run(run).model
    for form in ("keras", "npz"):
        model.weights[1].assign(np.full(10, value))
        if form == "keras":
            save_model(model, read_config(run)[0])
        else:
            np.savez(run / "weights.npz", **{weight.path: np.array(weight) for weight in model.weights})
        with pytest.raises(UserError, match=f".{form}: the weight fc1/bias has NaN or infinite values; get the model"):
            load_run(run)


def test_a_model_that_brings_code_is_refused(run):
    save(run, features=lambda: layers.Lambda(lambda images: keras.ops.mean(images, (1, 2))))
    with pytest.raises(UserError, match="cannot load .*best.keras .*[Ll]ambda"):
        load_run(run)


NO_FIT = [
    {"num_classes": 7},
    {"shape": (32, 32, 3)},
    {"shape": (40, 40, 1)},
    {"shape": (4,)},
    {"features": layers.ReLU},
]


@pytest.mark.parametrize("options", NO_FIT, ids=["classes", "size", "gray", "no images", "maps"])
def test_a_model_that_does_not_fit_its_config_is_named(run, options):
    save(run, **options)
    words = r"best.keras maps .*, but config.json describes \(None, 40, 40, 3\) to \(None, 10\); get both again"
    with pytest.raises(UserError, match=words):
        load_run(run)
