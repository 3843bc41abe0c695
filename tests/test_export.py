"""Models used elsewhere: what is saved and exported needs nothing of this repository, and gives the same answers."""

import subprocess
import sys

import keras
import numpy as np
import onnxruntime
import pytest
import tensorflow as tf
from helpers import make_run
from test_saliency import randomize

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.layers import FusedBatchNormalization, copy_model
from tiny_imagenet.model_io import load_run, save_model
from tiny_imagenet.models import create_model
from tools.export import export, main

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 56, 56, 3), np.uint8)


@pytest.fixture(scope="module")
def run(sample_dir, tmp_path_factory):
    """A run in mixed precision of a network with batch normalization and random weights."""
    settings = {"model_name": "resnet_18", "precision": "mixed_bfloat16", "width": 0.1}
    folder = make_run(tmp_path_factory.mktemp("runs"), sample_dir, **settings)
    config = TrainConfig(runs_dir=str(folder.parent.parent), **settings)
    save_model(randomize(create_model(config, len(open_dataset(sample_dir).class_ids))), config)
    keras.config.set_dtype_policy("float32")
    return load_run(folder)


def answers(form: str, path, images: np.ndarray) -> np.ndarray:
    """What the exported model says, computed by the program that it is exported for."""
    if form == "saved_model":
        model = tf.saved_model.load(str(path))
        return model.serve(images).numpy()
    if form == "onnx":
        return onnxruntime.InferenceSession(path).run(None, {"images": images})[0]
    if form == "litert":
        interpreter = tf.lite.Interpreter(str(path))
        interpreter.resize_tensor_input(0, images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(0, images)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    return keras.saving.load_model(path).predict_on_batch(images)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize(
    ("form", "suffix"), [("keras", ".keras"), ("saved_model", ""), ("onnx", ".onnx"), ("litert", ".tflite")]
)
def test_an_exported_model_gives_the_run_s_answers_in_float32(run, form, suffix, tmp_path):
    export(run, form, tmp_path / f"model{suffix}")
    actual = answers(form, tmp_path / f"model{suffix}", IMAGES)
    in_float32 = copy_model(run.model, FusedBatchNormalization, dtype="float32")
    for model, tolerance in ((in_float32, 1e-5), (run.model, 0.05)):  # bfloat16 has 8 bits
        expected = model.predict_on_batch(IMAGES)
        np.testing.assert_allclose(actual, expected, atol=tolerance * np.abs(expected).max())
    assert (tmp_path / f"model{suffix}.classes.txt").read_text().splitlines() == list(run.class_names)


@pytest.mark.slow
def test_keras_opens_a_run_s_model_without_this_repository(run, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    model = run.folder / "best.keras"
    code = f"import keras, numpy as np; model = keras.saving.load_model({str(model)!r}, compile=False)"
    code += "; np.save('logits.npy', np.asarray(model.predict_on_batch(np.load('images.npy')), 'float32'))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    expected = run.model.predict_on_batch(IMAGES)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-2 * np.abs(expected).max())


def test_what_is_there_is_not_overwritten(run, tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("mine")
    with pytest.raises(UserError, match="model.keras already exists; choose another --output"):
        export(run, "keras", path)
    with pytest.raises(UserError, match="its name must end in .onnx"):
        export(run, "onnx", tmp_path / "model")
    assert path.read_text() == "mine"


def test_the_command_names_the_file_after_the_model(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["export", str(run.folder)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert (tmp_path / "resnet_18.keras").exists()
    assert "wrote resnet_18.keras: (B, 56, 56, 3) uint8 to logits (B, 10) float32" in capsys.readouterr().out
