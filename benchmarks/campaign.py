"""Runs that belong together: one after the other each is trained, then filed by report.py below results/<campaign>/.

    python -m benchmarks.campaign losses                   # the losses on one small net, on two cores
    KERAS_BACKEND=jax python -m benchmarks.campaign gpu    # VGG-16 as in 2017, its ablations, VGG-16 of today
    python -m benchmarks.campaign gpu --rehearse           # the same way from start to end on the drawn set, in minutes

A campaign that was stopped goes on where it was, by the same command: what is filed is left alone, and what is not yet
trained to its end is resumed. (If train.py will not resume it, because the code has changed since, remove that run's
folder below runs/<campaign>/, and it begins anew.) A rehearsal always begins anew.
"""

from startup import ROOT, UserError, command, command_line, require_gpu

import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from config import RECIPES, TrainConfig

SVM_2017 = "--loss svm --optimizer sgd --batch-size 64 --lr 0.001 --weight-decay 0 --reg 1.0 --reg-last-only"
SMALL = "--recipe resnet_18_one_hour --width 0.5 --num-epochs 3 --picture-sizes 32 --crop-size 32"
EACH_EPOCH = "--summary-interval 65 --eval-interval 195 --checkpoint-interval 195"
RARE = "--checkpoint-interval 2000 --histogram-interval 20000"  # a GPU trains VGG-16 faster than they are written
EACH_EPOCH_OF_64 = "--summary-interval 521 --eval-interval 1563 --checkpoint-interval 1563"

# name -> the arguments of train.py; {runs} is the folder of the campaign's runs of the same model
CAMPAIGNS = {
    "losses": {
        "softmax_ce": f"{SMALL} {EACH_EPOCH} --loss softmax_ce",
        "softmax_smooth_ce": f"{SMALL} {EACH_EPOCH}",
        "svm": f"{SMALL} {EACH_EPOCH} --loss svm",
        "svm_2017": f"{SMALL} {EACH_EPOCH_OF_64} {SVM_2017}",
        "svm_2017_frozen": f"{SMALL} {EACH_EPOCH_OF_64} {SVM_2017} --init-from {{runs}}/softmax_ce --freeze-features",
    },
    "gpu": {
        "vgg_16": f"--recipe default {RARE}",
        "vgg_16_no_flip": f"--recipe default {RARE} --no-random-flip",
        "vgg_16_no_crop": f"--recipe default {RARE} --no-random-crop",
        "vgg_16_no_saturation": f"--recipe default {RARE} --saturation 1 1",
        "vgg_16_hue": f"--recipe default {RARE} --hue 0.05",
        "vgg_16_smoothed": f"--recipe default {RARE} --loss softmax_smooth_ce",
        "vgg_16_svm": f"--recipe vgg_16_svm {RARE}",
        "vgg_16_svm_frozen": f"--recipe default {RARE} {SVM_2017} --dropout-keep-prob 1 "
        "--init-from {runs}/vgg_16 --freeze-features",
        "vgg_16_bn": "--recipe vgg_16_bn",
        "resnet_18": "--recipe resnet_18_two_hours",
    },
}
REHEARSAL = (
    *("--data-dir", "sample-data", "--width", "0.05", "--num-epochs", "1", "--batch-size", "32"),
    *("--eval-interval", "50", "--summary-interval", "25"),
)


def run_script(*words: str) -> None:
    """Runs a script of the root to its end. Ctrl-C and SIGTERM are left to the script, which saves first.

    Raises:
        UserError: it did not end well; what it said stands above.
    """
    with subprocess.Popen([sys.executable, *words], cwd=ROOT) as process:
        handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        code = process.wait()  # the terminal gives Ctrl-C to both
    for number, handler in before.items():
        signal.signal(number, handler)
    if code:
        raise UserError(f"{words[0]} ended with {code}; what it said stands above; the same command goes on from here")


def run(campaign: str, only: tuple[str, ...] = (), rehearse: bool = False, data_dir: str | None = None) -> None:
    """Trains and files what is not there yet.

    Args:
        campaign: a name in CAMPAIGNS.
        only: names of its runs; none: all.
        rehearse: on the drawn set, narrow and short, filed apart under results/rehearsal_<campaign>/.
        data_dir: the dataset's folder; None: the one of the settings.

    Raises:
        UserError: a run did not end well or has another name; there is no GPU for the campaign that needs one.
    """
    unknown = sorted(set(only) - set(CAMPAIGNS[campaign]))
    if unknown:
        raise UserError(f"--only {unknown[0]}: the campaign {campaign} has {', '.join(CAMPAIGNS[campaign])}")
    if campaign == "gpu" and not rehearse:
        require_gpu()
    group = f"rehearsal_{campaign}" if rehearse else campaign
    if rehearse:
        for folder in (ROOT / "results" / group, ROOT / TrainConfig.runs_dir / group):
            shutil.rmtree(folder, ignore_errors=True)
    place = ["--data-dir", data_dir] if data_dir else []
    for name, arguments in CAMPAIGNS[campaign].items():
        if only and name not in only:
            continue
        if (ROOT / "results" / group / name / "result.json").exists():
            print(f"{name}: filed already")
            continue
        recipe = RECIPES[arguments.split()[1]]
        runs = Path(TrainConfig.runs_dir) / group / recipe.model_name
        words = [*arguments.format(runs=runs).split(), *(REHEARSAL if rehearse else ()), *place]
        words += ["--runs-dir", str(runs.parent), "--config-name", name]
        again = ["--resume"] if (ROOT / runs / name / "config.json").exists() else []
        print(f"{name}: python train.py {' '.join(words + again)}", flush=True)
        run_script("train.py", *words, *again)
        run_script("report.py", str(runs / name), "--group", group, "--name", name)


@dataclass(frozen=True)
class Arguments:
    """Trains runs that belong together, and files them as results."""

    campaign: Annotated[Literal[tuple(CAMPAIGNS)], tyro.conf.Positional]
    """Which ones."""
    only: tuple[str, ...] = ()
    """The names of those runs of it that are to be trained; by default all."""
    rehearse: bool = False
    """Go the same way on the drawn set, in narrow nets of a few steps, as a test of everything but the accuracy."""
    data_dir: str | None = None
    """The dataset's folder, instead of that of the settings."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    run(arguments.campaign, arguments.only, arguments.rehearse, arguments.data_dir)


if __name__ == "__main__":
    main()
