"""One contender in a process of its own: sets up, says so, then runs a timed round for each line of standard input.

    python -m benchmarks.worker MODULE CONTENDER DATA_DIR

A contender is a function of the dataset's folder that returns the round, a function without arguments that returns its
result, pictures a second as a rule. While one contender's round runs, the other processes wait for input, so rounds can
be taken in turn and the machine's drift falls on all of them alike.
"""

import importlib
import json
import sys
from pathlib import Path

MARK = "result: "  # begins the lines that are answers


def answer(value) -> None:
    """Writes one line that the benchmark reads."""
    print(f"{MARK}{json.dumps(value)}", flush=True)


def main() -> None:
    """Runs the command."""
    module, name, data_dir = sys.argv[1:]
    timed_round = getattr(importlib.import_module(f"benchmarks.{module}"), name)(Path(data_dir))
    answer("ready")
    for _ in sys.stdin:
        answer(timed_round())


if __name__ == "__main__":
    main()
