"""What TensorBoard is given, read back from its files, and that the figures are what they are called."""

from startup import UserError, keras, tf

import json
from dataclasses import asdict, replace
from functools import cache

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data
from tensorboard.util.tensor_util import make_ndarray

import checkpoints
from config import TrainConfig
from dataset import open_dataset
from summaries import GRID, Distributions, Log, l2_penalties, layer_graph
from train import train


@pytest.fixture(scope="module")
def config(sample_dir, tmp_path_factory) -> TrainConfig:
    """20 steps, one rate throughout: a run of two evaluations cannot cut it."""
    config = TrainConfig("single_layer_nn", data_dir=str(sample_dir), runs_dir=str(tmp_path_factory.mktemp("runs")))
    return replace(config, width=0.02, batch_size=20, num_epochs=2, eval_interval=10, lr=0.001, saturation=(1.0, 1.0))


@pytest.fixture(scope="module")
def every_step(config):
    """The folder of a run with a point of the curves at each step."""
    return train(replace(config, config_name="every_step", summary_interval=1, histogram_interval=4))


@pytest.fixture(scope="module")
def every_fourth(config):
    """The folder of the same run with a point at each fourth step, which the evaluation at step 10 is not."""
    return train(replace(config, config_name="every_fourth", summary_interval=4))


@cache
def events(folder, split) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard" / split), size_guidance={"tensors": 0}).Reload()


def tags(folder, split, plugin) -> set[str]:
    accumulator = events(folder, split)
    every = accumulator.Tags()["tensors"]
    return {tag for tag in every if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == plugin}


def series(folder, split, tag) -> dict[int, float]:
    """Step -> value."""
    return {event.step: make_ndarray(event.tensor_proto).item() for event in events(folder, split).Tensors(tag)}


def texts(folder, tag) -> list[str]:
    tensors = [make_ndarray(event.tensor_proto) for event in events(folder, "train").Tensors(tag)]
    return [tensor.item().decode() for tensor in tensors]


def points(folder, split) -> list[dict]:
    """Of metrics.jsonl."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["split"] == split]


# What there is


def test_training_and_validation_are_in_the_same_charts(every_fourth):
    both = {"data_loss", "top_1", "top_5", "seconds"}
    assert tags(every_fourth, "validation", "scalars") == both
    layers = {"l2/fc1", "l2/fc2"}
    assert tags(every_fourth, "train", "scalars") == both | layers | {"l2", "learning_rate", "images_per_second"}


def test_training_points_are_at_each_interval_whenever_it_is_evaluated(every_fourth):
    assert list(series(every_fourth, "train", "top_1")) == [4, 8, 12, 16, 20]
    assert list(series(every_fourth, "validation", "top_1")) == [10, 20]


def test_metrics_jsonl_says_the_same_as_the_charts(every_fourth):
    for split in ("train", "validation"):
        lines = points(every_fourth, split)
        for tag in tags(every_fourth, split, "scalars"):
            expected = {line["step"]: pytest.approx(line[tag], rel=1e-6) for line in lines}
            assert series(every_fourth, split, tag) == expected


def test_histograms_of_every_weight_and_every_layer(every_step, every_fourth):
    names = {f"weights/{layer}/{part}" for layer in ("fc1", "fc2") for part in ("kernel", "bias")}
    found = tags(every_fourth, "train", "histograms")
    assert {tag for tag in found if tag.startswith("weights/")} == names
    run = checkpoints.load_run(every_fourth)
    activations = {f"activations/{layer.name}" for layer in run.model.layers[1:]}
    assert found - names == activations
    assert len(activations) == 6  # rescale, flatten, fc1, relu1, fc2, logits
    steps = {
        folder: [e.step for e in events(folder, "train").Tensors("weights/fc1/kernel")]
        for folder in (every_step, every_fourth)
    }
    assert steps == {every_step: [4, 8, 12, 16, 20], every_fourth: [10, 20]}  # 0: at each evaluation


def test_the_sheet_of_training_pictures_and_its_labels(every_fourth, config):
    assert tags(every_fourth, "train", "images") == {"training pictures"}
    (event,) = events(every_fourth, "train").Tensors("training pictures")
    _, _, png = make_ndarray(event.tensor_proto)
    sheet = tf.io.decode_png(png).numpy()  # (H, W, 4)
    assert min(sheet.shape[:2]) > GRID * 100
    assert sheet[..., :3].std() > 20  # not empty
    (labels,) = texts(every_fourth, "training labels")
    names = labels.removeprefix("Row by row: ").split("; ")
    assert len(names) == GRID**2
    assert set(names) <= set(open_dataset(config.data_dir).class_names)


def test_the_settings_as_text_and_as_hyperparameters(every_fourth, config):
    settings = asdict(replace(config, config_name="every_fourth", summary_interval=4))
    (table,) = texts(every_fourth, "settings")
    for name, value in settings.items():
        assert f"| {name} | {value} |" in table
    metadata = events(every_fourth, "validation").SummaryMetadata(SESSION_START_INFO_TAG)
    found = parse_session_start_info_plugin_data(metadata.plugin_data.content).hparams
    assert set(found) == set(settings)
    assert found["lr"].number_value == 0.001
    assert found["random_flip"].bool_value is True
    assert found["saturation"].string_value == "(1.0, 1.0)"


def test_the_graph_has_a_node_for_each_layer(every_fourth):
    graph = tf.compat.v1.GraphDef.FromString(events(every_fourth, "train").Graph().SerializeToString())
    layers = checkpoints.load_run(every_fourth).model.layers
    assert [node.name for node in graph.node] == [layer.name for layer in layers]
    for before, node in zip(graph.node, list(graph.node)[1:], strict=False):
        assert list(node.input) == [before.name]


def test_a_graph_with_branches_and_a_layer_of_two_outputs():
    class Halves(keras.layers.Layer):
        def call(self, x):
            return x[:, :2], x[:, 2:]

        def compute_output_shape(self, shape):
            return (shape[0], 2), (shape[0], 2)

    inputs = keras.Input((4,), name="in")
    left, right = Halves(name="halves")(inputs)
    model = keras.Model(inputs, keras.layers.Add(name="sum")([left, right]))
    nodes = {node.name: node for node in layer_graph(model).node}
    assert set(nodes) == {"in", "halves", "sum"}
    assert set(nodes["sum"].input) == {"halves"}
    shapes = nodes["halves"].attr["_output_shapes"].list.shape
    assert [[dim.size for dim in shape.dim] for shape in shapes] == [[-1, 2], [-1, 2]]
    found = Distributions(model, np.arange(8.0).reshape(2, 4))(model)
    np.testing.assert_array_equal(found["activations/halves"], [[0, 1], [4, 5]])
    np.testing.assert_array_equal(found["activations/halves/1"], [[2, 3], [6, 7]])
    np.testing.assert_array_equal(found["activations/sum"], [[2, 4], [10, 12]])


# What the figures are


def test_training_figures_are_means_over_the_last_interval_across_evaluations(every_step, every_fourth):
    single = {point["step"]: point for point in points(every_step, "train")}
    assert list(single) == list(range(1, 21))
    first = 0
    for point in points(every_fourth, "train"):
        for name in ("data_loss", "top_1", "top_5"):
            mean = np.mean([single[step][name] for step in range(first + 1, point["step"] + 1)])
            assert point[name] == pytest.approx(mean, rel=1e-5), (name, point["step"])
        first = point["step"]


def test_validation_does_not_depend_on_the_intervals_of_the_logs(every_step, every_fourth):
    for one, other in zip(points(every_step, "validation"), points(every_fourth, "validation"), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}


def test_l2_is_half_the_reg_times_the_sum_of_squares_of_the_kernels(every_fourth, config):
    with np.load(every_fourth / "checkpoints" / "step_00000020" / "arrays.npz") as arrays:
        kernels = {name.split()[1]: arrays[name] for name in arrays if name.endswith(("fc1/kernel", "fc2/kernel"))}
    expected = {name.split("/")[0]: config.reg / 2 * np.sum(kernel**2) for name, kernel in kernels.items()}
    last = points(every_fourth, "train")[-1]
    assert last["l2/fc1"] == pytest.approx(expected["fc1"], rel=1e-5)
    assert last["l2/fc2"] == pytest.approx(expected["fc2"], rel=1e-5)
    assert last["l2"] == pytest.approx(sum(expected.values()), rel=1e-5)


def test_l2_of_a_model_by_hand():
    inputs = keras.Input((2,))
    layer = keras.layers.Dense(1, name="fc1", kernel_regularizer=keras.regularizers.L2(0.25))
    model = keras.Model(inputs, keras.layers.Dense(1, name="free")(layer(inputs)))
    layer.set_weights([np.array([[3.0], [4.0]]), np.array([100.0])])  # the bias does not count
    assert l2_penalties(model) == {"l2": 6.25, "l2/fc1": 6.25}
    assert l2_penalties(keras.Model(inputs, keras.layers.Dense(1)(inputs))) == {"l2": 0}


def test_the_learning_rate_and_the_speed(every_fourth, config):
    for point in points(every_fourth, "train"):
        assert point["learning_rate"] == config.lr
        assert point["images_per_second"] > 0
    seconds = [point["seconds"] for point in points(every_fourth, "train")]
    assert seconds == sorted(seconds)


def test_activations_and_weights_are_those_of_the_model():
    inputs = keras.Input((2,), name="in")
    model = keras.Model(inputs, keras.layers.ReLU(name="relu")(keras.layers.Dense(1, name="fc1")(inputs)))
    model.get_layer("fc1").set_weights([np.array([[1.0], [2.0]]), np.array([-4.0])])
    found = Distributions(model, np.array([[1.0, 1.0], [2.0, 3.0]]))(model)
    assert {name: array.ravel().tolist() for name, array in found.items()} == {
        "weights/fc1/kernel": [1, 2],
        "weights/fc1/bias": [-4],
        "activations/fc1": [-1, 4],
        "activations/relu": [0, 4],
    }


def test_a_full_disk_under_tensorboards_files_is_one_line(tmp_path, monkeypatch):
    log = Log(tmp_path)

    def fail(*_):
        raise tf.errors.ResourceExhaustedError(None, None, "{{node x}} events.v2; No space left on device\n\tmore")

    monkeypatch.setattr(tf.summary, "scalar", fail)
    with pytest.raises(UserError) as error:
        log.curves("train", 1, {"top_1": 0.5}, {})
    assert "(events.v2; No space left on device)" in str(error.value)
    log.close()


def test_the_histogram_of_a_huge_array_is_of_evenly_spaced_values(tmp_path):
    log = Log(tmp_path)
    log.histograms(1, {"huge": np.arange(2_000_000, dtype=np.float32).reshape(1000, 2000)})
    log.close()
    found = EventAccumulator(str(tmp_path / "tensorboard" / "train"), size_guidance={"tensors": 0}).Reload()
    left, right, count = make_ndarray(found.Tensors("huge")[0].tensor_proto).T
    assert count.sum() == 250_000
    np.testing.assert_allclose(count, count.mean(), rtol=1e-3)
    assert (left[0], right[-1]) == (0, 1_999_992)
