"""Files runs as results: `python -m tools.report runs/vgg_16/default` writes results/ and the tables.

A result is a claim with its evidence. results/NAME/ holds the run's config.json (without names of folders) and
metrics.jsonl, its curves, and result.json: its accuracy, on which images, and the time, the machine and the command of
the training. With --group, related runs are filed in results/GROUP/NAME/, and a README.md there compares them.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import json
import math
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from evaluate import evaluate
from tiny_imagenet import ROOT
from tiny_imagenet.cli import command, shell_command
from tiny_imagenet.config import FOLDER_NAME, TrainConfig, differences
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import folder_lock, write_atomically, write_text
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.run_dir import Description, check_ended, config_text, read_config
from tools import tables
from tools.tables import board, draw_comparison, draw_curves, read_points, results_table, summary_table, update_page

PLACES = ("config_name", "data_dir", "packed_dir", "runs_dir")  # settings that say where a run is, not how it trains


def file_result(run: Path, name: str, data_dir: str | None = None, images: Path | None = None, **remarks) -> Path:
    """Evaluates the run and writes results/NAME.

    Args:
        run: the run's folder.
        name: the result's folder in results/.
        data_dir: the dataset's folder; None: the one that the run was trained on.
        images: a file that lists the validation images to evaluate on; None: all.
        remarks: filed as they are: "machine_speed" in images/s, "made_by", a command, and "remark", a text.

    Returns:
        The result's folder.

    Raises:
        UserError: there is no such run, or it has not finished.
    """
    config, description = read_config(run)
    check_ended(run)
    row = evaluate(run, data_dir, images)
    del row["run"]
    row["command"] = train_command(config, description.backend)
    row |= {"n": 1, "view": view(config), "checkpoint": config.model_file.removesuffix(".keras")}
    evidence = {key: getattr(description, key) for key in ("hardware", "backend", "versions", "resumed")}
    row |= {key: value for key, value in evidence.items() if value}
    folder, curves = tables.RESULTS / name, draw_curves(read_points(run / "metrics.jsonl"), name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "metrics.jsonl", lambda path: shutil.copyfile(run / "metrics.jsonl", path))
    write_text(folder / "config.json", portable_config(config, description))
    write_atomically(folder / "curves.png", curves.savefig)
    write_text(folder / "result.json", json.dumps(row | remarks, indent=2) + "\n")  # last: it completes the result
    return folder


def view(config: TrainConfig) -> str:
    """What the model sees of an image in single-crop evaluation."""
    return "whole image, scaled" if config.scales_images else "center crop"


def portable_config(config: TrainConfig, description: Description) -> str:
    """The text of a config.json without the folders of the machine on which the run was trained."""
    settings = {name: _portable(name, value) for name, value in asdict(config).items() if name not in PLACES}
    return config_text(replace(description, config=settings))


def _portable(name: str, value):
    """A setting as it is filed: a run outside this folder, from which weights were loaded, as runs/MODEL/NAME."""
    if name != "init_from" or not value:
        return value
    path = Path(os.path.normpath(ROOT / value))
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("runs", *path.parts[-2:]))


def train_command(config: TrainConfig, backend: str = "tensorflow") -> str:
    """The shortest command that trains with these settings, apart from where."""
    return shell_command("python", *train_words(config), backend=backend)


def train_words(config: TrainConfig) -> list[str]:
    """train.py and the fewest arguments that give these settings: the nearest recipe and what differs from it."""
    changes = {name: differences(config, recipe) for name, recipe in RECIPES.items()}
    changes = {name: {k: ours for k, (ours, _) in found.items() if k not in PLACES} for name, found in changes.items()}
    recipe = min(changes, key=lambda name: len(changes[name]))
    words = ["train.py"] if recipe == "default" else ["train.py", "--recipe", recipe]
    for name, value in changes[recipe].items():
        flag, value = name.replace("_", "-"), _portable(name, value)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def write_tables(group: str | None = None) -> None:
    """Updates the tables of README.md and docs/results.md and the curves in results/; says what is left out.

    Args:
        group: update this group's README.md and curves.png too.

    Raises:
        UserError: nothing is filed in that group, or a page lacks the marks.
    """
    for folder in {tables.RESULTS, tables.RESULTS / (group or "")}:
        tables.read_results(folder, print_skipped=True)
    if group:
        table = results_table(group)
        if not table:
            raise UserError(f"--group {group}: no result of Tiny ImageNet is filed there; name the runs to file")
        text = f"# {group}\n\n{table.replace(f'(../results/{group}/', '(')}\n![curves](curves.png)\n"
        write_text(tables.RESULTS / group / "README.md", text)
        if f"end of {group}" in tables.PAGE.read_text(encoding="utf-8"):
            update_page(tables.PAGE, group, table, f"tools/report.py --group {group}")
    for folder in {tables.RESULTS, tables.RESULTS / (group or "")}:
        if results := tables.read_results(folder):
            figure = draw_comparison(results, by_minutes=folder == tables.RESULTS)
            write_atomically(folder / "curves.png", figure.savefig)
    update_page(tables.README, "summary", summary_table())
    update_page(tables.PAGE, "results", results_table())
    update_page(tables.PAGE, "board", board())


@dataclass(frozen=True)
class Arguments:
    """Files runs as results and updates the tables of README.md and docs/results.md."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """The runs' folders, for example runs/vgg_16/default. None: only the tables are updated."""
    name: str | None = None
    """The result's name. Default: the model's, which is the folder above the run's; with GROUP, the run's own."""
    group: str | None = None
    """File the runs in results/GROUP/, apart from the main table, and compare all results there."""
    replace: bool = False
    """Replace a result of the same name."""
    data_dir: str | None = None
    """The dataset's folder. Default: the one that the run was trained on."""
    images: Path | None = None
    """A text file with the names of the validation images to evaluate on, one per line. Default: all of them."""
    made_by: str | None = None
    """The command that the tables show. Default: that of train.py."""
    remark: str | None = None
    """What the tables add to the time of training, for example "alongside other runs"."""
    machine_speed: float | None = None
    """The images/s of `python -m benchmarks.machine_speed` right before or after the run."""


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    group = arguments.group
    folders = [run.resolve() if group else run.resolve().parent for run in arguments.runs]
    names = [arguments.name or folder.name for folder in folders]
    for flag, name in [("--group", group)] * bool(group) + [("--name", name) for name in names]:
        if not re.fullmatch(FOLDER_NAME, name):
            raise UserError(f"{flag} is {name!r}; use only letters, digits, '_', '-' and '.'")
    if arguments.machine_speed is not None and not 0 < arguments.machine_speed < math.inf:
        raise UserError(f"--machine-speed is {arguments.machine_speed}; it must be greater than 0")
    if len(set(names)) < len(names):
        raise UserError(f"several runs would get one name ({', '.join(names)}); file them one by one with --name")
    places = [f"{group}/{name}" if group else name for name in names]
    for place in places:
        if (tables.RESULTS / place / "result.json").exists() and not arguments.replace:
            raise UserError(f"results/{place} already exists; use another --name, or --replace")
    remarks = {name: getattr(arguments, name) for name in ("machine_speed", "made_by", "remark")}
    remarks = {name: value for name, value in remarks.items() if value is not None}
    for run, place in zip(arguments.runs, places, strict=True):
        print(file_result(run, place, arguments.data_dir, arguments.images, **remarks))
    tables.RESULTS.mkdir(exist_ok=True)
    with folder_lock(tables.RESULTS):  # the tables show all results, and another process may be filing one
        write_tables(group)


if __name__ == "__main__":
    main()
