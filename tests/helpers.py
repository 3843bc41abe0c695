"""What several test files share: small datasets, untrained runs, and the real scripts run as a user runs them."""

import atexit
import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.model_io import save_model
from tiny_imagenet.models import create_model
from tiny_imagenet.run_dir import create_run

# Scripts

QUICK_TO_COMPILE = "--xla_backend_optimization_level=0"  # in XLA_FLAGS: compiling is what takes JAX long here

jax_cache = tempfile.TemporaryDirectory(prefix="jax-cache-")
atexit.register(jax_cache.cleanup)
JAX_CACHE = {  # for a script that is started several times: JAX keeps everything it compiles
    "JAX_COMPILATION_CACHE_DIR": jax_cache.name,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def environment(backend: str) -> dict[str, str]:
    """The environment of a script under this backend of Keras."""
    return os.environ | {"KERAS_BACKEND": backend} | ({"XLA_FLAGS": QUICK_TO_COMPILE} if backend == "jax" else {})


def run_script(script: str, *arguments, cwd: Path, backend: str = "tensorflow", **settings):
    """Runs a script of the root in `cwd` to its end; its output is captured as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *map(str, arguments)],
        cwd=cwd,
        env=environment(backend),
        capture_output=True,
        text=True,
        timeout=300,
        **settings,
    )


def assert_one_line_error(result, *words: str) -> None:
    """The program ended with one line on stderr that holds these words, no traceback, and a non-zero exit code."""
    lines = result.stderr.strip().splitlines()
    assert result.returncode != 0
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


# Datasets

CLASS_IDS = ("n03", "n01", "n02")  # not sorted: the label is the position in wnids.txt


def encode_image(seed: int, size=(64, 64), mode: str = "RGB", form: str = "JPEG", **options) -> bytes:
    """An encoded image: smooth noise from a seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BILINEAR).convert(mode).save(out, form, **options)
    return out.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    """Writes a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def make_dataset(root: Path, class_ids=CLASS_IDS, per_class: int = 3, num_val: int = 4) -> Path:
    """A dataset in Tiny ImageNet's layout; the first training image of each class is grayscale."""
    write(root / "wnids.txt", "".join(f"{class_id}\n" for class_id in class_ids))
    write(root / "words.txt", "".join(f"{class_id}\tname of {class_id}, other name\n" for class_id in class_ids))
    for label, class_id in enumerate(class_ids):
        write(root / f"train/{class_id}/{class_id}_boxes.txt", "not read")
        for i in range(per_class):
            data = encode_image(10 * label + i, mode="RGB" if i else "L")
            write(root / f"train/{class_id}/images/{class_id}_{i}.JPEG", data)
    lines = []
    for i in range(num_val):
        write(root / f"val/images/val_{i}.JPEG", encode_image(100 + i))
        lines.append(f"val_{i}.JPEG\t{class_ids[i % len(class_ids)]}\t0\t0\t63\t63\n")
    write(root / "val/val_annotations.txt", "".join(lines))
    return root


# Runs


def quick_config(data_dir: Path, runs_dir: Path, **settings) -> TrainConfig:
    """A run of 20 steps on the sample set, evaluated after steps 10 and 20, without histograms."""
    values = {"model_name": "logistic_regression", "data_dir": str(data_dir), "runs_dir": str(runs_dir)}
    values |= {"batch_size": 20, "num_epochs": 2, "eval_interval": 10, "histogram_interval": 99}
    return TrainConfig(**values | settings)


def make_run(runs_dir: Path, data_dir: Path, **settings) -> Path:
    """The folder of a finished run whose model, a very narrow VGG-16 unless named otherwise, was never trained."""
    config = TrainConfig(**{"data_dir": str(data_dir), "runs_dir": str(runs_dir), "width": 0.05} | settings)
    data = open_dataset(data_dir)
    folder = create_run(config, data)
    save_model(create_model(config, len(data.class_ids)), config)
    (folder / "metrics.jsonl").write_text('{"split": "end", "step": 0, "seconds": 0}\n')
    return folder
