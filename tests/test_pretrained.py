"""A run made small enough to ship is a run like any other; the one that ships is what its card says."""

from startup import UserError, keras

import json
import platform
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_script
from tiny_run import make_run

import pretrained
import report
import train
from checkpoints import ROUNDED_WEIGHTS, load_run, read_seconds
from evaluate import evaluate
from predict import SHIPPED

MOST = 25e6  # bytes


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty folder for what ships."""
    monkeypatch.setattr(pretrained, "ROOT", tmp_path)
    monkeypatch.setattr(pretrained, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(pretrained, "CLASSES", 10)
    return pretrained.PRETRAINED


@pytest.mark.parametrize("model", ["resnet_18", "vgg_16"])
def test_what_ships_gives_nearly_the_same_and_names_no_folder(sample_dir, tmp_path, shelf, model):
    fixed = {"schedule": "cosine", "picture_sizes": (32, 48), "resized_crop": (44, 64)} if model == "resnet_18" else {}
    run = make_run(tmp_path, sample_dir, model_name=model, precision="mixed_bfloat16", **fixed)
    (run / "metrics.jsonl").write_text(json.dumps({"split": "end", "step": 1, "seconds": 90}) + "\n")
    folder = pretrained.ship(run)
    assert folder == shelf / model
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "metrics.jsonl", ROUNDED_WEIGHTS}
    before, after = load_run(run), load_run(folder)
    assert (after.class_ids, after.class_names) == (before.class_ids, before.class_names)
    for one, other in zip(before.model.weights, after.model.weights, strict=True):
        one, other = map(keras.ops.convert_to_numpy, (one, other))
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-6)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    logits = [run.model.predict_on_batch(pictures) for run in (before, after)]
    np.testing.assert_allclose(logits[1], logits[0], atol=0.05)  # bfloat16 against float32
    for file in ("config.json", "README.md"):
        assert str(tmp_path) not in (folder / file).read_text()
    card, row = (folder / "README.md").read_text(), evaluate(folder, str(sample_dir))
    assert f"{row['center_top_1']:.2%} top-1 and {row['center_top_5']:.2%} top-5" in card
    assert f"expected calibration error {row['center_ece']:.2%}" in card
    assert f"`python evaluate.py pretrained/{model}`" in card
    assert f"float16, {(folder / ROUNDED_WEIGHTS).stat().st_size / 1e6:.0f} MB, for the 10 classes" in card
    assert "in 2 minutes on" in card and f"(python {platform.python_version()}, keras {keras.__version__}, " in card


def test_what_ships_stays_whole_if_the_new_one_cannot_be_evaluated(sample_dir, tmp_path, shelf):
    run = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    folder = pretrained.ship(run)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    (run / "metrics.jsonl").write_text('{"split": "end", "step": 1, "seconds": 1}\n')  # of a better run
    with pytest.raises(UserError, match="nowhere does not exist"):
        pretrained.ship(run, str(tmp_path / "nowhere"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_only_an_ended_run_of_tiny_imagenet_ships(sample_dir, tmp_path, shelf, monkeypatch):
    run = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    monkeypatch.setattr(pretrained, "CLASSES", 200)
    with pytest.raises(UserError, match="has 10 classes, Tiny ImageNet has 200"):
        pretrained.ship(run)
    monkeypatch.setattr(pretrained, "CLASSES", 10)
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has not come to its end"):
        pretrained.ship(run)
    assert not shelf.exists()


def test_weights_beyond_float16_are_named(sample_dir, tmp_path, shelf):
    run = make_run(tmp_path, sample_dir)
    model = load_run(run).model
    model.get_layer("fc2").bias.assign(np.full(model.get_layer("fc2").bias.shape, 1e5))
    with pytest.raises(UserError, match="fc2/bias has values up to 1e.05, too large for float16"):
        pretrained.rounded(model)


@pytest.mark.parametrize("damage", ["half", "lacking", "other shape", "no zip"])
def test_damaged_weights_are_one_line(sample_dir, tmp_path, shelf, damage):
    run = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    path = pretrained.ship(run) / ROUNDED_WEIGHTS
    with np.load(path) as arrays:
        arrays = dict(arrays)
    name = next(iter(arrays))
    if damage == "half":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "no zip":
        path.write_text("weights")
    else:
        changed = {name: np.zeros((2, 2))} if damage == "other shape" else {}
        np.savez(path, **{key: array for key, array in arrays.items() if key != name} | changed)
    with pytest.raises(UserError, match="weights.npz (is damaged|cannot be loaded).*get it, again") as error:
        load_run(path.parent)
    assert "\n" not in str(error.value)


# What ships


def test_the_net_that_ships_is_small_and_has_a_card():
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < MOST
    run, card = load_run(SHIPPED), (SHIPPED / "README.md").read_text()
    assert len(run.class_ids) == len(run.class_names) == 200
    assert run.model.compute_dtype == "float32"
    assert f"{run.model.count_params():,} weights" in card
    assert "Licence" in card
    assert f"in {read_seconds(SHIPPED) / 60:.0f} minutes on" in card
    command = re.search(r"`python train.py (.*?)`", card)[1]
    made = replace(train.parse(shlex.split(command)).config, precision=run.config.precision, config_name="default")
    assert made == replace(run.config, config_name="default")
    last = [point for point in report.read_points(SHIPPED / "metrics.jsonl") if point["split"] == "validation"][-1]
    for share, name in (("top_1", "top-1"), ("top_5", "top-5")):
        assert float(re.search(rf"([\d.]+)% {name}", card)[1]) == pytest.approx(
            100 * last[share], abs=0.3
        )  # rounded since


def test_without_a_run_the_net_that_ships_is_asked(tmp_path):
    from matplotlib.cbook import get_sample_data

    photo = get_sample_data("grace_hopper.jpg", asfileobj=False)
    result = run_script("predict.py", photo, "--output", "grid.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "no run is named: the net that ships is asked" in result.stdout
    assert "pretrained/resnet_18: resnet_18, 200 classes" in result.stdout
    assert result.stdout.count(" %  ") == 5
    assert (tmp_path / "grid.png").stat().st_size > 0
