"""What the measurements of `make bench` say: ratios, the tables, the charts."""

import statistics
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.groups import DEFAULT_STEP, EVALUATION, FAST_STEP, GROUPS, OURS, TRAIN, Claim, claims
from tiny_imagenet.recipes import RECIPES


def ratios(claim: Claim, rounds: dict[str, list[float]], less_is_better: bool) -> tuple[list[float], str]:
    """Ours against the peer with the best median, round by round, and that peer; without peers, our own numbers."""
    ours = rounds[claim.ours]
    if not claim.peers:
        return ours, ""
    best = (min if less_is_better else max)(claim.peers, key=lambda peer: statistics.median(rounds[peer]))
    return [b / a if less_is_better else a / b for a, b in zip(ours, rounds[best], strict=True)], best


def judge(measured: dict[str, dict]) -> list[dict]:
    """The rows of the table, for the groups that were measured."""
    rows = []
    for claim in claims():
        if claim.group not in measured:
            continue
        group = measured[claim.group]
        values, peer = ratios(claim, group["rounds"], less_is_better=group["unit"] == "s")
        value = statistics.median(values)
        reached = value <= claim.goal if claim.at_most else value >= claim.goal
        rows.append(
            {"what": claim.what, "value": value, "lowest": min(values), "highest": max(values)}
            | {"goal": claim.goal, "at_most": claim.at_most, "reached": reached}
            | ({"peer": peer} if peer else {})
        )
    return rows


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def value_and_goal(row: dict) -> tuple[str, str]:
    """A row's measured value and its goal, as text."""
    goal, ratio = row["goal"], "peer" in row
    sign = "at most" if row["at_most"] else "at least"
    limit = f"{goal:,.0f}" if goal >= 10 else f"{goal:.2f}".rstrip("0").rstrip(".")
    return _number(row["value"]) + " x" * ratio, f"{sign} {limit}" + " x" * ratio


def text_table(rows: list[dict]) -> str:
    """The rows for the terminal."""
    lines = [f"{'':<40}{'measured':>10}  {'goal':<18}peer"]
    for row in rows:
        value, goal = value_and_goal(row)
        missed = "" if row["reached"] else "MISSED  "
        lines.append(f"{row['what']:<40}{value:>10}  {goal:<18}{missed}{row.get('peer', '')}")
    return "\n".join(lines)


def markdown_table(everything: dict) -> str:
    """The rows of all backends and machines side by side, as Markdown, and how they were measured."""
    tables = {name: {row["what"]: row for row in found["table"]} for name, found in everything.items()}
    lines = [f"| what | goal | {' | '.join(tables)} | against |", f"|---|---|{'---|' * len(tables)}---|"]
    for what in dict.fromkeys(what for table in tables.values() for what in table):
        rows = [table.get(what) for table in tables.values()]
        peers = dict.fromkeys(row.get("peer", "") for row in rows if row)
        goal = next(value_and_goal(row)[1] for row in rows if row)
        lines.append(f"| {what} | {goal} | {' | '.join(map(_cell, rows))} | {'; '.join(peers)} |")
    return "\n".join([*lines, "", *(_how_measured(name, found) for name, found in everything.items())]) + "\n"


def _cell(row: dict | None) -> str:
    """The median, in bold if the goal is reached, and the range of several rounds."""
    if row is None:
        return ""
    value, _ = value_and_goal(row)
    several = f" ({_number(row['lowest'])} to {_number(row['highest'])})" * (row["lowest"] < row["highest"])
    return (f"**{value}**" if row["reached"] else f"{value}, missed") + several


def _how_measured(name: str, found: dict) -> str:
    groups = found["measured"].values()
    dates = " and ".join(sorted({group["date"] for group in groups}))
    counts = {len(numbers) for group in groups for numbers in group["rounds"].values()}
    minutes = sum(group["seconds"] for group in groups) / 60
    line = f"- {name}: `{found['command']}`; {len(groups)} of {len(GROUPS)} groups, measured on {dates} in "
    line += f"{minutes:.0f} min, with {min(counts)} to {max(counts)} rounds per group."
    listed = ", ".join(f"{share:.0%} {of_what}" for of_what, share in found["shares"].items())
    return line + f" Shares: {listed}." * bool(listed)


CROP, IMAGE = 56 * 56 * 3, 64 * 64 * 3
BYTES_PER_IMAGE = {  # that must be read or written: to gather it, to crop and flip it, to change its saturation
    OURS: 2 * IMAGE + 2 * CROP + 2 * CROP,
    "ours, crop and flip": 2 * IMAGE + 2 * CROP,
}
_SIDES, _CHANNELS = (56, 56, 28, 28, 14, 14, 14, 7, 7, 7), (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512)
_DENSE = (7 * 7 * 512, 4096, 2048, 200)
_PRODUCTS = sum(side**2 * 9 * a * b for side, (a, b) in zip(_SIDES, pairwise(_CHANNELS), strict=True))
_PRODUCTS += sum(a * b for a, b in pairwise(_DENSE))
VGG_16_FLOP = 3 * 2 * _PRODUCTS  # of a training step, per image: the backward pass is two forward passes


def shares(measured: dict[str, dict]) -> dict[str, float]:
    """How near the contenders are to what the machine can do, and the evaluations' share of the training time."""
    medians = {
        group: {label: statistics.median(numbers) for label, numbers in result["rounds"].items()}
        for group, result in measured.items()
    }
    batches, steps = medians.get("batches"), medians.get("VGG-16 training, Keras")
    memory, products = medians.get("machine limits: memory"), medians.get("machine limits: arithmetic")
    found = {}
    if batches and memory:
        for label, count in BYTES_PER_IMAGE.items():
            found[f"of the speed of copying memory (batches, {label})"] = batches[label] * count / memory["memory copy"]
    if steps and products:
        for label, product in ((FAST_STEP, "bfloat16 product"), (DEFAULT_STEP, "float32 product")):
            found[f"of the speed of the {product} ({label})"] = steps[label] * VGG_16_FLOP / products[product]
    if steps and EVALUATION in medians:
        recipe, seconds = RECIPES["vgg_16_fast"], medians[EVALUATION][OURS]
        interval = recipe.eval_interval * recipe.batch_size / steps[TRAIN]
        found["of the time (evaluation, histograms and checkpoints of vgg_16_fast)"] = seconds / (seconds + interval)
    return found


def draw(machine: str, measured: dict[str, dict], path: Path) -> None:
    """Writes a bar chart of each comparison."""
    groups = [name for name, result in measured.items() if len(result["rounds"]) > 1 and "machine" not in name]
    if not groups:
        return
    heights = [len(measured[name]["rounds"]) + 1 for name in groups]
    figure = Figure(figsize=(9, 0.9 + sum(0.34 * height + 0.41 for height in heights)), dpi=110, layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False).flat
    for axes, name in zip(panels, groups, strict=True):
        medians = {label: statistics.median(numbers) for label, numbers in measured[name]["rounds"].items()}
        colors = ["#0072b2" if OURS in label or "bare step" in label else "#999999" for label in medians]
        bars = axes.barh(list(medians), list(medians.values()), color=colors)
        axes.bar_label(bars, [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in medians.values()], padding=4)
        better = "shorter is better" if measured[name]["unit"] == "s" else "longer is better"
        axes.set_title(f"{name}, {measured[name]['unit']} ({better})", loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False)
    figure.suptitle(machine, x=0.01, ha="left", fontsize=9)
    figure.savefig(path)
