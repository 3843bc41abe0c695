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
from tiny_imagenet.saliency import SALIENCY

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
        monkeypatch.setattr("IPython.display.display", figures.append)
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
        ("predict_and_saliency", 0, len(SALIENCY)),
        ("predict_and_saliency", 1, len(SALIENCY) - 1),  # no Grad-CAM
        ("val_accuracy", 1, 2),
    ],
)
def test_a_notebook_runs_from_top_to_bottom(execute, runs, sample_dir, name, run, num_figures):
    figures, output = execute(name, runs[run], sample_dir)
    assert len(figures) == num_figures
    assert "\nResult: " in output
    assert ("no convolution, which grad_cam needs" in output) == ((name, run) == ("predict_and_saliency", 1))
    if name == "val_accuracy":  # our accuracies stand in the table of 2017
        lines = [" ".join(line.split()) for line in output.splitlines()]
        for found in map(load_run, runs):
            accuracies = astuple(compute_scores(found.model, open_dataset(sample_dir).val, found.config))[:4]
            row = ["ours:", found.config.config_name, *(f"{100 * share:.2f}" for share in accuracies)]
            assert lines.count(" ".join(row)) == 1


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
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(SALIENCY)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_notebook_narrates_and_was_run_in_order(name):
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == list(NAMES)
    first, *cells = read(name).cells
    assert first.source.startswith("# ")
    assert all(cell.cell_type != other.cell_type for cell, other in zip(cells, cells[1:], strict=False))
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[-1].outputs[0].text.startswith("Result: ")
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
