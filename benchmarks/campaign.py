"""Runs that belong together: one after the other each is trained, then filed by report.py below results/.

    python -m benchmarks.campaign losses                   # the losses on one small net, on two cores
    KERAS_BACKEND=jax python -m benchmarks.campaign gpu    # VGG-16 as in 2017, its ablations, VGG-16 of today
    python -m benchmarks.campaign gpu --rehearse           # the same way from start to end on the drawn set, in minutes

A campaign that was stopped goes on where it was, by the same command: what is trained below runs/<campaign>/ and filed
is left alone, and what is not trained to its end yet is resumed. (If train.py will not resume it, because the code has
changed since, remove that run's folder, and it begins anew.) A rehearsal always begins anew.
"""

from startup import ROOT, UserError, command, command_line, require_gpu, shell_line

import filecmp
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from checkpoints import has_ended
from config import RECIPES, TrainConfig
from report import train_words

RARE = {"checkpoint_interval": 2000, "histogram_interval": 20000}  # a GPU trains VGG-16 faster than they are written
VGG_16 = replace(RECIPES["default"], **RARE)
SMALL = replace(
    RECIPES["resnet_18_one_hour"],
    width=0.5,
    num_epochs=3,
    picture_sizes=(32,),
    crop_size=32,
    summary_interval=65,
    eval_interval=195,
    checkpoint_interval=195,
)
SVM_2017 = {
    name: getattr(RECIPES["vgg_16_svm"], name)
    for name in ("loss", "optimizer", "batch_size", "lr", "reg", "reg_last_only", "weight_decay")
}
SMALL_SVM_2017 = replace(SMALL, **SVM_2017, summary_interval=521, eval_interval=1563, checkpoint_interval=1563)

# result's place below results/ -> settings; init_from is another run of the campaign, by model and name
CAMPAIGNS: dict[str, dict[str, TrainConfig]] = {
    "losses": {
        "losses/softmax_ce": replace(SMALL, loss="softmax_ce"),
        "losses/softmax_smooth_ce": SMALL,
        "losses/svm": replace(SMALL, loss="svm"),
        "losses/svm_2017": SMALL_SVM_2017,
        "losses/svm_2017_frozen": replace(SMALL_SVM_2017, init_from="resnet_18/softmax_ce", freeze_features=True),
    },
    "gpu": {
        "vgg_16": VGG_16,
        "ablations/vgg_16_no_flip": replace(VGG_16, random_flip=False),
        "ablations/vgg_16_no_crop": replace(VGG_16, random_crop=False),
        "ablations/vgg_16_no_saturation": replace(VGG_16, saturation=(1.0, 1.0)),
        "ablations/vgg_16_hue": replace(VGG_16, hue=0.05),
        "ablations/vgg_16_smoothed": replace(VGG_16, loss="softmax_smooth_ce"),
        "ablations/vgg_16_svm": replace(RECIPES["vgg_16_svm"], **RARE),
        "ablations/vgg_16_svm_frozen": replace(
            VGG_16, **SVM_2017, dropout_keep_prob=1.0, init_from="vgg_16/vgg_16", freeze_features=True
        ),
        "vgg_16_bn": RECIPES["vgg_16_bn"],
        "resnet_18_gpu": RECIPES["resnet_18_two_hours"],
    },
}
REHEARSAL = {
    **{"data_dir": "sample-data", "width": 0.05, "num_epochs": 1, "batch_size": 32},
    **{"eval_interval": 50, "summary_interval": 25},
}


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


def run(
    campaign: str,
    only: tuple[str, ...] = (),
    rehearse: bool = False,
    data_dir: str | None = None,
    pictures: Path | None = None,
) -> None:
    """Trains and files what is not trained and filed yet.

    Args:
        campaign: a name in CAMPAIGNS.
        only: names of its runs, without groups; none: all. A run whose weights another one begins with comes first.
        rehearse: on the drawn set, narrow and short, filed apart under results/rehearsal_<campaign>/.
        data_dir: the dataset's folder; None: the one of the settings.
        pictures: a file that names the validation pictures to evaluate on; None: all.

    Raises:
        UserError: a run did not end well or has another name; there is no GPU for the campaign that needs one.
    """
    runs = {Path(place).name: config for place, config in CAMPAIGNS[campaign].items()}
    if unknown := sorted(set(only) - set(runs)):
        raise UserError(f"--only {unknown[0]}: the campaign {campaign} has {', '.join(runs)}")
    if campaign == "gpu" and not rehearse:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX here leaves the GPU's memory to train.py
        require_gpu()
    group = f"rehearsal_{campaign}" if rehearse else campaign
    if rehearse:
        for folder in (ROOT / TrainConfig.runs_dir / group, ROOT / "results" / group):
            shutil.rmtree(folder, ignore_errors=True)
    wanted = set(only or runs)
    wanted |= {Path(runs[name].init_from).name for name in wanted}
    changes = (REHEARSAL if rehearse else {}) | ({"data_dir": data_dir} if data_dir else {})
    for place, config in CAMPAIGNS[campaign].items():
        name = Path(place).name
        if name not in wanted:
            continue
        config = replace(config, runs_dir=f"{TrainConfig.runs_dir}/{group}", config_name=name, **changes)
        if config.init_from:
            config = replace(config, init_from=f"{config.runs_dir}/{config.init_from}")
        train(config)
        if rehearse:
            file(config, f"{group}/{name}", pictures)
        else:
            file(config, place, pictures, shell_line("python", "-m", "benchmarks.campaign", campaign, "--only", name))


def train(config: TrainConfig) -> None:
    """Trains a run to its end, from where it is."""
    folder = ROOT / config.run_dir
    if has_ended(folder):
        return
    words = [*train_words(config), "--runs-dir", config.runs_dir, "--config-name", config.config_name]
    words += ["--data-dir", config.data_dir] + ["--resume"] * (folder / "config.json").exists()
    print(shell_line("python", *words), flush=True)
    run_script(*words)


def file(config: TrainConfig, place: str, pictures: Path | None, made_by: str = "") -> None:
    """Files an ended run as results/<place>, in the place of another one of that name, if it is not there yet."""
    run, result = ROOT / config.run_dir, ROOT / "results" / place
    curves = run / "metrics.jsonl", result / "metrics.jsonl"
    if (result / "result.json").exists() and curves[1].exists() and filecmp.cmp(*curves, shallow=False):
        print(f"{config.run_dir} is trained and filed")
        return
    words = ["report.py", str(config.run_dir), "--name", result.name, "--replace", "--data-dir", config.data_dir]
    words += ["--pictures", str(pictures)] if pictures else []
    if "/" in place:
        words += ["--group", result.parent.name]
        words += ["--made-by", made_by] if made_by else []
    run_script(*words)


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
    pictures: Path | None = None
    """A text file with the names of the validation pictures to evaluate on, one a line; by default all of them."""


@command
def main() -> None:
    """Runs the command."""
    arguments = command_line(Arguments)
    run(arguments.campaign, arguments.only, arguments.rehearse, arguments.data_dir, arguments.pictures)


if __name__ == "__main__":
    main()
