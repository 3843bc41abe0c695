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
def run_folder(sample_dir, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), sample_dir, width=0.1)


@pytest.fixture(scope="module")
def linear_folder(run_folder, sample_dir) -> Path:
    """A second run in the same folder, of a model without convolutions."""
    return make_run(run_folder.parent.parent, sample_dir, model_name="logistic_regression", config_name="linear")


def read(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture
def execute(monkeypatch, capsys):
    """A function that executes a notebook's code in this process, from the root, and returns its figures and output."""

    def execute(name: str, run: Path, data_dir: Path) -> tuple[list[Figure], str]:
        figures = []
        names = {"show": lambda value: figures.append(value) if isinstance(value, Figure) else None}
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "path", sys.path[:])
        monkeypatch.setattr("IPython.display.display", figures.append)
        for variable, value in (("RUN", run), ("DATA_DIR", data_dir)):
            monkeypatch.setenv(variable, str(value))
        for cell in read(name).cells:
            if cell.cell_type == "code":
                tree = ast.parse(cell.source.replace("%matplotlib inline", ""))
                last = tree.body[-1]
                if isinstance(last, ast.Expr):  # whose value a kernel displays
                    last.value = ast.Call(ast.Name("show", ast.Load()), [last.value], [])
                exec(compile(ast.fix_missing_locations(tree), name, "exec"), names)
        return figures, capsys.readouterr().out

    return execute


@pytest.mark.parametrize("name", NAMES[:-1])
def test_a_notebook_runs_from_top_to_bottom(execute, name, run_folder, sample_dir):
    figures, output = execute(name, run_folder, sample_dir)
    assert len(figures) == {"image_distort": 4, "predict_and_saliency": len(SALIENCY)}.get(name, 1)
    assert "\nResult: " in output


def test_our_accuracies_stand_in_the_table_of_2017(execute, run_folder, linear_folder, sample_dir):
    figures, output = execute("val_accuracy", linear_folder, sample_dir)
    assert len(figures) == 2
    assert "\nResult: " in output
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for folder in (linear_folder, run_folder):
        run = load_run(folder)
        accuracies = astuple(compute_scores(run.model, open_dataset(sample_dir).val, run.config))[:4]
        assert lines.count(" ".join(["ours:", folder.name, *(f"{100 * p:.2f}" for p in accuracies)])) == 1


def test_a_model_without_convolutions_has_no_grad_cam(execute, linear_folder, sample_dir):
    figures, output = execute("predict_and_saliency", linear_folder, sample_dir)
    assert "no convolution, which grad_cam needs" in output
    assert len(figures) == len(SALIENCY) - 1


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


def test_the_five_of_2017_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_notebook_narrates_and_was_run_in_order(name):
    first, *cells = read(name).cells
    assert first.source.startswith("# ")
    assert all(cell.cell_type != other.cell_type for cell, other in zip(cells, cells[1:], strict=False))
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[-1].outputs[0].text.startswith("Result: ")
    assert not [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
