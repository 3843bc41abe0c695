"""The README's commands work, in its order; the results table is the one that report.py makes."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run_script

import report
import train
from config import from_dict
from models import model_names

ELSEWHERE = ("make ", "source ", "tensorboard ")  # run by CI itself, or part of the shell, or a server
MARKED = ("needs a network", "needs a GPU")


def commands() -> list[str]:
    """Every line of the README's shell blocks that is not marked as needing what a test does not have."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [
        line
        for block in blocks
        if not any(mark in block.split("\n")[0] for mark in MARKED)
        for line in block.split("\n")
    ]
    return [line for line in lines if line.strip() and not any(mark in line for mark in MARKED)]


def test_the_commands_work(tmp_path):
    from sample_data import draw_sample_set

    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "pretrained", tmp_path / "pretrained")
    (tmp_path / ".venv").symlink_to(sys.prefix)  # which may have another name
    draw_sample_set(tmp_path / "sample-data", train_per_class=160, val_per_class=5)
    (tmp_path / "tiny-imagenet-200").symlink_to("sample-data")  # stands in for the real one
    for model in ("logistic_regression", "vgg_16"):
        settings = ("--recipe", "demo", "--model-name", model, "--config-name", "demo", "--width", "0.05")
        made = run_script("train.py", *settings, "--num-epochs", "1", "--eval-interval", "25", cwd=tmp_path)
        assert made.returncode == 0, made.stderr
    ran = [line for line in commands() if not line.startswith(ELSEWHERE)]
    assert len(ran) > 5
    for line in ran:
        assert "python " in line, f"{line!r}: say what it needs, or let this test run it"
        result = subprocess.run(
            line.replace("python ", f"{sys.executable} ", 1), shell=True, cwd=tmp_path, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{line}\n{result.stderr}"


def test_the_settings_of_the_commands_for_gpus_are_valid():
    text = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md"))).replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "python train.py --" in line and line not in commands()]
    given = [line.partition("train.py ")[2] for line in lines if line.startswith("KERAS_BACKEND=jax")]
    assert given
    for words in given:
        train.parse(shlex.split(words))


def test_the_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert named
    for target in named:
        assert f"\n{target}:" in makefile


def test_every_file_of_the_root_is_in_the_tour():
    text = (ROOT / "README.md").read_text()
    for path in ROOT.glob("*.py"):
        assert f"`{path.name}`" in text or path.stem in model_names(), path.name


def test_the_results_table_is_made_from_the_results():
    text = (ROOT / "README.md").read_text()
    assert report.BEGIN + report.results_table() + report.END in text
    assert report.BOARD_BEGIN + report.board() + report.BOARD_END in text
    for folder in {path.parent.parent for path in report.RESULTS.glob("*/*/result.json")}:
        begin, end = report.marks(folder.name)
        assert begin not in text or begin + report.results_table(folder.name) + end in text


def test_the_figures_beside_2017_s_are_those_of_the_results():
    rows = re.findall(r"\| \[\**([\d.]+) / ([\d.]+) %\**\]\((results/.*?)\) \|\n", (ROOT / "README.md").read_text())
    assert len(rows) > 5
    for *figures, folder in rows:
        row = json.loads((ROOT / folder / "result.json").read_text())
        assert figures == [f"{100 * row[f'{crops}_top_1']:.1f}" for crops in ("center", "ten_crops")], folder


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("result.json")), ids=lambda path: path.parent.name)
def test_the_command_of_every_result_gives_its_settings(path: Path):
    settings = json.loads((path.parent / "config.json").read_text())["config"]
    words = shlex.split(json.loads(path.read_text())["command"].partition("train.py")[2])
    filed = replace(from_dict(settings, str(path)), config_name="made_again")
    assert train.parse([*words, "--config-name", "made_again"]).config == filed


@pytest.mark.parametrize("path", sorted((ROOT / "results").rglob("result.json")), ids=lambda path: path.parent.name)
def test_every_result_has_its_evidence(path: Path):
    for name in ("config.json", "metrics.jsonl", "curves.png"):
        assert (path.parent / name).stat().st_size > 0
