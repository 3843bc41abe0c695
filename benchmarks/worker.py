"""One contender in its own process: it sets itself up, then runs a timed round for each line of standard input.

    python -m benchmarks.worker MODULE FUNCTION DATA_DIR

A contender is a function of the dataset's folder that returns a round: a function without arguments that returns a
result, usually images per second. While one contender runs a round, the others wait for input. So rounds can be
interleaved, and drift of the machine's speed affects all contenders alike.
"""

import importlib
import json
import sys
from pathlib import Path

MARK = "result: "  # how the lines begin that are answers


def answer(value) -> None:
    """Prints a line that bench.py reads."""
    print(f"{MARK}{json.dumps(value)}", flush=True)


def main() -> None:
    """Runs the command."""
    module, name, data_dir = sys.argv[1:]
    run_round = getattr(importlib.import_module(f"benchmarks.{module}"), name)(Path(data_dir))
    answer("ready")
    for _ in sys.stdin:
        answer(run_round())


if __name__ == "__main__":
    main()
