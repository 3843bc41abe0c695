"""predict.py: any photo becomes a 64x64 picture, and one bad file among many stops nothing."""

from startup import UserError, keras

import os
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import assert_one_line_error, run_script
from PIL import Image
from tiny_run import make_run

import predict
from checkpoints import load_run
from dataset import open_dataset

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"


@pytest.fixture(scope="module")
def run_folder(sample_dir, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("work") / "runs", sample_dir, config_name="tiny")


def save(path: Path, pixels, mode: str | None = None, **options) -> Path:
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path, **options)
    return path


# Pictures


def test_a_picture_of_the_dataset_is_taken_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(predict.read_picture(save(tmp_path / "a.png", pixels)), pixels)


def test_the_central_square_is_cut_out(tmp_path):
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128, 1] = 200
    np.testing.assert_array_equal(predict.read_picture(save(tmp_path / "a.png", pixels))[..., 1], 200)


def test_scaling_down_averages(tmp_path):
    """A fine checkerboard becomes even grey; a filter that picks single pixels would leave black and white."""
    board = (np.indices((640, 640)).sum(axis=0) % 2 * 255).astype(np.uint8)
    found = predict.read_picture(save(tmp_path / "a.png", np.stack([board] * 3, axis=-1)))
    assert np.abs(found.astype(int) - 127).max() <= 2


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255  # white above, black below, as it should be seen
    turned = Image.fromarray(np.rot90(pixels))  # as a camera held on its side stores it
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by 90 degrees
    turned.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.png"), pixels)


def test_what_is_transparent_becomes_white(tmp_path):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:32] = (255, 0, 0, 255)
    pixels[32:48] = (0, 0, 0, 128)
    found = predict.read_picture(save(tmp_path / "a.png", pixels))
    np.testing.assert_array_equal(found[[0, 40, 63], 0], [[255, 0, 0], [127, 127, 127], [255, 255, 255]])


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (64, 64), 1)
    image.putpalette([10, 20, 30, 200, 0, 0])
    image.paste(0, (0, 0, 64, 32))
    image.save(tmp_path / "a.gif", transparency=0)
    np.testing.assert_array_equal(predict.read_picture(tmp_path / "a.gif")[[0, 63], 0], [[255] * 3, [200, 0, 0]])


def test_sixteen_bits_are_scaled_not_cut_off(tmp_path):
    pixels = np.full((64, 64), 0x80FF, np.uint16)
    assert (predict.read_picture(save(tmp_path / "a.png", pixels)) == 0x80).all()


@pytest.mark.parametrize(
    ("ending", "mode"), [("jpg", "L"), ("jpg", "CMYK"), ("webp", "RGB"), ("png", "1"), ("tif", "L")]
)
def test_other_kinds_become_rgb(tmp_path, ending, mode):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32] = 255
    found = predict.read_picture(save(tmp_path / f"a.{ending}", pixels, mode)).astype(int)
    assert found.shape == (64, 64, 3)
    assert np.abs(found[[5, 60]] - np.array([255, 0])[:, None, None]).max() <= 3


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3, 2)])
def test_tiny_pictures_are_scaled_up(tmp_path, size):
    found = predict.read_picture(save(tmp_path / "a.png", np.full((*size, 3), 77, np.uint8)))
    assert (found == 77).all()
    assert found.shape == (64, 64, 3)


def test_what_is_no_picture_is_named_in_one_line(tmp_path):
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "half.jpg").write_bytes(PHOTO.read_bytes()[:20000])
    for name, words in {
        "text.jpg": "not a picture that can be read",
        "empty.jpg": "not a picture that can be read",
        "half.jpg": "truncated",
        "missing.jpg": "No such file",
        ".": "is a folder",
        "n" * 300: "File name too long",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            predict.read_picture(tmp_path / name)
        assert "\n" not in str(caught.value)
        assert str(tmp_path / name) in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is closed to root")
def test_a_picture_in_a_closed_folder_is_named_in_one_line(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o600)
    with pytest.raises(UserError, match="a.jpg cannot be read .Permission denied"):
        predict.read_picture(closed / "a.jpg")


# The model


def test_predictions_are_the_models_probabilities_best_first(run_folder):
    run = load_run(run_folder)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    found = predict.predict(run, pictures, ["a", "b"], top=3, labels=[4, 0])
    logits = keras.ops.convert_to_numpy(run.model(pictures[:, 4:60, 4:60]))
    for number, prediction in enumerate(found):
        odds = np.exp(logits[number] - logits[number].max())
        best = np.argsort(-odds)[:3]
        assert prediction.names == tuple(run.class_names[label] for label in best)
        np.testing.assert_allclose(prediction.probabilities, odds[best] / odds.sum(), rtol=1e-4)
        np.testing.assert_array_equal(prediction.picture, pictures[number, 4:60, 4:60])
    assert [prediction.true_name for prediction in found] == [run.class_names[4], run.class_names[0]]


def test_runs_on_the_same_data_are_opened_and_why_one_cannot_be_is_said(sample_dir, tmp_path, capsys):
    good, other, broken = (make_run(tmp_path, sample_dir, config_name=name) for name in ("good", "other", "broken"))
    linear = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    description = (other / "config.json").read_text()
    data = open_dataset(sample_dir)
    (other / "config.json").write_text(description.replace(data.fingerprint, "0" * 64))
    (broken / "best.keras").write_text("no model")
    (tmp_path / "vgg_16" / "empty").mkdir()
    assert [run.folder for run in predict.runs_on(data, tmp_path)] == [linear, good]
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(f"left out: {broken / 'best.keras'} is damaged or no .keras file")


# The command


def test_photos_bad_files_and_a_list(run_folder, tmp_path):
    """The bad ones get a line each, the good ones a table and a place in the figure."""
    (tmp_path / "bad.png").write_text("no picture")
    long = "n" * 300
    listed = f"{tmp_path / 'bad.png'}\n\n{long}\n{PHOTO}\n"
    work = run_folder.parents[2]
    arguments = [
        "-",
        tmp_path,
        PHOTO,
        "--run",
        "runs/vgg_16/tiny",
        "--output",
        tmp_path / "grid.png",
        "--top",
        "3",
        "--saliency",
        "grad_cam",
    ]
    result = run_script("predict.py", *arguments, cwd=work, input=listed)
    assert result.returncode == 1
    errors = result.stderr.strip().splitlines()
    assert errors == [
        f"error: {tmp_path / 'bad.png'} is not a picture that can be read ({', '.join(predict.FORMATS)})",
        f"error: {long} cannot be read (File name too long)",
        f"error: {tmp_path} is a folder; give the pictures in it",
    ]
    assert result.stdout.count("grace_hopper.jpg") == 2
    assert result.stdout.count(" %  ") == 6
    assert result.stdout.splitlines()[0] == "runs/vgg_16/tiny: vgg_16, 10 classes"
    with Image.open(tmp_path / "grid.png") as image:
        assert image.width > 600


def test_jax_draws_too(run_folder, tmp_path):
    output = tmp_path / "grid.png"
    arguments = [PHOTO, "--run", run_folder, "--output", output, "--saliency", "grad_cam"]
    result = run_script("predict.py", *arguments, cwd=tmp_path, backend="jax")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert output.exists()


def call(monkeypatch, *arguments) -> None:
    monkeypatch.setattr("sys.argv", ["predict.py", *map(str, arguments)])
    predict.main()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([PHOTO, "--top", "0"], "top is 0; it must be 1 or more"),
        ([PHOTO, "--output", "missing/grid.png"], "missing is not a folder"),
        ([PHOTO, "--output", "grid.xyz"], "grid.xyz has no ending of a picture; use .png"),
        ([PHOTO, "--output", "folder.png"], "folder.png is a folder"),
        ([PHOTO, "--saliency", "gradient"], "--saliency draws into --output; give one"),
        ([PHOTO, "--run", "nowhere"], "nowhere holds no run"),
    ],
)
def test_wrong_arguments_are_answered_by_one_line(monkeypatch, tmp_path, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, *arguments)
    assert words in str(caught.value.code)
    assert "\n" not in str(caught.value.code)


def test_an_empty_list_is_answered_by_one_line(run_folder, tmp_path):
    result = run_script("predict.py", "-", "--run", run_folder, cwd=tmp_path, input="\n")
    assert_one_line_error(result, "no picture is given")


def test_an_output_that_is_one_of_the_pictures_is_refused(tmp_path, monkeypatch):
    photo = save(tmp_path / "photo.png", np.zeros((64, 64, 3), np.uint8))
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match="one of the pictures"):
        call(monkeypatch, str(photo), "--output", str(photo))
    assert photo.read_bytes() == before


def test_a_figure_that_cannot_be_written_leaves_the_old_one(monkeypatch, run_folder, tmp_path):
    output = tmp_path / "grid.png"
    output.write_text("old")

    def fail(figure, path, **_):
        Path(path).write_text("half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(SystemExit, match="No space left on device"):
        call(monkeypatch, PHOTO, "--run", run_folder, "--output", output)
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
