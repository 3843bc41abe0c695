"""Each notebook runs from top to bottom on a tiny run, and says what it found."""

from startup import ROOT

import os
from dataclasses import astuple
from pathlib import Path

import nbclient
import nbformat
import pytest
from tiny_run import make_run

from checkpoints import load_run
from dataset import open_dataset
from evaluate import scores
from visualize import SALIENCY

FOLDER = ROOT / "notebooks"
NAMES = ("image_distort", "kernel_viz", "kernel_viz_conv4", "predict_and_saliency", "val_accuracy")  # those of 2017


@pytest.fixture(scope="module")
def tiny_run(sample_dir, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), sample_dir)


@pytest.fixture(scope="module")
def linear_run(tiny_run, sample_dir) -> Path:
    """Beside the VGG, a model without convolutions."""
    return make_run(tiny_run.parent.parent, sample_dir, model_name="logistic_regression", config_name="linear")


def executed(name: str, run: Path | None = None, data_dir: Path | None = None):
    """The notebook's cells of code, after they ran; without a run, the net that ships is shown."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    named = {"RUN": run, "DATA_DIR": data_dir}
    client.execute(env=os.environ | {name: str(value) for name, value in named.items() if value})
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells) -> str:
    return "".join(output.text for cell in cells for output in cell.outputs if output.get("name") == "stdout")


def test_the_five_of_2017_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_from_top_to_bottom(name, tiny_run, sample_dir):
    cells = executed(name, tiny_run, sample_dir)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert cells[-1].outputs[0].text.startswith("Result: ")
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def test_our_accuracies_stand_in_the_table_of_2017(tiny_run, linear_run, sample_dir):
    lines = printed(executed("val_accuracy", linear_run, sample_dir)).splitlines()
    for folder in (linear_run, tiny_run):
        run = load_run(folder)
        shares = astuple(scores(run.model, open_dataset(sample_dir).val, run.config))[:4]
        ours = ["ours:", folder.name, *(f"{100 * share:.2f}" for share in shares)]
        assert [line.split() for line in lines].count(ours) == 1


def test_a_model_without_convolutions_has_no_grad_cam_and_says_so(linear_run, sample_dir):
    cells = executed("predict_and_saliency", linear_run, sample_dir)
    assert "no convolution, which grad_cam needs" in printed(cells)
    pictures = sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert pictures == 1 + len(SALIENCY) - 2  # the ten, and one by each method that is left


@pytest.mark.parametrize("name", ["kernel_viz", "predict_and_saliency"])
def test_without_a_run_a_notebook_shows_the_net_that_ships(name):
    """These two need no dataset: where there is none, the second one shows a photograph."""
    cells = executed(name)
    assert "no run is named: the net that ships is asked" in printed(cells)
    assert cells[-1].outputs[0].text.startswith("Result: ")


@pytest.mark.parametrize("name", NAMES)
def test_saved_notebook_narrates_and_was_run_in_order(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    cells = notebook.cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    for before, cell in zip(cells, cells[1:]):  # noqa: B905  a sentence before each cell
        assert cell.cell_type == "markdown" or before.cell_type == "markdown"
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert code[-1].outputs[0].text.startswith("Result: ")
