"""Each notebook runs from top to bottom on a small run and prints its result; the saved ones are complete."""

import ast
import os
import sys
from dataclasses import astuple
from pathlib import Path

import nbclient
import nbformat
import pytest
from helpers import make_run
from matplotlib.figure import Figure

from evaluate import compute_scores
from tiny_imagenet import ROOT
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.model_io import load_run

FOLDER = ROOT / "notebooks"
NAMES = ("image_distort", "kernel_viz", "kernel_viz_conv4", "predict_and_saliency", "val_accuracy")  # those of 2017


@pytest.fixture(scope="module")
def runs(sample_dir, tmp_path_factory) -> list[Path]:
    """Two runs in one folder: of a VGG-16, and of a model without convolutions."""
    folder = tmp_path_factory.mktemp("runs")
    settings = ({"width": 0.1}, {"model_name": "logistic_regression", "config_name": "linear"})
    return [make_run(folder, sample_dir, **values) for values in settings]


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture
def execute(monkeypatch, capsys):
    """Executes a notebook's code in this process, from the root; returns its figures and what it printed."""

    def execute(name: str, run: Path, data_dir: Path) -> tuple[list[Figure], str]:
        figures: list[Figure] = []
        names = {"show": lambda value: figures.append(value) if isinstance(value, Figure) else None}
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.setenv("RUN", str(run))
        monkeypatch.setenv("DATA_DIR", str(data_dir))
        for cell in read(name).cells:
            if cell.cell_type == "code":
                tree = ast.parse(cell.source.replace("%matplotlib inline", ""))
                last = tree.body[-1]
                if isinstance(last, ast.Expr):  # whose value a kernel displays
                    last.value = ast.Call(ast.Name("show", ast.Load()), [last.value], [])
                exec(compile(ast.fix_missing_locations(tree), name, "exec"), names)
        return figures, capsys.readouterr().out

    return execute


@pytest.mark.parametrize(
    ("name", "run", "num_figures"),
    [
        ("image_distort", 0, 4),
        ("kernel_viz", 0, 1),
        ("kernel_viz_conv4", 0, 1),
        ("predict_and_saliency", 0, 2),
        ("predict_and_saliency", 1, 2),
        ("val_accuracy", 1, 4),
    ],
)
def test_a_notebook_runs_from_top_to_bottom(execute, runs, sample_dir, name, run, num_figures):
    figures, output = execute(name, runs[run], sample_dir)
    assert len(figures) == num_figures
    assert "\nResult: " in output
    if name == "predict_and_saliency":  # Grad-CAM needs a convolution
        assert figures[1].axes[4].get_title(loc="left") == ("grad_cam", "")[run]
    if name == "val_accuracy":  # our accuracies stand in the table of 2017
        lines = [" ".join(line.split()) for line in output.splitlines()]
        for found in map(load_run, runs):
            accuracies = astuple(compute_scores(found.model, open_dataset(sample_dir).val, found.config))[:4]
            row = ["ours:", found.config.config_name, *(f"{100 * share:.2f}" for share in accuracies)]
            assert lines.count(" ".join(row)) == 1


def test_image_distort_shows_photographs_without_a_dataset(execute, runs, tmp_path):
    figures, output = execute("image_distort", runs[0], tmp_path / "missing")
    assert len(figures[0].axes) == 5 * 4
    assert "\n4 images\n" in output


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("place", ["notebooks", ".", "docs/images", "elsewhere"])
def test_a_notebook_finds_the_repository(monkeypatch, tmp_path, name, place):
    """From any of its folders and, with the environment that `make` installs in it, from any other folder."""
    monkeypatch.chdir(tmp_path if place == "elsewhere" else ROOT / place)
    monkeypatch.setattr(sys, "prefix", str(ROOT / ".venv" if place == "elsewhere" else tmp_path))
    monkeypatch.setattr(sys, "path", [])
    exec(next(cell.source for cell in read(name).cells if cell.cell_type == "code"), {})
    assert sys.path == [str(ROOT)]


@pytest.mark.slow
def test_a_notebook_runs_in_a_kernel_without_a_dataset():
    """The kernel starts in notebooks/; by default it uses the pretrained model, and a photograph."""
    notebook = read("predict_and_saliency")
    resources = {"metadata": {"path": str(FOLDER)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    client.execute(env={name: value for name, value in os.environ.items() if name not in ("RUN", "DATA_DIR")})
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    text = "".join(output.get("text", "") for output in outputs)
    assert "pretrained/resnet_18: resnet_18, 200 classes" in text
    assert "\nResult: " in text
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_notebook_narrates_and_was_run_in_order(name):
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)
    first, *cells = read(name).cells
    assert first.source.startswith("# ")
    assert first.source.splitlines()[0].endswith("?")  # the question that the notebook answers
    assert all(cell.cell_type != other.cell_type for cell, other in zip(cells, cells[1:], strict=False))
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[-1].outputs[0].text.startswith("Result: ")
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    for cell, following in zip(cells, cells[1:], strict=False):  # each figure ends with what to notice
        has_figure = any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
        assert following.source.startswith("**Notice:**") or not has_figure


def test_saved_notebooks_show_no_image_of_the_dataset():
    """Those that have a choice were run without it; a cell that must draw them was saved without its output."""
    for name, printed in (("image_distort", "4 images\n"), ("predict_and_saliency", "using 4 photographs\n")):
        texts = [output.get("text", "") for cell in read(name).cells for output in cell.get("outputs", [])]
        assert any(text.endswith(printed) for text in texts)
    drawing = [cell for cell in read("val_accuracy").cells if "image_sheet(" in cell.source]
    assert [(cell.metadata.get("tags"), cell.outputs) for cell in drawing] == [(["not-saved"], [])]
