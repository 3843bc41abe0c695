"""The trained model of a run: saving it, and opening it for use."""

from dataclasses import dataclass, replace
from pathlib import Path

import keras
import numpy as np

from tiny_imagenet import ROOT
from tiny_imagenet.config import TrainConfig
from tiny_imagenet.devices import is_main_process, on_one_device
from tiny_imagenet.errors import UserError
from tiny_imagenet.file_utils import write_atomically
from tiny_imagenet.layers import FusedBatchNormalization, copy_model, has_batch_norm
from tiny_imagenet.models import InitialWeights, create_model, import_model
from tiny_imagenet.readers import check_archive, check_regular
from tiny_imagenet.run_dir import find_checkpoint, read_config

ROUNDED_WEIGHTS = "weights.npz"  # of a model that ships (tools/export_pretrained.py), instead of its .keras file


@dataclass(frozen=True)
class Run:
    """A run, opened for use; `model` maps images (B, S, S, 3) uint8, S = config.crop_size, to logits (B, C) float32."""

    folder: Path
    config: TrainConfig
    class_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    model: keras.Model


def save_model(model: keras.Model, config: TrainConfig) -> None:
    """Writes best.keras or last.keras, without the optimizer's state; its input size is crop_size.

    All its layers are Keras's own, so that `keras.saving.load_model` opens it without this repository.
    """
    if not is_main_process():
        return
    with on_one_device():
        kept = keras.Model(model.inputs[0], model.outputs[0], name=model.name)  # without the optimizer
        images = keras.Input((config.crop_size, config.crop_size, 3), dtype="uint8", name="images")
        if has_batch_norm(kept):
            kept = copy_model(kept, keras.layers.BatchNormalization, images)
        elif None in kept.input_shape[1:]:
            kept = keras.models.clone_model(kept, input_tensors=images, clone_function=lambda layer: layer)
    write_atomically(config.run_dir / config.model_file, kept.save)


def load_run(folder: str | Path) -> Run:
    """Opens the model of a run. Nothing in the folder is executed: Keras's safe mode stays on.

    Raises:
        UserError: there is no run, no model yet, or one that is damaged or does not fit its config.json.
    """
    folder = Path(folder)
    config, description = read_config(folder)
    import_model(config.model_name)
    rounded = folder / ROUNDED_WEIGHTS
    path = rounded if rounded.exists() else folder / config.model_file
    if not path.exists():
        raise UserError(
            f"{path} does not exist: the run has not been evaluated yet; continue it with train.py --resume"
        )
    check_regular(path)
    classes = len(description.class_ids)
    try:
        check_archive(path)
        if path == rounded:
            model = _load_rounded(path, config, classes)
        else:
            model = keras.saving.load_model(path, compile=False)
            model = copy_model(model, FusedBatchNormalization) if has_batch_norm(model) else model
        shapes = tuple(model.input_shape), tuple(model.output_shape)
    except Exception as error:  # Keras raises many kinds for a damaged file
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"cannot load {path} ({reason}); get it, or train it, again") from None
    size = config.crop_size
    fits = len(shapes[0]) == 4 and set(shapes[0][1:3]) <= {size, None} and shapes[0][3] == 3
    if not fits or shapes[1] != (None, classes) or len(description.class_names) != classes:
        expected = f"(None, {size}, {size}, 3) to (None, {classes})"
        raise UserError(f"{path} maps {shapes[0]} to {shapes[1]}, but config.json describes {expected}; get both again")
    for weight in model.weights:
        check_finite(f"{path}: the weight {weight.path}", keras.ops.convert_to_numpy(weight))
    return Run(folder, config, description.class_ids, description.class_names, model)


def check_finite(what: str, values: np.ndarray) -> None:
    """Raises UserError if weights, or what a model computes, are NaN or infinite."""
    if not np.isfinite(values).all():
        raise UserError(f"{what} has NaN or infinite values; get the model, or train it, again")


def _load_rounded(path: Path, config: TrainConfig, num_classes: int) -> keras.Model:
    """The model of these settings with the weights of a .npz file, which are stored by path."""
    model = create_model(replace(config, image_sizes=()), num_classes)
    with np.load(path, allow_pickle=False) as arrays:
        for weight in model.weights:
            with arrays.zip.open(f"{weight.path}.npy") as file:  # the header: nothing is read before it fits
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            if shape != tuple(weight.shape) or dtype.kind != "f":
                raise ValueError(f"{weight.path} is {dtype} {shape}, not float {tuple(weight.shape)}")
            weight.assign(arrays[weight.path].astype(weight.dtype))
    return model


def find_run(name: str) -> Path:
    """A run's folder; one of the repository, like pretrained/resnet_18, is found from every other folder too."""
    return Path(name) if Path(name).exists() or not (ROOT / name).exists() else ROOT / name


def read_initial_weights(config: TrainConfig, resuming: bool) -> InitialWeights | None:
    """The weights of the run `init_from`; None without one, or if a checkpoint will replace them."""
    if not config.init_from or (resuming and find_checkpoint(config.run_dir, None)):
        return None
    run = load_run(find_run(config.init_from))
    arrays = {weight.path: np.array(keras.ops.convert_to_numpy(weight)) for weight in run.model.weights}
    return InitialWeights(arrays, run.class_ids)
