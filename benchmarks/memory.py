"""Resident memory over 20,000 steps of logistic regression, with little logging and with a lot; about five minutes.

    python -m tools.sample_data && python -m benchmarks.memory

Writes results/memory.json and results/memory.png.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import json
import time
from dataclasses import dataclass

import tyro
from matplotlib.figure import Figure

from benchmarks.wholes import resident_memory, training
from tiny_imagenet import ROOT
from tiny_imagenet.cli import command
from tiny_imagenet.devices import describe_hardware
from tiny_imagenet.run_dir import versions

STEPS = 20_000  # 400 epochs of the sample set's 3,200 images, in batches of 64
SETTINGS = ("--model-name", "logistic_regression", "--data-dir", "sample-data", "--num-epochs", "400")
CASES = {
    "one evaluation, at the end": ["--summary-interval", "20000", "--eval-interval", "20000"],
    "a point every 50 steps, histograms every 500": [
        *("--summary-interval", "50", "--histogram-interval", "500", "--eval-interval", "5000"),
    ],
}


def measure(settings: list[str]) -> list[tuple[float, float]]:
    """(seconds since the start, MB) of one run of train.py, ten times per second."""
    start, samples = time.monotonic(), []
    with training(*SETTINGS, *settings) as (process, _):
        while process.poll() is None:
            if (megabytes := resident_memory(process.pid)) is not None:
                samples.append((round(time.monotonic() - start, 2), round(megabytes, 1)))
            time.sleep(0.1)
    return samples


def growth(samples: list[tuple[float, float]]) -> float:
    """MB between the means of the third and the fourth quarter of a run, when everything has been allocated."""
    quarter = len(samples) // 4
    third, fourth = samples[2 * quarter : 3 * quarter], samples[3 * quarter : -5]  # without the very end
    return sum(mb for _, mb in fourth) / len(fourth) - sum(mb for _, mb in third) / len(third)


@dataclass(frozen=True)
class Arguments:
    """Measures the resident memory of train.py over 20,000 steps on the sample set."""


@command
def main() -> None:
    """Runs the command."""
    tyro.cli(Arguments)
    figure = Figure(figsize=(8, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    cases = {}
    for name, settings in CASES.items():
        samples = measure(settings)
        cases[name] = {"growth_mb": round(growth(samples), 1), "samples": samples[:: max(1, len(samples) // 200)]}
        label = f"{name}: {cases[name]['growth_mb']:+.1f} MB in the last quarter"
        axes.plot(*zip(*samples, strict=True), label=label)
        print(f"{label}, of {samples[-5][1]:.0f} MB")
    axes.set(title=f"train.py, {STEPS:,} steps of logistic regression", xlabel="seconds", ylabel="resident memory, MB")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(ROOT / "results" / "memory.png")
    evidence = {"command": "python -m benchmarks.memory", "n": 1, "hardware": describe_hardware()}
    evidence |= {"versions": versions(), "date": time.strftime("%Y-%m-%d"), "cases": cases}
    lines = json.dumps(evidence, indent=1).replace(",\n     ", ", ").replace("[\n     ", "[").replace("\n    ]", "]")
    (ROOT / "results" / "memory.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
