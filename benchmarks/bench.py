"""What this repository gains over what one would use instead: side by side, in one run, as ratios.

    make bench        # needs Tiny ImageNet; 20 to 25 minutes on two cores

Each contender is a process of its own (worker.py); their rounds are taken in turn. Prints a table, and writes
results/benchmarks.json and results/benchmarks.png. Under KERAS_BACKEND=jax, and on a machine with a GPU, the same
command adds the rows of that backend and that machine.
"""

from startup import ROOT, UserError, command, command_line, gpu_names, keras, shell_line

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.worker import MARK
from checkpoints import hardware, versions
from config import DEFAULT_DATA_DIR, RECIPES
from dataset import open_dataset
from files import write_atomically
from report import update_readme

RESULTS = ROOT / "results" / "benchmarks.json"
CHART = RESULTS.with_suffix(".png")
BEGIN, END = "<!-- benchmarks: written by make bench -->\n", "<!-- end of benchmarks -->"  # in the README


@dataclass(frozen=True)
class Group:
    """Contenders whose rounds are taken in turn: label -> MODULE.CONTENDER of this folder, and what a round gives."""

    contenders: dict[str, str]
    unit: str
    rounds: int = 3
    fresh: bool = False
    """Whether each round has a new process."""


GROUPS = {
    "batches": Group(
        {
            "ours": "pipelines.ours",
            "ours, crop and flip": "pipelines.ours_crop_and_flip",
            "tf.data, picture by picture (2017's way)": "pipelines.per_picture",
            "Keras directory, cache, random layers": "pipelines.keras_layers",
            "PyTorch DataLoader, a worker a core, Pillow": "torch_peers.loader",
        },
        "pictures/s",
        rounds=3,
    ),
    "first start": Group(
        {
            "ours": "pipelines.our_first_start",
            "each JPEG decoded once": "pipelines.decode_all",
            "Keras directory, cache(file), first pass": "pipelines.keras_first_pass",
            "Keras directory, cache(file), first batch": "pipelines.keras_first_batch",
        },
        "s",
        rounds=2,
    ),
    "second start": Group(
        {"ours": "pipelines.our_second_start", "Keras directory, cache(file)": "pipelines.keras_second_start"},
        "s",
        rounds=3,
        fresh=True,
    ),
    "VGG-16 training, Keras": Group(  # two groups, for all of them at once would take 30 GB of memory
        {
            "ours: train.py --recipe vgg_16_fast": "wholes.vgg_16_fast",
            "its bare step": "steps.ours_fast",
            "the bare step of 2017's settings": "steps.ours_default",
            "Keras port, float32, 64": "steps.keras_port",
        },
        "pictures/s",
        rounds=2,
    ),
    "VGG-16 training, PyTorch": Group(
        {
            "ours: train.py --recipe vgg_16_fast": "wholes.vgg_16_fast",
            "float32, 64": "torch_peers.float32_64",
            "bfloat16, 64": "torch_peers.bfloat16_64",
            "bfloat16, 256": "torch_peers.bfloat16_256",
        },
        "pictures/s",
        rounds=2,
    ),
    "VGG-16, evaluation with histograms and saves": Group({"ours": "wholes.vgg_16_evaluation"}, "s", rounds=1),
    "evaluation of 200 pictures": Group(
        {
            "ours": "looking.ten_crops_in_batches",
            "ours, precision auto": "looking.ten_crops_in_batches_auto",
            "a picture a call (2017's way)": "looking.ten_crops_one_by_one",
            "a picture a call, precision auto": "looking.ten_crops_one_by_one_auto",
        },
        "s",
        rounds=1,
    ),
    "evaluation of 200 pictures, width 1/8": Group(
        {
            "ours": "looking.ten_crops_in_batches_narrow",
            "a picture a call (2017's way)": "looking.ten_crops_one_by_one_narrow",
        },
        "s",
    ),
    "64 kernel pictures of conv2_2": Group(
        {
            "ours": "looking.kernels_at_once",
            "a gradient each (2017's way)": "looking.kernels_one_by_one",
            "the same, its 64 functions built beforehand": "looking.kernels_one_by_one_built",
        },
        "s",
    ),
    "memory of its own, single_layer_nn": Group({"ours": "wholes.single_layer_memory"}, "GB", rounds=1),
    "the machine": Group({"memory copy": "ceilings.memory_copy"}, "bytes/s"),
    "the machine's arithmetic": Group(
        {"float32 product": "ceilings.product_float32", "bfloat16 product": "ceilings.product_bfloat16"}, "FLOP/s"
    ),
}


@dataclass(frozen=True)
class Claim:
    """A line of the table: how many times better the first is than the best of its peers, or its own figure."""

    what: str
    group: str
    ours: str
    peers: tuple[str, ...]
    """Empty: the figure of `ours` itself counts."""
    goal: float
    at_most: bool = False


def _claims() -> list[Claim]:
    batches = [label for label in GROUPS["batches"].contenders if not label.startswith("ours")]
    torch = tuple(label for label in GROUPS["VGG-16 training, PyTorch"].contenders if "ours" not in label)
    train = "ours: train.py --recipe vgg_16_fast"
    one_by_one, built = ("a picture a call (2017's way)",), "the same, its 64 functions built beforehand"
    first_pass, second = ("Keras directory, cache(file), first pass",), ("Keras directory, cache(file)",)
    whole, narrow = "evaluation of 200 pictures", "evaluation of 200 pictures, width 1/8"
    bfloat16, kernels = ("a picture a call, precision auto",), "64 kernel pictures of conv2_2"
    return [
        Claim("batches against the best peer", "batches", "ours", tuple(batches), 6),
        Claim("batches, pictures/s", "batches", "ours", (), 30_000),
        Claim("batches, crop and flip alone, pictures/s", "batches", "ours, crop and flip", (), 60_000),
        Claim("first start against decoding once", "first start", "ours", ("each JPEG decoded once",), 1 / 1.2),
        Claim("first start against Keras's first pass", "first start", "ours", first_pass, 1),
        Claim("second start, s", "second start", "ours", (), 1, at_most=True),
        Claim("second start against Keras's cache", "second start", "ours", second, 1),
        Claim("train.py against its bare step", "VGG-16 training, Keras", train, ("its bare step",), 0.97),
        Claim("vgg_16_fast against a Keras port", "VGG-16 training, Keras", train, ("Keras port, float32, 64",), 1.8),
        Claim("vgg_16_fast against the best PyTorch", "VGG-16 training, PyTorch", train, torch, 1.1),
        Claim("evaluation, centre and 10 crops, float32", whole, "ours", one_by_one, 4),
        Claim("the same, precision auto", whole, "ours, precision auto", bfloat16, 4),
        Claim("the same, precision auto against float32", whole, "ours, precision auto", one_by_one, 4),
        Claim("the same, width 1/8, float32", narrow, "ours", one_by_one, 4),
        Claim("64 kernel pictures", kernels, "ours", ("a gradient each (2017's way)",), 10),
        Claim("64 kernel pictures, peer built beforehand", kernels, "ours", (built,), 1),
        Claim("memory, single_layer_nn, GB", "memory of its own, single_layer_nn", "ours", (), 2, at_most=True),
    ]


# Measuring

SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # several live at once


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, data_dir: Path, scratch: str) -> None:
        module, name = contender.split(".")
        command = [sys.executable, "-m", "benchmarks.worker", module, name, str(data_dir)]
        self._name, self._errors = contender, tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": scratch} | SHARED_GPU,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer()

    def _answer(self):
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self._errors.seek(0)
        reason = (self._errors.read().strip().splitlines() or ["it ended"])[-1]
        raise UserError(f"the benchmark {self._name} failed: {reason}")

    def timed_round(self) -> float:
        """Runs one round and returns what it gives."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def measure(group: Group, data_dir: Path, rounds: int) -> dict[str, list[float]]:
    """The results of each contender, a number a round; the rounds are taken in turn."""
    found = {label: [] for label in group.contenders}
    os.sync()  # so that what was written before is not written to the disk meanwhile
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())  # workers are killed: they do not clean up
        workers = {}
        for _ in range(rounds):
            for label, contender in group.contenders.items():
                if label not in workers:
                    workers[label] = Worker(contender, data_dir, scratch)
                    stack.callback(workers[label].close)
                found[label].append(workers[label].timed_round())
                if group.fresh:
                    workers.pop(label).close()
    return found


# Judging


def ratios(claim: Claim, found: dict[str, list[float]], less_is_better: bool) -> tuple[list[float], str]:
    """Ours against the peer that is best by its median, round by round; and that peer. Without peers: our figures."""
    ours = found[claim.ours]
    if not claim.peers:
        return ours, ""
    best = (min if less_is_better else max)(claim.peers, key=lambda peer: statistics.median(found[peer]))
    return [b / a if less_is_better else a / b for a, b in zip(ours, found[best], strict=True)], best


def judge(results: dict[str, dict]) -> list[dict]:
    """The table's lines: what was claimed, of what was measured."""
    rows = []
    for claim in _claims():
        if claim.group not in results:
            continue
        group = results[claim.group]
        values, peer = ratios(claim, group["rounds"], group["unit"] == "s")
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


def shown(row: dict) -> tuple[str, str]:
    """What was measured, and the goal, of a row."""
    goal, ratio = row["goal"], "peer" in row
    sign = "at most" if row["at_most"] else "at least"
    limit = f"{goal:,.0f}" if goal >= 10 else f"{goal:.2f}".rstrip("0").rstrip(".")
    return _number(row["value"]) + " x" * ratio, f"{sign} {limit}" + " x" * ratio


def table(rows: list[dict]) -> str:
    """The rows for people."""
    lines = [f"{'':<44}{'measured':>10}  {'goal':<18}against"]
    for row in rows:
        number, goal = shown(row)
        missed = "" if row["reached"] else "MISSED  "
        lines.append(f"{row['what']:<44}{number:>10}  {goal:<18}{missed}{row.get('peer', '')}")
    return "\n".join(lines)


def readme_table(everything: dict) -> str:
    """The rows of every backend and machine side by side as Markdown; below, how each was measured."""
    tables = {name: {row["what"]: row for row in found["table"]} for name, found in everything.items()}
    lines = [f"| what | goal | {' | '.join(tables)} | against |", f"|---|---|{'---|' * len(tables)}---|"]
    for what in dict.fromkeys(what for table in tables.values() for what in table):
        rows = [table.get(what) for table in tables.values()]
        peers = dict.fromkeys(row.get("peer", "") for row in rows if row)
        goal = next(shown(row)[1] for row in rows if row)
        lines.append(f"| {what} | {goal} | {' | '.join(map(_cell, rows))} | {'; '.join(peers)} |")
    return "\n".join([*lines, "", *(_how_measured(name, found) for name, found in everything.items())]) + "\n"


def _cell(row: dict | None) -> str:
    """The median, bold where the goal is reached, and the range over the rounds where there were several."""
    if row is None:
        return ""
    number, _ = shown(row)
    several = f" ({_number(row['lowest'])} to {_number(row['highest'])})" * (row["lowest"] < row["highest"])
    return (f"**{number}**" if row["reached"] else f"{number}, missed") + several


def _how_measured(name: str, found: dict) -> str:
    """By which command, when, in how many rounds; how near the machine's limits."""
    groups = found["measured"].values()
    dates = " and ".join(sorted({group["date"] for group in groups}))
    counts = {len(numbers) for group in groups for numbers in group["rounds"].values()}
    line = f"- {name}: `{found['command']}`; {len(groups)} of its {len(GROUPS)} groups, measured on {dates} in "
    line += f"{sum(group['seconds'] for group in groups) / 60:.0f} min; {min(counts)} to {max(counts)} rounds a group."
    shares = "; ".join(f"{label} {part:.0%}" for label, part in found["shares_of_the_ceilings"].items())
    return line + f" Shares of the machine's limits: {shares}." * bool(shares)


CROP, PICTURE = 56 * 56 * 3, 64 * 64 * 3
PICTURE_BYTES = {  # that must be read or written for one picture: gathered, cropped and flipped, its colours changed
    "ours": 2 * PICTURE + 2 * CROP + 2 * CROP,
    "ours, crop and flip": 2 * PICTURE + 2 * CROP,
}
_SIDES, _CHANNELS = (56, 56, 28, 28, 14, 14, 14, 7, 7, 7), (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512)
_DENSE = (7 * 7 * 512, 4096, 2048, 200)
VGG_16_FLOP = (
    3
    * 2
    * (  # forward, and twice as much backward; a multiplication with its addition is two
        sum(side**2 * 9 * a * b for side, (a, b) in zip(_SIDES, pairwise(_CHANNELS), strict=True))
        + sum(a * b for a, b in pairwise(_DENSE))
    )
)


def shares(results: dict[str, dict]) -> dict[str, float]:
    """How near the limits of the machine: shares of the memory's and of the arithmetic's measured ceilings."""
    medians = {
        group: {label: statistics.median(numbers) for label, numbers in result["rounds"].items()}
        for group, result in results.items()
    }
    found = {}
    if {"batches", "the machine"} <= results.keys():
        copied = medians["the machine"]["memory copy"]
        for label in ("ours", "ours, crop and flip"):
            found[f"batches, {label}: of memory copy"] = medians["batches"][label] * PICTURE_BYTES[label] / copied
    if {"VGG-16 training, Keras", "the machine's arithmetic"} <= results.keys():
        steps, products = medians["VGG-16 training, Keras"], medians["the machine's arithmetic"]
        recipes = (("its bare step", "bfloat16 product"), ("the bare step of 2017's settings", "float32 product"))
        for label, product in recipes:
            found[f"VGG-16 step, {label}: of the {product}"] = steps[label] * VGG_16_FLOP / products[product]
    if {"VGG-16 training, Keras", "VGG-16, evaluation with histograms and saves"} <= results.keys():
        recipe, speed = RECIPES["vgg_16_fast"], medians["VGG-16 training, Keras"]["ours: train.py --recipe vgg_16_fast"]
        interval = recipe.eval_interval * recipe.batch_size / speed
        seconds = medians["VGG-16, evaluation with histograms and saves"]["ours"]
        found["vgg_16_fast, evaluation, histograms and saves: of the whole time"] = seconds / (seconds + interval)
    return found


def draw(results: dict[str, dict]) -> None:
    """A bar chart of each comparison."""
    groups = [name for name, result in results.items() if len(result["rounds"]) > 1 and "machine" not in name]
    if not groups:
        return
    figure = Figure(figsize=(9, 0.9 + sum(0.34 * len(results[name]["rounds"]) + 0.75 for name in groups)), dpi=110)
    figure.set_layout_engine("constrained")
    heights = [len(results[name]["rounds"]) + 1 for name in groups]
    for axes, name in zip(
        figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False).flat, groups, strict=True
    ):
        found = results[name]["rounds"]
        medians = [statistics.median(numbers) for numbers in found.values()]
        colours = ["#0072b2" if "ours" in label or "bare step" in label else "#999999" for label in found]
        bars = axes.barh(list(found), medians, color=colours)
        axes.bar_label(bars, [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in medians], padding=4)
        better = "shorter is better" if results[name]["unit"] == "s" else "longer is better"
        axes.set_title(f"{name}, {results[name]['unit']} ({better})", loc="left", fontsize=10)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(left=False)
    figure.suptitle(machine(), x=0.01, ha="left", fontsize=9)
    figure.savefig(CHART if keras.backend.backend() == "tensorflow" else CHART.with_stem("benchmarks_jax"))


# The command


@dataclass(frozen=True)
class Arguments:
    """Measures this repository against what one would use instead."""

    data_dir: Path = Path(DEFAULT_DATA_DIR)
    """The dataset's folder; the figures that are reported are for Tiny ImageNet."""
    only: tuple[str, ...] = ()
    """Some of the groups only, by name; the others' results stay as they are."""
    rounds: int | None = None
    """Rounds of each group, instead of its own number: where one takes long, one may have to do."""


def machine() -> str:
    """The backend and the machine: results of others are kept beside these."""
    return f"{keras.backend.backend()}, {hardware()}"


def write(results: dict[str, dict]) -> list[dict]:
    """Puts today's results in the place of this machine's earlier ones of the same groups; the table's rows."""
    everything = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    before = everything.get(machine(), {}).get("measured", {})
    results = {name: result | {"date": time.strftime("%Y-%m-%d")} for name, result in results.items()}
    measured = {name: (before | results)[name] for name in GROUPS if name in before | results}
    everything[machine()] = {
        "command": shell_line("make", "bench"),
        "versions": versions() | {"torch": metadata.version("torch"), "pillow": metadata.version("pillow")},
        "shares_of_the_ceilings": shares(measured),
        "measured": measured,
    }
    for found in everything.values():  # of other machines too, in today's words
        found["table"] = judge(found["measured"])
    write_atomically(RESULTS, lambda path: path.write_text(json.dumps(everything, indent=1) + "\n"))
    draw(measured)
    update_readme(readme_table(everything), BEGIN, END)
    return everything[machine()]["table"]


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    if unknown := set(arguments.only) - set(GROUPS):
        raise UserError(f"--only {', '.join(sorted(unknown))}: there is no such group; there are: {'; '.join(GROUPS)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}; it must be 1 or more")
    open_dataset(arguments.data_dir)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}: nothing else should run meanwhile")
    # on a GPU the peers that only the processor runs tell nothing
    names = [name for name in arguments.only or GROUPS if not (gpu_names() and "PyTorch" in name)]
    for name in names:
        start = time.monotonic()
        found = measure(GROUPS[name], arguments.data_dir.resolve(), arguments.rounds or GROUPS[name].rounds)
        for label, numbers in found.items():
            print(
                f"{name}: {label}: {', '.join(f'{number:,.4g}' for number in numbers)} {GROUPS[name].unit}", flush=True
            )
        seconds = round(time.monotonic() - start)
        rows = write({name: {"unit": GROUPS[name].unit, "seconds": seconds, "rounds": found}})
    print(f"\n{table(rows)}\nwritten: {RESULTS}, its chart, and the README's table")


if __name__ == "__main__":
    main()
