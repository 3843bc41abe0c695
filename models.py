"""Which models there are, found by shape: a file at the root that defines a function of its own name `-> keras.Model`.

There is no list to keep: a new file is a new model. Only the one that is asked for is imported, so the model name in
somebody else's run folder can choose among the project's own files and nothing else.
"""

from startup import ROOT, UserError, bfloat16_unit, keras

import ast
import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from config import TrainConfig


def model_names(root: Path = ROOT) -> list[str]:
    """The names of all models, sorted; the files are parsed, not run."""
    return sorted(path.stem for path in root.glob("*.py") if _defines_model(path))


def _defines_model(path: Path) -> bool:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):  # half an edit: not a model yet
        return False
    return any(
        isinstance(node, ast.FunctionDef)
        and node.name == path.stem
        and node.returns is not None
        and ast.unparse(node.returns).strip("'\"") == "keras.Model"
        for node in tree.body
    )


def import_model(name: str):
    """The module of the model `name`, imported; its custom layers are then known to Keras.

    Raises:
        UserError: no such model; the message lists those that there are.
    """
    names = model_names()
    if name not in names:
        rule = "a model is a file at the root with a function of its own name, annotated -> keras.Model"
        raise UserError(f"model_name is {name!r}; the models are: {', '.join(names)}; {rule}")
    return importlib.import_module(name)


def build_model(config: TrainConfig, num_classes: int) -> keras.Model:
    """A new model as `config` says (model_name, precision, seed, and what the model itself reads).

    Sets Keras's random seed and number format for the whole process, on which the first weights depend.

    Args:
        config: the run's settings.
        num_classes: C.

    Returns:
        A model from (B, S, S, 3) uint8, S = crop_size, to logits (B, C) float32.
    """
    make = getattr(import_model(config.model_name), config.model_name)
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    return make(config, num_classes)


def take_weights(model: keras.Model, others: dict[str, np.ndarray]) -> list[str]:
    """Gives a model the weights of another one, wherever path and shape agree.

    Args:
        model: the one that takes them.
        others: the other one's weights, by their paths.

    Returns:
        The paths of the weights that the other one has not: they are left as they are.
    """
    left = []
    for weight in model.weights:
        if weight.path in others and others[weight.path].shape == tuple(weight.shape):
            weight.assign(others[weight.path])
        else:
            left.append(weight.path)
    return left


def freeze_features(model: keras.Model) -> list[str]:
    """Lets only the model's last layer with weights be trained; the paths of the weights that stay as they are."""
    *features, _ = [layer for layer in model.layers if layer.weights]
    for layer in features:
        layer.trainable = False
    return [weight.path for layer in features for weight in layer.weights]


def with_precision(config: TrainConfig, num_classes: int) -> TrainConfig:
    """The settings with a number format in the place of "auto"; what was picked, and why, is printed."""
    if config.precision != "auto":
        return config
    unit = bfloat16_unit()
    # the layers tell, not the name: a new model needs no entry in a list
    layers = build_model(replace(config, precision="float32"), num_classes).layers if unit else []
    if any(isinstance(layer, keras.layers.Conv2D) for layer in layers):
        picked, why = "mixed_bfloat16", f"{config.model_name} has convolutions, which {unit} computes in bfloat16"
    else:
        picked = "float32"
        why = f"{config.model_name} has no convolutions" if unit else "nothing here is faster in bfloat16"
    print(f"precision auto: {picked} ({why})")
    return replace(config, precision=picked)
