"""What a run writes about itself: metrics.jsonl, and for TensorBoard curves, histograms, pictures, graph, settings.

Works for any model without touching it. Training and validation write under the same names into two folders, so that
TensorBoard shows both in one chart.
"""

from startup import UserError, keras, tf

import json
import os
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
from keras import ops
from tensorboard.plugins.hparams import api as hparams

from config import TrainConfig
from dataset import Dataset
from distribution import WHOLE, Share
from input_pipe import train_batches

HISTOGRAM_PICTURES = 16  # whose activations are shown: VGG-16 makes 9 MB of them a picture
HISTOGRAM_VALUES = 250_000  # about as many of an array are counted, at the most twice as many
GRID = 4  # rows and columns of the sheet of training pictures


class Log:
    """Writes points of curves to metrics.jsonl and to TensorBoard, and what else TensorBoard shows.

    Args:
        folder: the run's.
        writes: if not, nothing is written: of several hosts, one writes.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self._folder = folder
        lines = folder / "metrics.jsonl" if writes else Path(os.devnull)
        self._lines = lines.open("a", buffering=1, encoding="utf-8")
        self._writers = {
            split: tf.summary.create_file_writer(str(folder / "tensorboard" / split))
            if writes
            else tf.summary.create_noop_writer()
            for split in ("train", "validation")
        }

    @contextmanager
    def _writing(self, split: str, step: int):
        """What is written inside goes to TensorBoard; errors, when the disk is full, become one line."""
        try:
            with self._writers[split].as_default(step):
                yield
        except (OSError, tf.errors.OpError) as error:
            reason = getattr(error, "message", str(error)).strip().split("\n")[0].split("}} ")[-1]
            raise UserError(f"cannot write the logs in {self._folder} ({reason}); the saved states are kept") from None

    def curves(self, split: str, step: int, values: dict[str, float], unrepeatable: dict[str, float]) -> None:
        """One point of each curve.

        Args:
            split: "train" or "validation".
            step: steps done.
            values: name -> value, a function of the run's settings alone.
            unrepeatable: the same for times and speeds, which no two runs share.
        """
        point = {"split": split, "step": step} | values | unrepeatable
        with self._writing(split, step):
            self._lines.write(json.dumps(point) + "\n")
            for name, value in (values | unrepeatable).items():
                tf.summary.scalar(name, value)

    def histograms(self, step: int, values: dict[str, np.ndarray]) -> None:
        """The distribution of each array; of a large one, of evenly spaced values.

        TensorFlow needs 240 bytes a value for it: 24 GB for VGG-16's first dense layer.
        """
        with self._writing("train", step):
            for name, array in values.items():
                values = np.ravel(array)
                tf.summary.histogram(name, values[:: max(1, values.size // HISTOGRAM_VALUES)])

    def start(self, config: TrainConfig, model: keras.Model, data: Dataset) -> None:
        """What is shown once: the settings as text and as hyperparameters, the graph, a sheet of training pictures."""
        settings = asdict(config)
        with self._writing("train", step=0):
            table = [f"| {name} | {value} |" for name, value in settings.items()]
            tf.summary.text("settings", "\n".join(["| setting | value |", "|---|---|", *table]))
            tf.summary.graph(layer_graph(model))
            tf.summary.image("training pictures", training_sheet(data, config))
            names = "; ".join(data.class_names[label] for label in first_batch(data, config)[1][: GRID**2])
            tf.summary.text("training labels", f"Row by row: {names}")  # one tag cannot be a picture and a text
        with self._writing("validation", step=0):  # its final accuracy is what runs are compared by
            hparams.hparams({name: _plain(value) for name, value in settings.items()}, trial_id=str(config.run_dir))

    def end(self, step: int, seconds: float) -> None:
        """The last line of metrics.jsonl: how long the whole run took, over all resumes, with everything it wrote."""
        self._lines.write(json.dumps({"split": "end", "step": step, "seconds": seconds}) + "\n")

    def close(self) -> None:
        """Closes the files; every point was handed to the system when it was written, so a full disk loses nothing."""
        with suppress(OSError, tf.errors.OpError):
            self._lines.close()
            for writer in self._writers.values():
                writer.close()


class Distributions:
    """All weights of a model, and all layers' outputs for a few pictures, as arrays for histograms.

    Args:
        model: any functional model, each layer of which is called once.
        pictures: (P, S, S, 3) uint8.
    """

    def __init__(self, model: keras.Model, pictures: np.ndarray) -> None:
        self._pictures = pictures
        outputs = {
            f"activations/{layer.name}" + (f"/{number}" if number else ""): output
            for layer in model.layers
            if not isinstance(layer, keras.layers.InputLayer)
            for number, output in enumerate(keras.tree.flatten(layer.output))
        }
        self._names, self._outputs = list(outputs), keras.Model(model.inputs, list(outputs.values()))

    def __call__(self, model: keras.Model) -> dict[str, np.ndarray]:
        """`weights/<path>` and `activations/<layer>` -> float32 array; a second output is `activations/<layer>/1`.

        During `fit` the model must come from `callback.model`: under JAX its variables are empty until it is asked for.
        """
        weights = {f"weights/{weight.path}": ops.convert_to_numpy(weight) for weight in model.weights}
        if keras.distribution.distribution() is None:
            outputs = self._outputs.predict_on_batch(self._pictures)
        else:  # on this host's first device, whatever the number of pictures
            parts = self._outputs.trainable_variables, self._outputs.non_trainable_variables
            values = ([ops.convert_to_numpy(weight) for weight in part] for part in parts)
            outputs, _ = self._outputs.stateless_call(*values, self._pictures, training=False)
        outputs = zip(self._names, outputs, strict=True)
        return weights | {name: np.asarray(output, np.float32) for name, output in outputs}


def _plain(value):
    return value if isinstance(value, bool | int | float | str) else str(value)


def l2_penalties(model: keras.Model) -> dict[str, float]:
    """The penalty that each layer adds to the loss, and their sum: `l2/<layer>` and `l2`; (0 without any)."""
    layers = {f"l2/{layer.name}": float(sum(layer.losses)) for layer in model.layers if layer.losses}
    return {"l2": sum(layers.values())} | layers


def first_batch(data: Dataset, config: TrainConfig, share: Share = WHOLE) -> tuple[np.ndarray, np.ndarray]:
    """The pictures (B, S, S, 3) uint8 and labels (B,) int32 of the first step, or a host's share of them."""
    return next(train_batches(data.train, config, share=share).take(1).as_numpy_iterator())


def training_sheet(data: Dataset, config: TrainConfig) -> np.ndarray:
    """The first pictures that the model is trained on, augmented, with their labels: (1, H, W, 4) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pictures, labels = first_batch(data, config)
    figure = Figure(figsize=(8, 8.8), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for axes, picture, label in zip(figure.subplots(GRID, GRID).flat, pictures, labels, strict=False):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(data.class_names[label], fontsize=9, wrap=True, parse_math=False)
    for axes in figure.axes:
        axes.set_axis_off()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[np.newaxis]


def layer_graph(model: keras.Model) -> tf.compat.v1.GraphDef:
    """The model as TensorBoard draws it: one node a layer, with its output's shape; the same under every backend."""
    graph = tf.compat.v1.GraphDef()
    for operation in model.operations:
        node = graph.node.add(name=operation.name, op=type(operation).__name__)
        node.input.extend(parent.operation.name for parent in operation._inbound_nodes[0].parent_nodes)
        shapes = (tf.TensorShape(output.shape).as_proto() for output in keras.tree.flatten(operation.output))
        node.attr["_output_shapes"].list.shape.extend(shapes)
    return graph
