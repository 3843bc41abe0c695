"""Each notebook runs from top to bottom on a tiny run, and says what it found."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest
from conftest import ROOT
from tiny_run import make_run

FOLDER = ROOT / "notebooks"
NAMES = ("image_distort", "kernel_viz", "kernel_viz_conv4", "predict_and_saliency", "val_accuracy")  # those of 2017


@pytest.fixture(scope="module")
def tiny_run(sample_dir, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs"), sample_dir)


def test_the_five_of_2017_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_from_top_to_bottom(name, tiny_run, sample_dir):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    )
    client.execute(env=os.environ | {"RUN": str(tiny_run), "DATA_DIR": str(sample_dir)})
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert cells[-1].outputs[0].text.startswith("Result: ")
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


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
