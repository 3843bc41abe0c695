"""The model of a run is opened as it was saved; what does not fit its config.json, or brings code, is refused."""

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
    assert (found.config, list(found.class_names)) == (read_config(run)[0], read_config(run)[1]["class_names"])


def test_a_full_disk_keeps_the_model_before(run):
    before = (run / "best.keras").read_bytes()
    with file_size_limit(100), pytest.raises(UserError, match="cannot write .*best.keras"):
        save(run)
    assert (run / "best.keras").read_bytes() == before
    assert not list(run.rglob(".writing-*"))


def test_a_missing_or_damaged_model_and_one_that_is_not_ours_are_named(run, tmp_path):
    path, config = run / "best.keras", run / "config.json"
    for damage in (path.read_bytes()[:1000], b""):
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
