"""What a run logs: metrics.jsonl, and for TensorBoard scalars, histograms, images, the graph and the settings.

Works for any model. Training and validation use the same tags in two folders, so that TensorBoard shows both in one
chart. Only the main process writes.
"""

import json
import os
import sys
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from matplotlib.backends.backend_agg import FigureCanvasAgg
from tensorboard.plugins.hparams import api as hparams
from tqdm import tqdm

from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import is_main_process
from tiny_imagenet.errors import UserError, printable
from tiny_imagenet.plots import image_sheet

HISTOGRAM_IMAGES = 16  # whose activations are shown: VGG-16 has 9 MB of them per image
HISTOGRAM_VALUES = 250_000  # of a larger array, evenly spaced values are counted: at least so many, at most twice
SHEET = 16  # training images shown


class Summaries:
    """Writes the logs of the run in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder, writes = folder, is_main_process()
        self._file = (folder / "metrics.jsonl" if writes else Path(os.devnull)).open("a", buffering=1, encoding="utf-8")
        create = tf.summary.create_file_writer if writes else lambda _: tf.summary.create_noop_writer()
        self._writers = {split: create(str(folder / "tensorboard" / split)) for split in ("train", "validation")}
        self._paths = log_files(folder) if writes else []

    @contextmanager
    def _writing(self, split: str, step: int):
        try:
            if not all(path.exists() for path in self._paths):
                lost = f"logs in {printable(self._folder)} were removed; what follows is lost until the run is resumed"
                tqdm.write(f"warning: {lost}", sys.stderr)
                self._paths = []  # once is enough
            with self._writers[split].as_default(step):
                yield
        except (OSError, tf.errors.OpError) as error:
            text = str(getattr(error, "message", None) or getattr(error, "strerror", None) or error)
            reason = text.strip().split("\n")[0].split("}} ")[-1]
            hint = "the checkpoints are kept; correct this, then continue with --resume"
            raise UserError(f"cannot write the logs in {self._folder} ({reason}); {hint}") from None

    def scalars(self, split: str, step: int, metrics: dict[str, float]) -> None:
        """Adds one point to each curve of `split` ("train" or "validation")."""
        with self._writing(split, step):
            self._file.write(json.dumps({"split": split, "step": step} | metrics) + "\n")
            for name, value in metrics.items():
                tf.summary.scalar(name, value)

    def histograms(self, step: int, arrays: dict[str, np.ndarray]) -> None:
        """Adds the distribution of each array. (TensorFlow needs 240 bytes per value: 24 GB for VGG-16's `fc1`.)"""
        with self._writing("train", step):
            for name, array in arrays.items():
                values = np.ravel(array)
                tf.summary.histogram(name, values[:: max(1, values.size // HISTOGRAM_VALUES)])

    def start(
        self, config: TrainConfig, model: keras.Model, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]
    ) -> None:
        """Writes what is shown once: the settings, the graph, the first training images (B, S, S, 3) uint8."""
        settings, titles = asdict(config), [names[label] for label in labels[:SHEET]]
        with self._writing("train", step=0):
            rows = "".join(f"\n| {name} | {value} |" for name, value in settings.items())
            tf.summary.text("settings", f"| setting | value |\n|---|---|{rows}")
            tf.summary.graph(layer_graph(model))
            canvas = FigureCanvasAgg(image_sheet(images[:SHEET], titles, columns=4))
            canvas.draw()
            tf.summary.image("training images", np.asarray(canvas.buffer_rgba())[np.newaxis])
            tf.summary.text("training labels", f"Row by row: {'; '.join(titles)}")
        with self._writing("validation", step=0):  # whose final accuracy compares runs
            plain = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in settings.items()}
            hparams.hparams(plain, trial_id=str(config.run_dir))

    def end(self, step: int, seconds: float) -> None:
        """Writes the last line of metrics.jsonl: how long the whole run took, over all resumes."""
        with self._writing("train", step):
            self._file.write(json.dumps({"split": "end", "step": step, "seconds": seconds}) + "\n")

    def close(self) -> None:
        """Closes the files; every point was handed to the system when it was written."""
        with suppress(OSError, tf.errors.OpError):
            self._file.close()
            for writer in self._writers.values():
                writer.close()


class HistogramSource:
    """All weights of a model, and the outputs of all layers for a few images, as arrays.

    Args:
        model: any functional model, each layer of which is called once.
        images: (P, S, S, 3) uint8.
    """

    def __init__(self, model: keras.Model, images: np.ndarray) -> None:
        self._images = images
        outputs = {
            f"activations/{layer.name}" + (f"/{number}" if number else ""): output
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer)
            for number, output in enumerate(keras.tree.flatten(layer.output))
        }
        self._names, self._outputs = list(outputs), keras.Model(model.inputs, list(outputs.values()))

    def arrays(self, model: keras.Model) -> dict[str, np.ndarray]:
        """`weights/<path>` and `activations/<layer>` -> float32 array; a second output is `activations/<layer>/1`.

        During `fit` the model must come from `callback.model`: under JAX its variables are empty until it is asked for.
        """
        weights = {f"weights/{weight.path}": ops.convert_to_numpy(weight) for weight in model.weights}
        if keras.distribution.distribution() is None:
            outputs = self._outputs.predict_on_batch(self._images)
        else:  # on the first device only, whatever the number of images
            parts = self._outputs.trainable_variables, self._outputs.non_trainable_variables
            values = ([ops.convert_to_numpy(weight) for weight in part] for part in parts)
            outputs, _ = self._outputs.stateless_call(*values, [self._images], training=False)
        return weights | {name: np.asarray(out, np.float32) for name, out in zip(self._names, outputs, strict=True)}


def l2_penalties(model: keras.Model) -> dict[str, float]:
    """The penalty that each layer adds to the loss, and their sum (0 without any): `l2/<layer>` and `l2`."""
    layers = {f"l2/{layer.name}": float(sum(layer.losses)) for layer in model.layers if layer.losses}
    return {"l2": sum(layers.values())} | layers


def layer_graph(model: keras.Model) -> tf.compat.v1.GraphDef:
    """The model as TensorBoard draws it: one node per layer, with its output's shape; the same for every backend."""
    graph = tf.compat.v1.GraphDef()
    for operation in model.operations:
        node = graph.node.add(name=operation.name, op=type(operation).__name__)
        node.input.extend(parent.operation.name for parent in operation._inbound_nodes[0].parent_nodes)
        shapes = (tf.TensorShape(output.shape).as_proto() for output in keras.tree.flatten(operation.output))
        node.attr["_output_shapes"].list.shape.extend(shapes)
    return graph


def log_files(folder: Path) -> list[Path]:
    """metrics.jsonl and TensorBoard's files."""
    return [path for path in (folder / "metrics.jsonl", *folder.glob("tensorboard/*/*")) if path.is_file()]


def cut_logs(folder: Path, sizes: dict[str, int]) -> None:
    """Cuts the logs to the sizes they had at a checkpoint; warns of one that is shorter or gone."""
    logs = {str(path.relative_to(folder)): path for path in log_files(folder)}
    for name in logs.keys() - sizes.keys():
        logs[name].unlink()
    for name, size in sizes.items():
        path = logs.get(name)  # only of the run's own logs, whatever the checkpoint names
        if path and path.stat().st_size >= size:
            os.truncate(path, size)
        else:
            print(f"warning: {printable(folder / name)} lost points written before the checkpoint", file=sys.stderr)
