"""Tables and charts of the filed results, for README.md, docs/results.md and results/."""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metrics import CALIBRATION_BINS
from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import write_text
from tiny_imagenet.models import model_names
from tiny_imagenet.plots import plain_text
from tiny_imagenet.readers import parse_json, read_file, read_json
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.run_dir import Point, read_config

RESULTS = ROOT / "results"
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "results.md"
COLORS = {"train": "#0072b2", "validation": "#d55e00"}  # Okabe and Ito's, which color-blind people can tell apart
TINY_IMAGENET = (200, 100_000)  # classes and training images; the tables show no other data
LEVELS = (30, 40, 45, 50, 52, 55, 58)  # top-1 in percent; the board shows the time to each


@dataclass(frozen=True)
class Row:
    """What the tables show of a result.json; accuracies and calibration errors are 0 to 1."""

    single_crop_top_1: float
    single_crop_top_5: float
    ten_crop_top_1: float
    ten_crop_top_5: float
    images: int
    parameters: int
    seconds: float
    """Of training."""
    hardware: str
    command: str
    view: str
    checkpoint: str
    calibration_error: float = math.nan
    """NaN for a result that is older than this measure."""
    versions: dict[str, str] = field(default_factory=dict)
    made_by: str = ""
    remark: str = ""
    machine_speed: float | None = None
    """Images/s."""


@dataclass(frozen=True)
class Result:
    """A filed result."""

    folder: Path
    row: Row
    points: list[Point]
    steps_per_epoch: float


def read_points(path: Path) -> list[Point]:
    """The points of a run's curves; raises UserError if the file is missing or train.py did not write it."""
    points = [parse_json(line, Point, path) for line in read_file(path).splitlines()]
    points = [point for point in points if point.split != "end"]
    if any(point.data_loss is None or point.top_1 is None for point in points):
        raise UserError(f"{path} is damaged: a point lacks its loss or its top-1; restore the original file")
    return points


def read_results(folder: Path, print_skipped: bool = False) -> list[Result]:
    """The results of Tiny ImageNet in a folder, in order of accuracy, the highest last; others are left out."""
    results = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            row, (config, description) = read_json(path, Row), read_config(path.parent)
            if (len(description.class_ids), description.data.train) != TINY_IMAGENET:
                counts = f"{len(description.class_ids)} classes and {description.data.train:,} training images"
                raise UserError(f"{path.parent} was trained on {counts}, not on Tiny ImageNet")
            points = read_points(path.with_name("metrics.jsonl"))
            results.append(Result(path.parent, row, points, description.data.train / config.batch_size))
        except UserError as error:
            if print_skipped:
                print(f"left out of the tables: {error}")
    return sorted(results, key=lambda result: result.row.single_crop_top_1)


def _escape(text: str) -> str:
    """A text as a cell of a Markdown table shows it, whatever it holds."""
    return re.sub(r"([\\`\[\]<>|!])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{text}`" if _escape(text) == text else _escape(text)  # in code, nothing can be escaped


def _link(folder: Path, root: str = "../") -> str:
    """A link to a result from a page in docs/, from which the path to the repository's root is `root`."""
    return f"[{_escape(folder.name)}]({root}results/{quote(str(folder.relative_to(RESULTS)))})"


def _short(hardware: str) -> str:
    """The GPU, or the number of cores and the processor."""
    parts = re.sub(r"\(R\)| Processor", "", hardware).split(", ")
    return ", ".join(parts[2:] or parts)


def summary_table() -> str:
    """README.md's table: the results that are named after a recipe or a model, from the most accurate to the least."""
    lines = ["| model or recipe | parameters | top-1, single-crop / 10-crop | training |\n|---|---|---|---|\n"]
    for result in reversed(read_results(RESULTS)):
        row, name = result.row, result.folder.name
        if name in RECIPES or name in model_names():
            accuracies, time = _percents(row.single_crop_top_1, row.ten_crop_top_1), _time(row, _short(row.hardware))
            lines.append(f"| {_link(result.folder, '')} | {row.parameters:,} | {accuracies} | {time} |\n")
    return "".join(lines) if len(lines) > 1 else ""


def results_table(group: str | None = None) -> str:
    """The results as a Markdown table, from the least to the most accurate, each with its command.

    Args:
        group: compare the results of this folder in results/, and their calibration; None: those in results/ itself.
    """
    results = read_results(RESULTS / (group or ""))
    if not results:
        return ""
    views, checkpoints = ({getattr(result.row, key) for result in results} for key in ("view", "checkpoint"))
    same = len(views) == len(checkpoints) == 1  # then only the caption says it
    usual = (*views, *checkpoints) if same else ("center crop", "best")
    columns = ["run", "single-crop top-1 / top-5", "10-crop"] + ["calibration error"] * bool(group)
    lines = [columns + ["training", "command"], ["---"] * (len(columns) + 2)]
    for result in results:
        row = result.row
        cells = [f"{_link(result.folder)} {_escape(_notes(row, *usual))}".rstrip()]
        cells += [_percents(row.single_crop_top_1, row.single_crop_top_5)]
        cells += [_percents(row.ten_crop_top_1, row.ten_crop_top_5)]
        cells += [f"{100 * row.calibration_error:.1f} %"] if group else []
        lines.append([*cells, _time(row, row.hardware), _code(row.made_by or row.command)])
    counts = " or ".join(f"{count:,}" for count in sorted({result.row.images for result in results}))
    chosen = "last one" if usual[1] == "last" else "one that was best on these images, which flatters it slightly"
    text = f"One run each, evaluated on {counts} validation images. {'The' if same else 'Unless noted, the'} "
    text += f"single crop is the {_escape(usual[0])}, and the checkpoint is the {chosen}."
    if group:
        text += " Calibration error is the expected calibration error of the softmax probabilities, over "
        text += f"{CALIBRATION_BINS} bins of equal width; an SVM is not trained to give probabilities."
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{text}\n"


def _percents(*accuracies: float) -> str:
    return " / ".join(f"{100 * accuracy:.1f}" for accuracy in accuracies) + " %"


def _time(row: Row, hardware: str) -> str:
    """How long a result's training took, and on what, as a cell of a table."""
    return _escape(", ".join([f"{_minutes(row.seconds / 60)} min", hardware, *[row.remark] * bool(row.remark)]))


def _notes(row: Row, view: str, checkpoint: str) -> str:
    """How a result's view and checkpoint differ from the usual ones, in parentheses."""
    notes = [row.view] * (row.view != view)
    notes += [f"{row.checkpoint} checkpoint"] * (row.checkpoint != checkpoint)
    return f"({', '.join(notes)})" * bool(notes)


def minutes_to(points: list[Point], level: float) -> float | None:
    """Minutes of training until the first evaluation with a top-1 of `level` percent or more; None: never."""
    evaluations = ((p.seconds, round(p.top_1, 6)) for p in points if p.split == "validation")  # from float32
    return next((seconds / 60 for seconds, top_1 in evaluations if top_1 >= level / 100), None)


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 9.95 else f"{minutes:.1f}"


def board() -> str:
    """Time to accuracy as a Markdown table, of the results that reached the first level with their last checkpoint."""
    levels = " | ".join(f"{level} %" for level in LEVELS)
    lines = []
    for result in read_results(RESULTS):
        row, minutes = result.row, [minutes_to(result.points, level) for level in LEVELS]
        if minutes[0] is None or row.checkpoint != "last":
            continue
        cells = ["" if value is None else _minutes(value) for value in minutes]
        cells.append(f"{100 * row.single_crop_top_1:.1f} % in {_minutes(row.seconds / 60)}")
        versions = [f"{name} {version}" for name, version in row.versions.items()]
        cells.append(_escape(", ".join([row.hardware, *versions])))
        cells.append("" if row.machine_speed is None else f"{row.machine_speed:,.0f} images/s")
        lines.append(f"| {_link(result.folder)} | {' | '.join(cells)} |\n")
    heading = f"| minutes to a top-1 of | {levels} | final | machine | VGG-16 training speed |\n"
    return "".join([heading, f"|{'---|' * (len(LEVELS) + 4)}\n", *lines]) if lines else ""


def draw_curves(points: list[Point], title: str) -> Figure:
    """Loss and top-1 accuracy by step, for training and validation."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    panels = ("loss, without L2", "data_loss", 1), ("top-1 accuracy, %", "top_1", 100)
    for axes, (heading, metric, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for split, color in COLORS.items():
            chosen = [point for point in points if point.split == split]
            values, marker = [factor * getattr(point, metric) for point in chosen], "." if len(chosen) < 100 else ""
            axes.plot([point.step for point in chosen], values, color=color, label=split, marker=marker)
        axes.set(title=heading, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_comparison(results: list[Result], by_minutes: bool) -> Figure:
    """The validation accuracy of several results, by minutes of training or by epochs."""
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, result in enumerate(reversed(results)):  # the legend starts with the best
        points = [point for point in result.points if point.split == "validation"]
        x = [point.seconds / 60 if by_minutes else point.step / result.steps_per_epoch for point in points]
        top_1, style = [100 * point.top_1 for point in points], "-" if number < 10 else "--"  # there are ten colors
        axes.plot(x, top_1, style, marker=".", label=f"{result.folder.name}: {_short(result.row.hardware)}")
    axes.set(title="validation top-1 accuracy, %", xlabel="minutes of training" if by_minutes else "epochs")
    if by_minutes:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return plain_text(figure)


def update_page(page: Path, name: str, table: str, written_by: str = "tools/report.py") -> None:
    """Puts a table between a page's two marks of this name."""
    begin, end = f"<!-- {name}: written by {written_by} -->\n", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    if not 0 <= text.find(begin) < text.find(end):
        raise UserError(f"{page} lacks the marks {begin.strip()!r} and {end!r}; put them around the table")
    write_text(page, text.partition(begin)[0] + begin + table + end + text.partition(end)[2])
