"""Runs for tests that only look at a run's best model."""

from pathlib import Path

from checkpoints import create_run, save_model
from config import TrainConfig
from dataset import open_dataset
from models import build_model


def make_run(runs_dir: Path, data_dir: Path, **settings) -> Path:
    """The folder of an ended run whose model, a very narrow VGG-16 if not named otherwise, was never trained."""
    config = TrainConfig(**{"data_dir": str(data_dir), "runs_dir": str(runs_dir), "width": 0.05} | settings)
    data = open_dataset(data_dir)
    folder = create_run(config, data)
    save_model(build_model(config, len(data.class_ids)), config)
    (folder / "metrics.jsonl").write_text('{"split": "end", "step": 0, "seconds": 0}\n')
    return folder
