"""README.md and docs/: the commands work, links lead somewhere, and tables and names match the repository."""

import importlib
import json
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import make_run

import train
from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig, from_dict
from tiny_imagenet.models import model_names
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.schedules import count_steps
from tools import tables
from tools.sample_data import draw_sample_set

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
TEXTS = {page.stem: page.read_text() for page in PAGES}
MAX_LINES = 200  # of README.md
NOT_RUN = ("make ", "source ", "tensorboard ")  # CI runs these itself, or they are part of the shell, or a server
MARKED = ("needs a network", "needs a GPU", "needs Tiny ImageNet")
RESULTS = sorted((ROOT / "results").rglob("result.json"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", "\n".join(TEXTS.values()), flags=re.DOTALL)


def commands() -> list[str]:
    """Every line of the shell blocks, once; a block or a line that needs what a test does not have is left out."""
    parts = [block.splitlines() for block in blocks("sh")]
    lines = [line for part in parts if not any(mark in part[0] for mark in MARKED) for line in part if line]
    lines = [line for line in lines if not any(mark in line for mark in MARKED) and not line.startswith(NOT_RUN)]
    return list(dict.fromkeys(line.partition(" #")[0].strip() for line in lines))


def generated(page: str, name: str, written_by: str = "tools/report.py") -> str:
    """What stands between a page's marks of this name."""
    text = TEXTS[page].partition(f"<!-- {name}: written by {written_by} -->\n")[2]
    return text.partition(f"<!-- end of {name} -->")[0]


def run_command(line: str, monkeypatch) -> None:
    """Runs a line that starts a script: in this process, which has loaded TensorFlow, unless it needs a shell."""
    if "|" in line:
        result = subprocess.run(line.replace("python ", f"{sys.executable} ", 1), shell=True, capture_output=True)
        assert result.returncode == 0, f"{line}\n{result.stderr.decode()}"
        return
    _, *words = shlex.split(line, comments=True)
    script, *arguments = words[words[0] == "-m" :]
    found = [path for word in arguments for path in (Path().glob(word) if "*" in word else [word])]
    monkeypatch.setattr(sys, "argv", [script, *map(str, found)])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script.removesuffix(".py")).main()
    assert not end.value.code, f"{line}\n{end.value.code}"


@pytest.mark.slow
def test_the_commands_work(tmp_path, monkeypatch, capsys):
    for path in ("docs", "pretrained", "predict.py"):
        (tmp_path / path).symlink_to(ROOT / path)
    (tmp_path / ".venv").symlink_to(sys.prefix)  # it may have another name here
    draw_sample_set(tmp_path / "sample-data", train_per_class=20, val_per_class=5)
    for name in ("tiny-imagenet-200", "my_photos"):
        (tmp_path / name).symlink_to("sample-data")  # instead of the real one
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)  # the scripts' handlers
    for model in ("logistic_regression", "vgg_16"):  # instead of `make demo`
        make_run(Path("runs"), Path("sample-data"), model_name=model, config_name="demo")
    assert len(commands()) > 15
    outputs = {"": capsys.readouterr().out}
    quick = {"--eval-interval 50": "--eval-interval 3"}  # few images, few steps
    quick |= {"--recipe fine_tune": "--recipe fine_tune --num-epochs 1 --crop-size 32 --freeze-features"}
    for line in commands():
        assert "python " in line, f"{line!r}: say what it needs, or let this test run it"
        run_command(reduce(lambda text, given: text.replace(given, quick[given]), quick, line), monkeypatch)
        outputs[line] = capsys.readouterr().out
    assert outputs["python predict.py docs/images/coffee.jpg"] in TEXTS["README"]
    exec(re.search(r"```python\n(.*?)```", TEXTS["inside"], re.DOTALL)[1], {})  # opens what the last command exported
    assert capsys.readouterr().out.endswith("espresso\n")


def test_the_example_of_a_model_is_one():
    names = {}
    exec(re.search(r"```python\n(.*?)```", TEXTS["README"], re.DOTALL)[1], names)
    model = names["my_model"](TrainConfig(), 7)
    assert (model.name, model.input_shape, model.output_shape) == ("my_model", (None, 56, 56, 3), (None, 7))
    assert model(np.zeros((1, 56, 56, 3), "uint8")).dtype == "float32"


def test_the_settings_of_train_py_are_valid_and_fit_the_data():
    text = "\n".join(TEXTS.values()).replace("\\\n", " ")
    given = re.findall(r"^(?:KERAS_BACKEND=jax )?python train.py (--(?!help).*)$", text, flags=re.MULTILINE)
    given = [line for line in given if "--resume" not in line]
    assert len(given) > 4
    for arguments in given:
        config = train.parse(shlex.split(arguments, comments=True)).config
        labels = range(3_200 if config.data_dir in ("sample-data", "my_photos") else 100_000)
        count_steps(config, SimpleNamespace(class_ids=range(10), train=SimpleNamespace(labels=labels)))


def test_the_make_targets_exist():
    targets = re.findall(r"^make (\S+)", "\n".join(blocks("sh")), flags=re.MULTILINE)
    assert len(targets) > 3
    assert [target for target in targets if f"\n{target}:" not in (ROOT / "Makefile").read_text()] == []


def test_every_module_and_recipe_is_listed():
    text, patterns = "\n".join(TEXTS.values()), ("*.py", "tiny_imagenet/*.py", "tools/*.py")
    names = {path.name for pattern in patterns for path in ROOT.glob(pattern)} - {"__init__.py"}
    assert [name for name in sorted(names | RECIPES.keys()) if f"`{name}`" not in text] == []
    assert {f"{name}.py" for name in model_names()} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)(.*?)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.MULTILINE) if anchor else []
        assert anchor in ["", *(heading.lower().replace(" ", "-") for heading in headings)], target


def test_the_generated_tables_match_the_results():
    assert generated("README", "summary") == tables.summary_table() != ""
    assert generated("results", "results") == tables.results_table() != ""
    assert generated("results", "board") == tables.board() != ""
    assert generated("results", "losses", "tools/report.py --group losses") == tables.results_table("losses") != ""


def test_the_readme_is_short():
    assert len(TEXTS["README"].splitlines()) <= MAX_LINES


def test_the_comparison_with_2017_matches_the_results():
    pair = r"\**([\d.]+) / ([\d.]+) %\**"
    rows = re.findall(rf"\| \[{pair}\]\(\.\./(results/.*?)\) \| {pair} \|\n", TEXTS["results"])
    assert len(rows) > 5
    for single_top_1, ten_top_1, folder, single_top_5, ten_top_5 in rows:
        row = json.loads((ROOT / folder / "result.json").read_text())
        found = [f"{100 * row[f'{crop}_top_{k}']:.1f}" for k in (1, 5) for crop in ("single_crop", "ten_crop")]
        assert [single_top_1, ten_top_1, single_top_5, ten_top_5] == found, folder


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.parent.name)
def test_every_result_has_its_evidence_and_its_command_gives_its_settings(path: Path):
    for name in ("config.json", "metrics.jsonl", "curves.png"):
        assert (path.parent / name).stat().st_size > 0
    settings = json.loads((path.parent / "config.json").read_text())["config"]
    arguments = shlex.split(json.loads(path.read_text())["command"].partition("train.py")[2])
    filed = replace(from_dict(settings, path), config_name="again")
    assert train.parse([*arguments, "--config-name", "again"]).config == filed
