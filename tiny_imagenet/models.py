"""Finds the models, which are the files at the root that define a function of their own name `-> keras.Model`.

There is no list to maintain: a new file is a new model. Only the requested file is imported, so the model name in
someone else's run folder can only select one of these files.
"""

import ast
import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import keras
import numpy as np

from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import bfloat16_unit
from tiny_imagenet.errors import UserError


def model_names(root: Path = ROOT) -> list[str]:
    """The names of all models, sorted. The files are parsed, not run."""
    return sorted(path.stem for path in root.glob("*.py") if _defines_model(path))


def _defines_model(path: Path) -> bool:
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (SyntaxError, ValueError):  # a file that is being edited
        return False
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == path.stem]
    return any(ast.unparse(node.returns or ast.Constant(None)).strip("'\"") == "keras.Model" for node in functions)


def import_model(name: str) -> ModuleType:
    """Imports the file of the model `name`, which makes its custom layers known to Keras.

    Raises:
        UserError: there is no such model; the message lists those that exist.
    """
    if name not in (names := model_names()):
        rule = "a model is a file at the root that defines a function of the same name, annotated -> keras.Model"
        raise UserError(f"model_name is {name!r}; the models are: {', '.join(names)}; {rule}")
    return importlib.import_module(name)


def create_model(config: TrainConfig, num_classes: int) -> keras.Model:
    """Creates the model that `config` describes, with initial weights drawn from `config.seed`.

    Sets Keras's random seed and dtype policy, which are global.

    Args:
        config: model_name, precision, seed, and the settings that the model itself reads.
        num_classes: C.

    Returns:
        A model from images (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    create = getattr(import_model(config.model_name), config.model_name)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    return create(config, num_classes)


def load_matching_weights(model: keras.Model, weights: dict[str, np.ndarray]) -> list[str]:
    """Assigns the weights whose path and shape match, and leaves the others as they are.

    Args:
        model: the model to change.
        weights: another model's weights, by path.

    Returns:
        The paths of the weights that were not found.
    """
    missing = []
    for weight in model.weights:
        if weight.path in weights and weights[weight.path].shape == tuple(weight.shape):
            weight.assign(weights[weight.path])
        else:
            missing.append(weight.path)
    return missing


def freeze_features(model: keras.Model) -> list[str]:
    """Freezes all layers but the last one that has weights.

    Returns:
        The paths of the frozen weights.

    Raises:
        UserError: the model has no other layer with weights.
    """
    *features, _ = [layer for layer in model.layers if layer.weights]
    if not features:
        raise UserError(f"freeze_features: {model.name} has only one layer, so there are no features; leave it out")
    for layer in features:
        layer.trainable = False
    return [weight.path for layer in features for weight in layer.weights]


class InitialWeights(NamedTuple):
    """The weights of another run, by path, and its class ids in the order of its logits."""

    arrays: dict[str, np.ndarray]
    class_ids: Sequence[str]


def initialize_from(
    model: keras.Model, config: TrainConfig, class_ids: Sequence[str], source: InitialWeights | None
) -> None:
    """Loads the weights of the run `config.init_from` and freezes the features if `config.freeze_features` says so.

    The last layer's units are matched by class id. Those of classes that the other run does not know keep their random
    initial weights, as all of them do if the features are frozen.

    Args:
        model: a new model.
        config: the run's settings.
        class_ids: the data's, in the order of the model's logits.
        source: None: nothing is loaded, because there is no such run or because a checkpoint will be restored.

    Raises:
        UserError: the other run lacks a weight of the features or, if they are not frozen, the first kernel.
    """
    features = freeze_features(model) if config.freeze_features else []
    if source is None:
        return
    *_, last = [layer for layer in model.layers if layer.weights]
    arrays = {path: array for path, array in source.arrays.items() if not path.startswith(f"{last.name}/")}
    shared = [class_id for class_id in class_ids if class_id in source.class_ids]
    if shared and not features:
        arrays |= _match_units(last, class_ids, shared, source)
    new = load_matching_weights(model, arrays)
    first_kernel = next(weight.path for weight in model.weights if len(weight.shape) > 1)
    if missing := [path for path in features or [first_kernel] if path in new]:
        raise UserError(
            f"init_from: {config.init_from} has no {missing[0]} of the right shape; name a run of {config.model_name} "
            "with the same settings of the model, such as --width"
        )
    listed = "; new: " * bool(new) + ", ".join(new[:4]) + ", ..." * (len(new) > 4)
    print(f"loaded {len(model.weights) - len(new)} of {len(model.weights)} weights from {config.init_from}{listed}")
    if not features:
        print(f"it knows {len(shared)} of the {len(class_ids)} classes by their ids; the others are new to it")


def _match_units(
    last: keras.layers.Layer, class_ids: Sequence[str], shared: Sequence[str], source: InitialWeights
) -> dict[str, np.ndarray]:
    """The last layer's weights (..., C), by path: the other run's for the shared classes, its own for all others."""
    here, there = ([list(ids).index(class_id) for class_id in shared] for ids in (class_ids, source.class_ids))
    matched = {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in last.weights}
    for path, values in matched.items():
        values[..., here] = source.arrays[path][..., there]
    return matched


def resolve_precision(config: TrainConfig, num_classes: int) -> TrainConfig:
    """Replaces precision "auto" with a dtype policy, and prints which one and why."""
    if config.precision != "auto":
        return config
    unit, float32 = bfloat16_unit(), replace(config, precision="float32")
    if not unit:
        precision, why = "float32", "bfloat16 is not faster on this device"
    elif any(isinstance(layer, keras.layers.Conv2D) for layer in create_model(float32, num_classes).layers):
        precision, why = "mixed_bfloat16", f"convolutions are faster in bfloat16 on {unit}"
    else:
        precision, why = "float32", f"{config.model_name} has no convolutions"
    print(f"precision auto: {precision} ({why})")
    return replace(config, precision=precision)


def retrace(model: keras.Model) -> None:
    """Has the model's functions traced for the next image size.

    TensorFlow would otherwise trace the second size as "any size", which is slower, and rounds differently from the
    trace for this size with which a resumed run begins.
    """
    model.make_train_function(force=True)
    model.make_test_function(force=True)
