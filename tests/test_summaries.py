"""What TensorBoard is given, read back from its files; and that the metrics are what they are called."""

import json
import shutil
from contextlib import closing
from dataclasses import asdict, replace
from functools import cache

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import quick_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from tensorboard.util.tensor_util import make_ndarray

from tiny_imagenet.checkpoint import read_checkpoint
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.dataset import open_dataset
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import list_checkpoints
from tiny_imagenet.summaries import SHEET, HistogramSource, Summaries, l2_penalties, layer_graph
from train import train


@pytest.fixture(scope="module")
def config(sample_dir, tmp_path_factory) -> TrainConfig:
    """20 steps at one learning rate: a run of two evaluations cannot cut it. A point after each fourth step."""
    settings = {"model_name": "single_layer_nn", "width": 0.02, "lr": 0.001, "saturation": (1.0, 1.0)}
    runs_dir = tmp_path_factory.mktemp("runs")
    return quick_config(sample_dir, runs_dir, summary_interval=4, histogram_interval=0, **settings)


@pytest.fixture(scope="module")
def run(config):
    """The folder of the run."""
    return train(config)


@pytest.fixture(scope="module")
def every_step(config):
    """The folder of the same run with a point of the curves after each step."""
    return train(replace(config, config_name="every_step", summary_interval=1, histogram_interval=4))


@cache
def events(folder, split) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard" / split), size_guidance={"tensors": 0}).Reload()


def tags(folder, split, plugin) -> set[str]:
    accumulator = events(folder, split)
    every = accumulator.Tags()["tensors"]
    return {tag for tag in every if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == plugin}


def tensors(folder, split, tag) -> dict[int, np.ndarray]:
    """Step -> what was written."""
    return {event.step: make_ndarray(event.tensor_proto) for event in events(folder, split).Tensors(tag)}


def points(folder, split) -> dict[int, dict]:
    """Step -> point of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line for line in lines if line["split"] == split}


# What there is


def test_training_and_validation_are_in_the_same_charts_and_in_metrics_jsonl(run, config):
    both = {"data_loss", "top_1", "top_5", "seconds"}
    extra = {"l2", "l2/fc1", "l2/fc2", "learning_rate", "images_per_second"}
    expected = {"train": (both | extra, [4, 8, 12, 16, 20]), "validation": (both, [10, 20])}
    for split, (names, steps) in expected.items():
        lines = points(run, split)
        assert (tags(run, split, "scalars"), list(lines)) == (names, steps)
        for tag in names:
            found = {step: value.item() for step, value in tensors(run, split, tag).items()}
            assert found == {step: pytest.approx(line[tag], rel=1e-6) for step, line in lines.items()}
        seconds = [line["seconds"] for line in lines.values()]
        assert seconds == sorted(seconds)
    assert all(line["learning_rate"] == config.lr for line in points(run, "train").values())
    assert all(line["images_per_second"] > 0 for line in points(run, "train").values())


def test_histograms_of_all_weights_and_of_all_layers(run, every_step):
    weights = {f"weights/{layer}/{part}" for layer in ("fc1", "fc2") for part in ("kernel", "bias")}
    activations = {f"activations/{name}" for name in ("rescale", "flatten", "fc1", "relu1", "fc2", "logits")}
    assert tags(run, "train", "histograms") == weights | activations
    assert list(tensors(run, "train", "weights/fc1/kernel")) == [10, 20]  # at each evaluation
    assert list(tensors(every_step, "train", "weights/fc1/kernel")) == [4, 8, 12, 16, 20]


def test_the_sheet_of_training_images_and_their_labels(run, config):
    _, _, png = tensors(run, "train", "training images")[0]
    sheet = tf.io.decode_png(png).numpy()  # (H, W, 4)
    assert min(sheet.shape[:2]) > 400 and sheet[..., :3].std() > 20  # not empty
    labels = tensors(run, "train", "training labels")[0].item().decode()
    names = labels.removeprefix("Row by row: ").split("; ")
    assert len(names) == SHEET and set(names) <= set(open_dataset(config.data_dir).class_names)


def test_the_graph_and_the_settings_as_text_and_as_hyperparameters(run, config):
    graph = tf.compat.v1.GraphDef.FromString(events(run, "train").Graph().SerializeToString())
    layers = ["images", "rescale", "flatten", "fc1", "relu1", "fc2", "logits"]
    assert [(node.name, *node.input) for node in graph.node] == [("images",), *zip(layers[1:], layers, strict=False)]
    table = tensors(run, "train", "settings")[0].item().decode()
    assert all(f"| {name} | {value} |" in table for name, value in asdict(config).items())
    metadata = events(run, "validation").SummaryMetadata(SESSION_START_INFO_TAG)
    found = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert set(found) == set(asdict(config))
    assert (found["lr"].number_value, found["random_flip"].bool_value) == (0.001, True)
    assert found["saturation"].string_value == "(1.0, 1.0)"


def test_the_graph_and_the_histograms_of_a_model_with_branches_and_a_layer_with_two_outputs():
    class Halves(keras.layers.Layer):
        def call(self, x):
            return x[:, :1], x[:, 1:]

        def compute_output_shape(self, shape):
            return (shape[0], 1), (shape[0], 1)

    inputs = keras.Input((2,), name="in")
    left, right = Halves(name="halves")(inputs)
    outputs = keras.layers.Add(name="sum")([keras.layers.Dense(1, name="fc1")(left), right])
    model = keras.Model(inputs, outputs)
    model.get_layer("fc1").set_weights([np.array([[2.0]]), np.array([-4.0])])
    nodes = {node.name: node for node in layer_graph(model).node}
    assert set(nodes) == {"in", "halves", "fc1", "sum"}
    assert set(nodes["sum"].input) == {"halves", "fc1"}
    shapes = nodes["halves"].attr["_output_shapes"].list.shape
    assert [[dim.size for dim in shape.dim] for shape in shapes] == [[-1, 1], [-1, 1]]
    found = HistogramSource(model, np.array([[1.0, 10.0], [3.0, 30.0]])).arrays(model)
    assert {name: array.ravel().tolist() for name, array in found.items()} == {
        "weights/fc1/kernel": [2],
        "weights/fc1/bias": [-4],
        "activations/halves": [1, 3],
        "activations/halves/1": [10, 30],
        "activations/fc1": [-2, 2],
        "activations/sum": [8, 32],
    }


# What the numbers are


def test_training_metrics_are_means_over_the_last_interval_and_validation_does_not_depend_on_it(run, every_step):
    single = points(every_step, "train")
    assert list(single) == list(range(1, 21))
    for step, point in points(run, "train").items():  # 12: across the evaluation at step 10
        for name in ("data_loss", "top_1", "top_5"):
            mean = np.mean([single[earlier][name] for earlier in range(step - 3, step + 1)])
            assert point[name] == pytest.approx(mean, rel=1e-5), (name, step)
    for one, other in zip(points(run, "validation").values(), points(every_step, "validation").values(), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_l2_is_half_of_reg_times_the_sum_of_squares_of_the_kernels(run, config):
    arrays, _, _ = read_checkpoint(list_checkpoints(run)[-1])
    by_path = {name.split()[1]: array for name, array in arrays.items()}
    last = points(run, "train")[20]
    expected = [config.reg / 2 * np.sum(by_path[f"{layer}/kernel"] ** 2) for layer in ("fc1", "fc2")]
    assert [last["l2/fc1"], last["l2/fc2"], last["l2"]] == pytest.approx([*expected, sum(expected)], rel=1e-5)
    assert l2_penalties(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])) == {"l2": 0}


def test_the_histogram_of_a_huge_array_counts_evenly_spaced_values(tmp_path):
    with closing(Summaries(tmp_path)) as summaries:
        summaries.histograms(1, {"huge": np.arange(2_000_000, dtype=np.float32).reshape(1000, 2000)})
    left, right, count = tensors(tmp_path, "train", "huge")[1].T
    assert count.sum() == 250_000
    np.testing.assert_allclose(count, count.mean(), rtol=1e-3)
    assert (left[0], right[-1]) == (0, 1_999_992)


def test_logs_that_are_removed_during_training_are_warned_of_once(tmp_path, capsys):
    with closing(Summaries(tmp_path)) as summaries:
        (tmp_path / "metrics.jsonl").unlink()
        shutil.rmtree(tmp_path / "tensorboard")
        for step in (1, 2):
            summaries.scalars("train", step, {"top_1": 0.5})
    warning = f"warning: logs in {tmp_path} were removed; what follows is lost until the run is resumed\n"
    assert capsys.readouterr().err == warning


def test_a_full_disk_under_tensorboards_files_is_one_line(tmp_path, monkeypatch):
    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node x}} events.v2; No space left on device\n\tmore")

    monkeypatch.setattr(tf.summary, "scalar", fail)
    with closing(Summaries(tmp_path)) as summaries, pytest.raises(UserError) as error:
        summaries.scalars("train", 1, {"top_1": 0.5})
    assert f"in {tmp_path} (events.v2; No space left on device)" in str(error.value)
