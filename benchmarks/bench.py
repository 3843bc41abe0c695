"""What this repository gains over what you would use instead, measured side by side as ratios.

    make bench        # needs Tiny ImageNet; 20 to 25 minutes on two cores

Each contender runs in its own process (worker.py), and the rounds of a group are interleaved. The command prints a
table, and writes results/benchmarks.json, a chart and the table in docs/benchmarks.md. With KERAS_BACKEND=jax or on
another machine, it adds a column.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import keras
import tyro

from benchmarks.groups import GROUPS, Group
from benchmarks.summary import draw, judge, markdown_table, shares, text_table
from benchmarks.worker import MARK
from tiny_imagenet import ROOT
from tiny_imagenet.cli import command, shell_command
from tiny_imagenet.config import DEFAULT_DATA_DIR
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.devices import describe_hardware, gpu_names
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import write_text
from tiny_imagenet.readers import read_json
from tiny_imagenet.run_dir import versions
from tools.tables import update_page

RESULTS = ROOT / "results" / "benchmarks.json"
PAGE = ROOT / "docs" / "benchmarks.md"
SHARED_GPU = {"TF_FORCE_GPU_ALLOW_GROWTH": "true", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # for several processes


class Worker:
    """A contender's process."""

    def __init__(self, contender: str, data_dir: Path, scratch: str) -> None:
        self._name, self._errors = contender, tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", *contender.split("."), str(data_dir)],
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
        raise UserError(f"benchmark {self._name} failed: {reason}")

    def run_round(self) -> float:
        """Runs one round and returns its result."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()


def measure(group: Group, data_dir: Path, rounds: int) -> dict[str, list[float]]:
    """The results of each contender, one number per round; the rounds are interleaved."""
    results = {label: [] for label in group.contenders}
    os.sync()  # so that the disk is not still busy with earlier writes
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())  # workers are killed, so they do not clean up
        workers = {}
        for _ in range(rounds):
            for label, contender in group.contenders.items():
                if label not in workers:
                    workers[label] = Worker(contender, data_dir, scratch)
                    stack.callback(workers[label].close)
                results[label].append(workers[label].run_round())
                if group.fresh:
                    workers.pop(label).close()
    return results


def machine() -> str:
    """The backend and the machine, which name a column of the table."""
    return f"{keras.backend.backend()}, {describe_hardware()}"


def record(measured: dict[str, dict]) -> None:
    """Puts measurements in the place of this machine's earlier ones of the same groups."""
    everything = read_json(RESULTS) if RESULTS.exists() else {}
    earlier = everything.get(machine(), {}).get("measured", {})
    measured = earlier | {name: result | {"date": time.strftime("%Y-%m-%d")} for name, result in measured.items()}
    everything[machine()] = {
        "command": shell_command("make", "bench"),
        "versions": versions() | {"torch": metadata.version("torch"), "pillow": metadata.version("pillow")},
        "measured": {name: measured[name] for name in GROUPS if name in measured},
    }
    write_tables(everything, [machine()])


def write_tables(everything: dict, drawn: Iterable[str]) -> None:
    """Writes results/benchmarks.json with the rows of the table, the page's table, and charts of some machines."""
    for found in everything.values():
        found |= {"shares": shares(found["measured"]), "table": judge(found["measured"])}
    for name in drawn:
        stem = "benchmarks_jax" if name.startswith("jax") else "benchmarks"
        draw(name, everything[name]["measured"], RESULTS.with_name(f"{stem}.png"))
    write_text(RESULTS, json.dumps(everything, indent=1) + "\n")
    update_page(PAGE, "benchmarks", markdown_table(everything), "make bench")


@dataclass(frozen=True)
class Arguments:
    """Measures this repository against what you would use instead."""

    data_dir: Path = Path(DEFAULT_DATA_DIR)
    """The dataset's folder; the reported numbers are for Tiny ImageNet."""
    only: tuple[str, ...] = ()
    """Names of the groups to measure; the results of the others stay as they are."""
    rounds: int | None = None
    """Rounds of each group, instead of its own number."""
    tables_only: bool = False
    """Measure nothing; only write the table and the charts again."""


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    if unknown := sorted(set(arguments.only) - set(GROUPS)):
        raise UserError(f"--only {unknown[0]}: there is no such group; the groups are: {'; '.join(GROUPS)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        raise UserError(f"--rounds is {arguments.rounds}; it must be 1 or more")
    if arguments.tables_only:
        everything = read_json(RESULTS)
        write_tables(everything, everything)
        return
    open_dataset(arguments.data_dir)
    print(f"{machine()}; load {os.getloadavg()[0]:.1f}: nothing else should run on this machine meanwhile")
    for name in arguments.only or GROUPS:
        if gpu_names() and "PyTorch" in name:
            continue  # these peers run on the CPU, so a comparison would say nothing
        start, group = time.monotonic(), GROUPS[name]
        rounds = measure(group, arguments.data_dir.resolve(), arguments.rounds or group.rounds)
        for label, numbers in rounds.items():
            print(f"{name}: {label}: {', '.join(f'{number:,.4g}' for number in numbers)} {group.unit}", flush=True)
        record({name: {"unit": group.unit, "seconds": round(time.monotonic() - start), "rounds": rounds}})
    print(f"\n{text_table(read_json(RESULTS)[machine()]['table'])}\nwritten: {RESULTS}, its chart, the table in {PAGE}")


if __name__ == "__main__":
    main()
