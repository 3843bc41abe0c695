"""Files a run as a result: `python report.py runs/vgg_16/default` fills results/ and the README's tables.

A result is a claim with its evidence. `results/<name>/` holds the run's config.json (without folder names) and
metrics.jsonl, the curves as a picture, and result.json: accuracy, on which pictures, in what time, on which machine, by
which command. With --group, runs that belong together are filed below results/<group>/, whose README.md compares them.
Beside every table, curves.png has the validation curves of all its runs.
"""

from startup import ROOT, UserError, command, command_line, shell_line

import json
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from checkpoints import check_ended, read_config
from config import NAME, RECIPES, TrainConfig, differences
from evaluate import evaluate
from files import locked, write_atomically
from metrics import CALIBRATION_BINS

RESULTS = ROOT / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by report.py -->\n", "<!-- end of results -->"
BOARD_BEGIN, BOARD_END = "<!-- board: written by report.py -->\n", "<!-- end of board -->"
LEVELS = (30, 40, 45, 50, 52, 55, 58)  # per cent top-1, of which the board gives the time
PLACES = ("config_name", "data_dir", "runs_dir")  # settings that say where, not how


def file_result(
    run: Path, name: str, data_dir: str | None = None, pictures: Path | None = None, remarks: dict | None = None
) -> Path:
    """Evaluates the run and writes results/<name>.

    Args:
        run: the run's folder.
        name: the result's folder below results/.
        data_dir: the dataset's folder; by default the one that the run was trained on.
        pictures: a file that names the validation pictures to evaluate on; None: all.
        remarks: what is filed as it is: "machine_speed", in pictures/s, "made_by", a command, and "remark", a text.

    Returns:
        The result's folder.

    Raises:
        UserError: there is no such run, or it has not come to its end.
    """
    config, description = read_config(run)
    check_ended(run)
    row = evaluate(run, data_dir, pictures)
    del row["run"]
    evidence = {name: description[name] for name in ("hardware", "backend", "versions") if name in description}
    kept = config.model_file.removesuffix(".keras")
    command = train_command(config, description.get("backend", "tensorflow"))
    evidence = {"command": command, "n": 1, "view": view(config), "weights_kept": kept} | evidence
    evidence |= remarks or {}
    points = read_points(run / "metrics.jsonl")
    settings = without_places(description)
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    curves = draw_curves(points, name)
    files = {
        "metrics.jsonl": lambda path: shutil.copyfile(run / "metrics.jsonl", path),
        "config.json": lambda path: path.write_text(settings, encoding="utf-8"),
        "curves.png": curves.savefig,
        "result.json": lambda path: path.write_text(json.dumps(row | evidence, indent=2) + "\n"),  # last: it counts
    }
    for file, write in files.items():
        write_atomically(folder / file, write)
    return folder


def view(config: TrainConfig) -> str:
    """What the model sees of a picture in an evaluation by one view."""
    return "whole picture, scaled" if config.resizes else "centre crop"


def without_places(description: dict) -> str:
    """What a config.json says, as its text, without the folders of the machine where the run was trained."""
    settings = {name: _anywhere(name, value) for name, value in description["config"].items() if name not in PLACES}
    return json.dumps(description | {"config": settings}, indent=2, ensure_ascii=False) + "\n"


def _anywhere(name: str, value):
    """A setting as it may be filed: the run of the first weights, if outside this folder, as runs/MODEL/NAME."""
    if name != "init_from" or not value:
        return value
    path = Path(os.path.normpath(ROOT / value))
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path("runs", *path.parts[-2:]))


def read_points(path: Path) -> list[dict]:
    """The points of a run's curves.

    Raises:
        UserError: the file is not there, or was not written by train.py.
    """
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = [line for line in lines if line["split"] != "end"]
        for point in points:
            _ = point["split"], point["step"] + point["data_loss"] + point["top_1"] + point["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}); put the run's own file there") from None
    return points


def train_command(config: TrainConfig, backend: str = "tensorflow") -> str:
    """The shortest command that trains with these settings, but for where."""
    return shell_line("python", *train_words(config), backend=backend)


def train_words(config: TrainConfig) -> list[str]:
    """train.py and the fewest arguments for these settings, but for where: the nearest recipe, and what differs."""
    recipe = min(RECIPES, key=lambda name: len(_changes(config, name)))
    words = ["train.py"] if recipe == "default" else ["train.py", "--recipe", recipe]
    for name, value in _changes(config, recipe).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def _changes(config: TrainConfig, recipe: str) -> dict:
    changes = differences(config, RECIPES[recipe]).items()
    return {name: _anywhere(name, ours) for name, (ours, _) in changes if name not in PLACES}


def draw_curves(points: list[dict], title: str) -> Figure:
    """The points of metrics.jsonl as curves: loss and top-1 accuracy by step, training and validation."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for split, colour in (("train", "#0072b2"), ("validation", "#d55e00")):  # Okabe and Ito: told apart by everybody
        chosen = [point for point in points if point["split"] == split]
        steps, marker = [point["step"] for point in chosen], "." if len(chosen) < 100 else ""
        left.plot(steps, [point["data_loss"] for point in chosen], color=colour, label=split, marker=marker)
        right.plot(steps, [100 * point["top_1"] for point in chosen], color=colour, label=split, marker=marker)
    for axes, heading in ((left, "loss, without L2"), (right, "top-1 accuracy, %")):
        axes.set(title=heading, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def _read_result(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); file the run again") from None


def _read_results(folder: Path) -> list[tuple[Path, dict]]:
    """The results' folders and what their result.json says, the most accurate last."""
    results = [(path.parent, _read_result(path)) for path in folder.glob("*/result.json")]
    return sorted(results, key=lambda result: result[1]["center_top_1"])


def _percents(row: dict, crops: str) -> str:
    return f"{100 * row[f'{crops}_top_1']:.1f} / {100 * row[f'{crops}_top_5']:.1f} %"


def results_table(group: str | None = None) -> str:
    """The results as a Markdown table, from the least to the most accurate, each beside the command that made it.

    Args:
        group: the folder below results/ whose results to compare, also by calibration error; None: results/ itself.
    """
    results = _read_results(RESULTS / (group or ""))
    if not results:
        return ""
    remarks = [_remark(row) for _, row in results]
    alike = len(set(remarks)) == 1  # then the text below the table says it once
    columns = ["run", "top-1 / top-5, one view", "10 crops"] + ["calibration error"] * bool(group)
    lines = [columns + ["training", "made by"], ["---"] * (len(columns) + 2)]
    for (path, row), remark in zip(results, remarks, strict=True):
        link = f"[{path.name}](results/{path.relative_to(RESULTS)})" + f" ({remark})" * bool(remark and not alike)
        cells = [link, _percents(row, "center"), _percents(row, "ten_crops")]
        if group:
            cells.append(f"{100 * row['center_ece']:.1f} %")
        time = f"{_minutes(row['seconds'] / 60)} min, {row['hardware']}" + f", {row.get('remark')}" * ("remark" in row)
        lines.append([*cells, time, f"`{row.get('made_by', row['command'])}`"])
    counts = " or ".join(f"{count:,}" for count in sorted({row["pictures"] for _, row in results}))
    seen, kept = (results[0][1]["view"], results[0][1]["weights_kept"]) if alike else ("centre crop", "best")
    text = f"On {counts} validation pictures; one run each. {'The' if alike else 'If not said otherwise, the'} view is "
    text += f"the {seen}, and the weights are the run's {kept}"
    text += " by the same pictures, which flatters them a little." if kept == "best" else "."
    if group:
        text += f" Calibration error: expected, over {CALIBRATION_BINS} intervals of equal width of the probability of "
        text += "the likeliest class, by softmax of the logits, which an SVM does not mean as probabilities."
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{text}\n"


def _remark(row: dict) -> str:
    """What sets a result apart from one by the centre crop with the best weights."""
    words = [row["view"]] * (row["view"] != "centre crop")
    return ", ".join(words + ["last weights"] * (row["weights_kept"] == "last"))


def minutes_to(points: list[dict], level: float) -> float | None:
    """Running time, in minutes, until the first evaluation with a top-1 accuracy of `level` per cent; None: never."""
    shares = ((p["seconds"], round(p["top_1"], 6)) for p in points if p["split"] == "validation")  # from float32
    reached = (seconds for seconds, share in shares if share >= level / 100)
    seconds = next(reached, None)
    return None if seconds is None else seconds / 60


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 9.95 else f"{minutes:.1f}"


def board() -> str:
    """Time to accuracy as a Markdown table, the most accurate last.

    Of each result by a fixed schedule, whose last weights count, that came to the first of the levels.
    """
    levels = " | ".join(f"{level} %" for level in LEVELS)
    lines = [
        f"| minutes to a top-1 of | {levels} | at the end | machine | its VGG-16 steps |",
        f"|---{'|---' * len(LEVELS)}|---|---|---|",
    ]
    for path, row in _read_results(RESULTS):
        minutes = [minutes_to(read_points(path / "metrics.jsonl"), level) for level in LEVELS]
        if minutes[0] is None or row["weights_kept"] != "last":
            continue
        cells = ["" if value is None else _minutes(value) for value in minutes]
        end = f"{100 * row['center_top_1']:.1f} % in {_minutes(row['seconds'] / 60)}"
        versions = "".join(f", {name} {version}" for name, version in row.get("versions", {}).items())
        machine = row["hardware"] + versions
        speed = f"{row['machine_speed']:,.0f} pictures/s" if "machine_speed" in row else ""
        lines.append(f"| [{path.name}](results/{path.name}) | {' | '.join(cells)} | {end} | {machine} | {speed} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def marks(group: str) -> tuple[str, str]:
    """The lines of the main README between which a group's table goes; it need not have them."""
    return f"<!-- {group}: written by report.py --group {group} -->\n", f"<!-- end of {group} -->"


def draw_comparison(results: list[tuple[Path, dict]], by_minutes: bool) -> Figure:
    """The validation accuracy of several results, by the minutes of training or by its epochs."""
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for number, (path, row) in enumerate(reversed(results)):  # the legend begins with the best
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
        steps = settings["data"]["train"] / settings["config"]["batch_size"]  # an epoch
        points = [point for point in read_points(path / "metrics.jsonl") if point["split"] == "validation"]
        when = [point["seconds"] / 60 if by_minutes else point["step"] / steps for point in points]
        shares, line = [100 * point["top_1"] for point in points], "-" if number < 10 else "--"  # ten colours
        axes.plot(when, shares, line, marker=".", label=f"{path.name}: {row['hardware'].rpartition(', ')[2]}")
    axes.set(title="top-1 accuracy on validation pictures, %", xlabel="minutes of training" if by_minutes else "epochs")
    if by_minutes:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def file_tables(group: str | None) -> None:
    """Writes the main README's tables, results/curves.png, and a group's README.md and curves.png anew.

    Raises:
        UserError: nothing is filed in that group; the README lacks the marks.
    """
    if group:
        table = results_table(group)
        if not table:
            raise UserError(f"--group {group}: no result is filed there; name the runs to file")
        page = f"# {group}\n\n{table.replace(f'(results/{group}/', '(')}\n![curves](curves.png)\n"
        write_atomically(RESULTS / group / "README.md", lambda path: path.write_text(page, encoding="utf-8"))
        begin, end = marks(group)
        if begin in README.read_text(encoding="utf-8"):
            update_readme(table, begin, end)
    for folder in {RESULTS, RESULTS / (group or "")}:
        if results := _read_results(folder):
            write_atomically(folder / "curves.png", draw_comparison(results, by_minutes=folder == RESULTS).savefig)
    update_readme(results_table(), BEGIN, END)
    update_readme(board(), BOARD_BEGIN, BOARD_END)


def update_readme(table: str, begin: str, end: str) -> None:
    """Puts a table between its two marks in the README."""
    text = README.read_text(encoding="utf-8")
    if not 0 <= text.find(begin) < text.find(end):
        raise UserError(f"{README} lacks the marks {begin.strip()!r} and {end!r} between which the table goes")
    before, after = text.partition(begin)[0], text.partition(end)[2]
    new = before + begin + table + end + after
    write_atomically(README, lambda path: path.write_text(new, encoding="utf-8"))


@dataclass(frozen=True)
class Arguments:
    """Files runs as results, and writes the README's tables anew."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """The runs' folders, for example runs/vgg_16/default; none: only the tables are written."""
    name: str | None = None
    """The result's name; by default that of the folder above the run's, the model's; with GROUP the run's own."""
    group: str | None = None
    """File them below results/GROUP/, apart from the main table, and compare all that is there."""
    replace: bool = False
    """Put the run in the place of the result that has this name."""
    data_dir: str | None = None
    """The dataset's folder; by default the one that the run was trained on."""
    pictures: Path | None = None
    """A text file with the names of the validation pictures to evaluate on, one a line; by default all of them."""
    made_by: str | None = None
    """The command that the tables are to show, where it is not train.py's own."""
    remark: str | None = None
    """What the tables are to say beside the minutes of training, for example "beside three other runs"."""
    machine_speed: float | None = None
    """Pictures/s, as `python -m benchmarks.machine_speed` gives them right before or after a run: filed with it."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    folders = [run.resolve() if arguments.group else run.resolve().parent for run in arguments.runs]
    names = [arguments.name or folder.name for folder in folders]
    for flag, name in (*(("--name", name) for name in names), ("--group", arguments.group or "none")):
        if not re.fullmatch(NAME, name):
            raise UserError(f"{flag} is {name!r}; use letters, digits, '_', '-' and '.' alone")
    if arguments.machine_speed is not None and not 0 < arguments.machine_speed < math.inf:
        raise UserError(f"--machine-speed is {arguments.machine_speed}; it must be a number above 0")
    if len(set(names)) < len(names):
        raise UserError(
            f"several runs would be filed under one name ({', '.join(names)}); file them one by one, --name"
        )
    places = [f"{arguments.group}/{name}" if arguments.group else name for name in names]
    for place in places:
        if (RESULTS / place / "result.json").exists() and not arguments.replace:
            raise UserError(f"results/{place} is there; file this run under another --name, or in its place: --replace")
    remarks = {name: getattr(arguments, name) for name in ("machine_speed", "made_by", "remark")}
    remarks = {name: value for name, value in remarks.items() if value is not None}
    for run, place in zip(arguments.runs, places, strict=True):
        print(file_result(run, place, arguments.data_dir, arguments.pictures, remarks))
    RESULTS.mkdir(exist_ok=True)
    with locked(RESULTS):  # the tables are of all results: another process may be filing too
        file_tables(arguments.group)


if __name__ == "__main__":
    main()
