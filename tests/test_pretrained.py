"""A run made small enough to ship is a run like any other; the one that ships is what its card says."""

import platform
import re
import shlex
from dataclasses import replace

import keras
import numpy as np
import pytest
from helpers import make_run

import train
from evaluate import evaluate
from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError
from tiny_imagenet.model_io import ROUNDED_WEIGHTS, load_run
from tiny_imagenet.run_dir import read_seconds
from tools import export_pretrained
from tools.tables import read_points

MAX_BYTES = 25e6
SHIPPED = ROOT / "pretrained" / "resnet_18"


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder in the place of pretrained/."""
    monkeypatch.setattr(export_pretrained, "ROOT", tmp_path)
    monkeypatch.setattr(export_pretrained, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(export_pretrained, "NUM_CLASSES", 10)
    return export_pretrained.PRETRAINED


def test_what_ships_gives_nearly_the_same_and_names_no_folder(sample_dir, tmp_path, shelf):
    settings = {"schedule": "cosine", "image_sizes": (32, 48), "random_resized_crop": (44, 64)}
    run = make_run(tmp_path, sample_dir, model_name="vgg_16_bn", precision="mixed_bfloat16", **settings)
    (run / "metrics.jsonl").write_text('{"split": "end", "step": 1, "seconds": 90}\n')
    folder = export_pretrained.export(run, note="Not the best.")
    assert folder == shelf / "vgg_16_bn"
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "metrics.jsonl", ROUNDED_WEIGHTS}
    before, after = load_run(run), load_run(folder)
    assert (after.class_ids, after.class_names) == (before.class_ids, before.class_names)
    for one, other in zip(before.model.weights, after.model.weights, strict=True):
        one, other = map(keras.ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)
    images = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    logits = [run.model.predict_on_batch(images) for run in (before, after)]
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05)  # bfloat16 and float32
    card, row = (folder / "README.md").read_text(), evaluate(folder, str(sample_dir))
    assert str(tmp_path) not in card + (folder / "config.json").read_text()
    assert f"{row['single_crop_top_1']:.2%} top-1 and {row['single_crop_top_5']:.2%} top-5" in card
    assert f"expected calibration error {row['calibration_error']:.2%}" in card
    assert "`python evaluate.py pretrained/vgg_16_bn`" in card and "Not the best." in card
    assert f"float16, {(folder / ROUNDED_WEIGHTS).stat().st_size / 1e6:.0f} MB, for the 10 classes" in card
    assert "of 2 minutes on" in card and f"(python {platform.python_version()}, keras {keras.__version__}, " in card


def test_what_cannot_ship_leaves_the_earlier_one_whole(sample_dir, tmp_path, shelf, monkeypatch):
    run = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    folder = export_pretrained.export(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (run / "metrics.jsonl").write_text('{"split": "end", "step": 1, "seconds": 1}\n')  # of a better run
    with pytest.raises(UserError, match="nowhere"):
        export_pretrained.export(run, str(tmp_path / "nowhere"))
    monkeypatch.setattr(export_pretrained, "NUM_CLASSES", 200)
    with pytest.raises(UserError, match="has 10 classes, not Tiny ImageNet's 200"):
        export_pretrained.export(run)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has not finished"):
        export_pretrained.export(run)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    model = load_run(run).model
    model.weights[0].assign(np.full(model.weights[0].shape, 1e5))
    with pytest.raises(UserError, match="has values up to 1e.05, too large for float16"):
        export_pretrained.round_weights(model)


def test_damaged_weights_are_one_line(sample_dir, tmp_path, shelf):
    path = export_pretrained.export(make_run(tmp_path, sample_dir, model_name="logistic_regression")) / ROUNDED_WEIGHTS
    names = list(np.load(path))
    for damage in (
        lambda: path.write_bytes(path.read_bytes()[:9999]),
        lambda: np.savez(path, **{name: np.zeros((2, 2)) for name in names}),
        lambda: np.savez(path, **dict.fromkeys(names[1:], 0)),
    ):
        damage()
        with pytest.raises(UserError, match=r"^cannot load .*weights\.npz .*; get it, or train it, again$"):
            load_run(path.parent)


def test_the_model_that_ships_is_small_and_is_what_its_card_says():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < MAX_BYTES
    run, card = load_run(SHIPPED), (SHIPPED / "README.md").read_text()
    assert len(run.class_ids) == len(run.class_names) == 200
    assert run.model.compute_dtype == "float32"
    assert f"{run.model.count_params():,} parameters" in card
    assert f"of {read_seconds(SHIPPED) / 60:.0f} minutes on" in card
    arguments = shlex.split(re.search(r"`python train.py (.*?)`", card)[1])
    made = replace(train.parse(arguments).config, precision=run.config.precision, config_name="default")
    assert made == replace(run.config, config_name="default")
    last = [point for point in read_points(SHIPPED / "metrics.jsonl") if point.split == "validation"][-1]
    for metric, name in (("top_1", "top-1"), ("top_5", "top-5")):  # the weights have been rounded since
        assert float(re.search(rf"([\d.]+)% {name}", card)[1]) == pytest.approx(100 * getattr(last, metric), abs=0.3)
