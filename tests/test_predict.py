"""predict.py: probabilities, tables and figures, and one bad file among many stops nothing."""

import io
import shutil
from pathlib import Path

import keras
import matplotlib
import numpy as np
import pytest
from helpers import make_run, run_script
from PIL import Image

import predict
from tiny_imagenet.model_io import load_run

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def run_folder(sample_dir, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("work") / "runs", sample_dir, config_name="tiny")


def call(monkeypatch, *arguments, stdin: bytes = b"") -> str | int | None:
    """Runs the command in this process; returns what it exits with: its error message, or a code."""
    monkeypatch.setattr("sys.argv", ["predict.py", *map(str, arguments)])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    with pytest.raises(SystemExit) as end:
        predict.main()
    return end.value.code


def test_predictions_are_the_probabilities_best_first(run_folder):
    run = load_run(run_folder)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    predictions = predict.predict(run, images, ["a", "b"], top=3, labels=[4, 0])
    logits = keras.ops.convert_to_numpy(run.model(images[:, 4:60, 4:60]))
    for prediction, image, row in zip(predictions, images, logits, strict=True):
        odds = np.exp(row - row.max())
        best = np.argsort(-odds)[:3]
        assert prediction.names == tuple(run.class_names[label] for label in best)
        np.testing.assert_allclose(prediction.probabilities, odds[best] / odds.sum(), rtol=1e-4)
        np.testing.assert_array_equal(prediction.image, image[4:60, 4:60])
    assert [prediction.true_name for prediction in predictions] == [run.class_names[4], run.class_names[0]]
    assert [prediction.title for prediction in predictions] == ["a", "b"]


def test_bad_files_get_a_line_each_and_good_ones_a_table_and_a_drawing(monkeypatch, run_folder, tmp_path, capsys):
    """The drawing exists already, so that every name is compared with it, even one that is too long for the disk."""
    monkeypatch.chdir(run_folder.parents[2])
    output, bad, odd = tmp_path / "grid.png", tmp_path / "bad.png", tmp_path / "odd\udcff.jpg"
    titles, draw = [], predict.prediction_grid
    monkeypatch.setattr(predict, "prediction_grid", lambda p, m: titles.extend(i.title for i in p) or draw(p, m))
    output.write_text("old")
    bad.write_text("not an image")
    shutil.copy(PHOTO, odd)  # its name is not UTF-8
    names = f"{bad}\n\n{'n' * 300}\n{PHOTO}\r\n{odd}\n".encode(errors="surrogateescape")
    options = ["--run", "runs/vgg_16/tiny", "--output", output, "--top", "3", "--saliency", "grad_cam"]
    assert call(monkeypatch, "-", tmp_path, PHOTO, *options, stdin=names) == 1
    out, err = capsys.readouterr()
    assert err.splitlines() == [
        f"error: cannot read {bad} (not an image, or of a format that cannot be read; convert it to JPEG or PNG)",
        f"error: cannot read {'n' * 300} (File name too long)",
        f"error: cannot read {tmp_path} (a folder; name the images in it)",
    ]
    first, *tables, last = out.splitlines()
    assert first == "runs/vgg_16/tiny: vgg_16, 10 classes"
    assert tables[::4] == [str(PHOTO), ascii(str(odd)), str(PHOTO)]
    assert titles == [PHOTO.name, r"'odd\udcff.jpg'", PHOTO.name]
    assert sum(" %  " in line for line in tables) == 9
    assert last == f"wrote {output}: 3 of 3 images"
    with Image.open(output) as image:
        assert image.width > 600


def test_what_the_model_is(monkeypatch, sample_dir, tmp_path, capsys):
    assert call(monkeypatch, PHOTO) == 0
    first, _, best, *_ = capsys.readouterr().out.splitlines()
    assert first == "no --run given: using pretrained/resnet_18 (200 Tiny ImageNet classes)"
    assert best.split(maxsplit=2)[1:] == ["%", "academic gown"]
    svm = make_run(tmp_path, sample_dir, loss="svm", model_name="logistic_regression")
    assert call(monkeypatch, PHOTO, "--run", svm) == 0
    assert "trained as an SVM: the percentages rank the classes" in capsys.readouterr().out


@pytest.mark.slow
def test_jax_draws_too(run_folder, tmp_path):
    arguments = [PHOTO, "--run", run_folder, "--output", tmp_path / "grid.png", "--saliency", "grad_cam"]
    result = run_script("predict.py", *arguments, cwd=tmp_path, backend="jax")
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "grid.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PHOTO, "--top", "0"], "--top is 0; it must be 1 or more"),
        ([PHOTO, "--output", "missing/grid.png"], "--output is missing/grid.png; it must be a file in a folder"),
        ([PHOTO, "--output", "folder.png"], "--output is folder.png; it must be a file"),
        ([PHOTO, "--output", "grid.xyz"], "grid.xyz; its name must end in .png"),
        ([PHOTO, "--saliency", "gradient"], "--saliency needs a file to draw into; add --output"),
        ([PHOTO, "--run", "nowhere"], "nowhere is not a run"),
        (["-"], "no images given"),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    message = call(monkeypatch, *arguments)
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize("listed", [False, True])
def test_an_output_that_is_one_of_the_images_is_refused(monkeypatch, run_folder, tmp_path, listed):
    photo = shutil.copy(PHOTO, tmp_path / "photo.png")
    options = ["--run", run_folder, "--output", photo]
    message = call(monkeypatch, "-" if listed else photo, *options, stdin=f"{photo}\n".encode())
    assert "photo.png, one of the images" in message
    assert photo.read_bytes() == PHOTO.read_bytes()


def test_a_figure_that_cannot_be_written_leaves_the_old_one(monkeypatch, run_folder, tmp_path):
    output = tmp_path / "grid.png"
    output.write_text("old")

    def fail(figure, path, **_):
        Path(path).write_text("half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    assert "No space left on device" in call(monkeypatch, PHOTO, "--run", run_folder, "--output", output)
    assert output.read_text() == "old"
    assert list(tmp_path.iterdir()) == [output]
