"""Tables and charts of the filed results, for the README and results/."""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from metrics import CALIBRATION_BINS
from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import read_json, write_text

RESULTS = ROOT / "results"
README = ROOT / "README.md"
COLORS = {"train": "#0072b2", "validation": "#d55e00"}  # Okabe and Ito's, which color-blind people can tell apart
LEVELS = (30, 40, 45, 50, 52, 55, 58)  # top-1 in percent; the board shows the time to each


def read_points(path: Path) -> list[dict]:
    """The points of a run's curves; raises UserError if the file is missing or train.py did not write it."""
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        points = [line for line in lines if line["split"] != "end"]
        for point in points:
            _ = point["split"], point["step"] + point["data_loss"] + point["top_1"] + point["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error!r}); restore the run's own file") from None
    return points


def read_results(folder: Path) -> list[tuple[Path, dict]]:
    """The results' folders and their result.json, in order of accuracy, the highest last."""
    results = [(path.parent, read_json(path)) for path in folder.glob("*/result.json")]
    return sorted(results, key=lambda result: result[1]["single_crop_top_1"])


def results_table(group: str | None = None) -> str:
    """The results as a Markdown table, from the least to the most accurate, each with its command.

    Args:
        group: compare the results of this folder in results/, and their calibration; None: those in results/ itself.
    """
    results = read_results(RESULTS / (group or ""))
    if not results:
        return ""
    views, checkpoints = ({row[key] for _, row in results} for key in ("view", "checkpoint"))
    same = len(views) == len(checkpoints) == 1  # then only the caption says it
    usual = (*views, *checkpoints) if same else ("center crop", "best")
    columns = ["run", "single-crop top-1 / top-5", "10-crop"] + ["calibration error"] * bool(group)
    lines = [columns + ["training", "command"], ["---"] * (len(columns) + 2)]
    for path, row in results:
        cells = [f"[{path.name}](results/{path.relative_to(RESULTS)}){_notes(row, *usual)}"]
        cells += [_percents(row, "single_crop"), _percents(row, "ten_crop")]
        cells += [f"{100 * row['calibration_error']:.1f} %"] if group else []
        time = f"{_minutes(row['seconds'] / 60)} min"
        cells.append(", ".join([time, row["hardware"], *([row["remark"]] if "remark" in row else [])]))
        lines.append([*cells, f"`{row.get('made_by', row['command'])}`"])
    counts = " or ".join(f"{count:,}" for count in sorted({row["images"] for _, row in results}))
    chosen = "last one" if usual[1] == "last" else "one that was best on these images, which flatters it slightly"
    text = f"One run each, evaluated on {counts} validation images. {'The' if same else 'Unless noted, the'} "
    text += f"single crop is the {usual[0]}, and the checkpoint is the {chosen}."
    if group:
        text += " Calibration error is the expected calibration error of the softmax probabilities, over "
        text += f"{CALIBRATION_BINS} bins of equal width; an SVM is not trained to give probabilities."
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + f"\n{text}\n"


def _percents(row: dict, crops: str) -> str:
    return f"{100 * row[f'{crops}_top_1']:.1f} / {100 * row[f'{crops}_top_5']:.1f} %"


def _notes(row: dict, view: str, checkpoint: str) -> str:
    """How a result's view and checkpoint differ from the usual ones, in parentheses."""
    notes = [row["view"]] * (row["view"] != view)
    notes += [f"{row['checkpoint']} checkpoint"] * (row["checkpoint"] != checkpoint)
    return f" ({', '.join(notes)})" * bool(notes)


def minutes_to(points: list[dict], level: float) -> float | None:
    """Minutes of training until the first evaluation with a top-1 of `level` percent or more; None: never."""
    evaluations = ((p["seconds"], round(p["top_1"], 6)) for p in points if p["split"] == "validation")  # from float32
    return next((seconds / 60 for seconds, top_1 in evaluations if top_1 >= level / 100), None)


def _minutes(minutes: float) -> str:
    return f"{minutes:.0f}" if minutes >= 9.95 else f"{minutes:.1f}"


def board() -> str:
    """Time to accuracy as a Markdown table, of the results that reached the first level with their last checkpoint."""
    levels = " | ".join(f"{level} %" for level in LEVELS)
    lines = []
    for path, row in read_results(RESULTS):
        minutes = [minutes_to(read_points(path / "metrics.jsonl"), level) for level in LEVELS]
        if minutes[0] is None or row["checkpoint"] != "last":
            continue
        cells = ["" if value is None else _minutes(value) for value in minutes]
        cells.append(f"{100 * row['single_crop_top_1']:.1f} % in {_minutes(row['seconds'] / 60)}")
        versions = [f"{name} {version}" for name, version in row.get("versions", {}).items()]
        cells.append(", ".join([row["hardware"], *versions]))
        cells.append(f"{row['machine_speed']:,.0f} images/s" if "machine_speed" in row else "")
        lines.append(f"| [{path.name}](results/{path.name}) | {' | '.join(cells)} |\n")
    heading = f"| minutes to a top-1 of | {levels} | final | machine | VGG-16 training speed |\n"
    return "".join([heading, f"|{'---|' * (len(LEVELS) + 4)}\n", *lines]) if lines else ""


def draw_curves(points: list[dict], title: str) -> Figure:
    """Loss and top-1 accuracy by step, for training and validation."""
    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    panels = ("loss, without L2", "data_loss", 1), ("top-1 accuracy, %", "top_1", 100)
    for axes, (heading, metric, factor) in zip(figure.subplots(1, 2), panels, strict=True):
        for split, color in COLORS.items():
            chosen = [point for point in points if point["split"] == split]
            values, marker = [factor * point[metric] for point in chosen], "." if len(chosen) < 100 else ""
            axes.plot([point["step"] for point in chosen], values, color=color, label=split, marker=marker)
        axes.set(title=heading, xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.suptitle(title)
    return figure


def draw_comparison(results: list[tuple[Path, dict]], by_minutes: bool) -> Figure:
    """The validation accuracy of several results, by minutes of training or by epochs."""
    figure = Figure(figsize=(9, 4.5), dpi=110, layout="constrained")
    axes = figure.subplots()
    for number, (path, row) in enumerate(reversed(results)):  # the legend starts with the best
        description = read_json(path / "config.json")
        steps_per_epoch = description["data"]["train"] / description["config"]["batch_size"]
        points = [point for point in read_points(path / "metrics.jsonl") if point["split"] == "validation"]
        x = [point["seconds"] / 60 if by_minutes else point["step"] / steps_per_epoch for point in points]
        top_1, style = [100 * point["top_1"] for point in points], "-" if number < 10 else "--"  # there are ten colors
        axes.plot(x, top_1, style, marker=".", label=f"{path.name}: {row['hardware'].rpartition(', ')[2]}")
    axes.set(title="validation top-1 accuracy, %", xlabel="minutes of training" if by_minutes else "epochs")
    if by_minutes:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def update_readme(name: str, table: str, written_by: str = "tools/report.py") -> None:
    """Puts a table between the README's two marks of this name."""
    begin, end = f"<!-- {name}: written by {written_by} -->\n", f"<!-- end of {name} -->"
    text = README.read_text(encoding="utf-8")
    if not 0 <= text.find(begin) < text.find(end):
        raise UserError(f"{README} lacks the marks {begin.strip()!r} and {end!r}; put them around the table")
    write_text(README, text.partition(begin)[0] + begin + table + end + text.partition(end)[2])
