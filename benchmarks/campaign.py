"""Related runs: trains one after the other and files each in results/ with tools/report.py.

    python -m benchmarks.campaign losses                   # the losses on one small network, on two cores
    KERAS_BACKEND=jax python -m benchmarks.campaign gpu    # VGG-16 as in 2017, its ablations, a modern VGG-16
    python -m benchmarks.campaign gpu --rehearse           # the same on the sample set, from start to end, in minutes

To continue a campaign that was stopped, use the same command: it skips runs in runs/CAMPAIGN/ that are trained and
filed, and resumes one that has not finished. A rehearsal always starts from the beginning.
"""

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly

# isort: split

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

from tiny_imagenet import ROOT
from tiny_imagenet.cli import command, shell_command
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import check_gpu
from tiny_imagenet.errors import UserError
from tiny_imagenet.recipes import RECIPES
from tiny_imagenet.run_dir import has_ended
from tools.report import train_words

RARE = {"checkpoint_interval": 2000, "histogram_interval": 20000}  # a GPU trains VGG-16 faster than a disk writes these
VGG_16 = replace(RECIPES["default"], **RARE)
SMALL = replace(
    RECIPES["resnet_18_one_hour"],
    width=0.5,
    num_epochs=3,
    image_sizes=(32,),
    crop_size=32,
    summary_interval=65,
    eval_interval=195,
    checkpoint_interval=195,
)
SVM_2017 = {
    name: getattr(RECIPES["vgg_16_svm"], name)
    for name in ("loss", "optimizer", "batch_size", "lr", "reg", "reg_last_only", "weight_decay")
}
SVM_FROZEN = RECIPES["vgg_16_svm_frozen"]
SMALL_SVM_2017 = replace(SMALL, **SVM_2017, summary_interval=521, eval_interval=1563, checkpoint_interval=1563)

# place in results/ -> settings; init_from is another run of the campaign, MODEL/NAME
CAMPAIGNS: dict[str, dict[str, TrainConfig]] = {
    "losses": {
        "losses/softmax_ce": replace(SMALL, loss="softmax_ce"),
        "losses/softmax_smooth_ce": SMALL,
        "losses/svm": replace(SMALL, loss="svm"),
        "losses/svm_2017": SMALL_SVM_2017,
        "losses/svm_2017_frozen": replace(
            SMALL_SVM_2017, lr=SVM_FROZEN.lr, init_from="resnet_18/softmax_ce", freeze_features=True
        ),
    },
    "gpu": {
        "vgg_16": VGG_16,
        "ablations/vgg_16_no_flip": replace(VGG_16, random_flip=False),
        "ablations/vgg_16_no_crop": replace(VGG_16, random_crop=False),
        "ablations/vgg_16_no_saturation": replace(VGG_16, saturation=(1.0, 1.0)),
        "ablations/vgg_16_hue": replace(VGG_16, hue=0.05),
        "ablations/vgg_16_smoothed": replace(VGG_16, loss="softmax_smooth_ce"),
        "ablations/vgg_16_svm": replace(RECIPES["vgg_16_svm"], **RARE),
        "ablations/vgg_16_svm_frozen": replace(SVM_FROZEN, **RARE, init_from="vgg_16/vgg_16"),
        "vgg_16_bn": RECIPES["vgg_16_bn"],
        "resnet_18_gpu": RECIPES["resnet_18_two_hours"],
    },
}
REHEARSAL = {
    **{"data_dir": "sample-data", "width": 0.05, "num_epochs": 1, "batch_size": 32},
    **{"eval_interval": 50, "summary_interval": 25},
}


def run_script(*words: str) -> None:
    """Runs a script or `-m` MODULE to its end. Ctrl-C and SIGTERM are left to it, because it saves first.

    Raises:
        UserError: it failed; its own message stands above.
    """
    with subprocess.Popen([sys.executable, *words], cwd=ROOT) as process:
        handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: process.terminate()}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        code = process.wait()  # the terminal sends Ctrl-C to both
    for number, handler in before.items():
        signal.signal(number, handler)
    if code:
        name = words[words[0] == "-m"]
        raise UserError(f"{name} exited with {code} (see above); run the same command again to continue")


def run(
    campaign: str,
    only: tuple[str, ...] = (),
    rehearse: bool = False,
    data_dir: str | None = None,
    images: Path | None = None,
) -> None:
    """Trains and files the runs that are not trained and filed yet.

    Args:
        campaign: a name in CAMPAIGNS.
        only: names of its runs, without groups; none: all. A run that another one starts from is trained too.
        rehearse: on the sample set, narrow and short, filed separately in results/rehearsal_CAMPAIGN/.
        data_dir: the dataset's folder; None: that of the settings.
        images: a file that lists the validation images to evaluate on; None: all.

    Raises:
        UserError: a run failed, there is none of that name, or there is no GPU for the campaign that needs one.
    """
    runs = {Path(place).name: config for place, config in CAMPAIGNS[campaign].items()}
    if unknown := sorted(set(only) - set(runs)):
        raise UserError(f"--only {unknown[0]}: there is no such run; the campaign {campaign} has {', '.join(runs)}")
    if campaign == "gpu" and not rehearse:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the GPU's memory to train.py
        check_gpu(required=True)
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
            file(config, f"{group}/{name}", images)
        else:
            file(config, place, images, shell_command("python", "-m", "benchmarks.campaign", campaign, "--only", name))


def train(config: TrainConfig) -> None:
    """Trains a run to its end, from wherever it is."""
    folder = ROOT / config.run_dir
    if has_ended(folder):
        return
    words = [*train_words(config), "--runs-dir", config.runs_dir, "--config-name", config.config_name]
    words += ["--data-dir", config.data_dir] + ["--resume"] * (folder / "config.json").exists()
    print(shell_command("python", *words), flush=True)
    run_script(*words)


def file(config: TrainConfig, place: str, images: Path | None, made_by: str = "") -> None:
    """Files a finished run as results/PLACE, in the place of any other one of that name, unless it is there already."""
    run, result = ROOT / config.run_dir, ROOT / "results" / place
    curves = run / "metrics.jsonl", result / "metrics.jsonl"
    if (result / "result.json").exists() and curves[1].exists() and filecmp.cmp(*curves, shallow=False):
        print(f"{config.run_dir} is already trained and filed")
        return
    words = ["-m", "tools.report", str(config.run_dir), "--name", result.name, "--replace"]
    words += ["--data-dir", config.data_dir, *(["--images", str(images)] if images else [])]
    if "/" in place:
        words += ["--group", result.parent.name, *(["--made-by", made_by] if made_by else [])]
    run_script(*words)


@dataclass(frozen=True)
class Arguments:
    """Trains related runs and files them as results."""

    campaign: Annotated[Literal[tuple(CAMPAIGNS)], tyro.conf.Positional]
    """Which runs."""
    only: tuple[str, ...] = ()
    """The names of the runs to train. Default: all."""
    rehearse: bool = False
    """Do the same with narrow networks and few steps on the sample set, to test everything but the accuracy."""
    data_dir: str | None = None
    """The dataset's folder, instead of that of the settings."""
    images: Path | None = None
    """A text file with the names of the validation images to evaluate on, one per line. Default: all of them."""


@command
def main() -> None:
    """Runs the command."""
    arguments = tyro.cli(Arguments)
    run(arguments.campaign, arguments.only, arguments.rehearse, arguments.data_dir, arguments.images)


if __name__ == "__main__":
    main()
