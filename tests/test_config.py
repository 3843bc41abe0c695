"""The settings: their help, ranges, types and contradictions; configurations read from JSON; the recipes."""

import ast
import inspect
import json
import math
import re
from dataclasses import asdict, fields, replace

import pytest

from tiny_imagenet.config import MAX_INT, TrainConfig, differences, from_dict
from tiny_imagenet.errors import UserError
from tiny_imagenet.models import model_names
from tiny_imagenet.recipes import BASE, RECIPES

FIELDS = {item.name: item for item in fields(TrainConfig)}
RANGES = {name: item.metadata for name, item in FIELDS.items() if item.metadata}


def help_texts():
    """The help of each setting: the string after it in the source."""
    body = ast.parse(inspect.getsource(TrainConfig)).body[0].body
    pairs = zip(body, body[1:], strict=False)
    return {
        first.target.id: inspect.cleandoc(second.value.value) for first, second in pairs if hasattr(first, "target")
    }


def test_the_defaults_are_those_of_2017():
    of_2017 = {"batch_size": 64, "num_epochs": 50, "summary_interval": 250, "eval_interval": 2000, "lr": 0.01}
    of_2017 |= {"reg": 5e-4, "momentum": 0.9, "dropout_keep_prob": 0.5, "model_name": "vgg_16"}
    assert asdict(TrainConfig()) == asdict(TrainConfig()) | of_2017 | {"config_name": "default"}


def test_every_setting_has_help():
    assert list(help_texts()) == list(FIELDS)
    assert all(text.endswith(".") for text in help_texts().values())


@pytest.mark.parametrize("name", RANGES)
def test_the_help_names_the_range_that_is_checked(name):
    text = " ".join(help_texts()[name].split())
    low, high = re.search(r"\(([\d.]+) (?:to ([\d.e]+)|or more)", text).groups()
    low = 0 if re.search(r"[;,] 0( 0)?: ", text) else float(low)  # 0 turns it off
    assert (low, float(high or MAX_INT)) == (RANGES[name]["low"], RANGES[name]["high"])


@pytest.mark.parametrize("name", RANGES)
def test_a_value_out_of_range_is_named(name):
    default, low, high = FIELDS[name].default, RANGES[name]["low"], RANGES[name]["high"]
    whole = isinstance(default, int) or "int" in str(FIELDS[name].type)
    step = 1 if whole else 1e-6
    outside = [low - step, high + step * max(1, high), 10**40]
    outside += [] if whole else [math.nan, math.inf]
    for value in outside:
        values = (value,) * max(1, len(default)) if isinstance(default, tuple) else value
        with pytest.raises(UserError, match=f"^{name} is .*; it must be {low} to ") as error:
            TrainConfig(**{name: values})
        assert len(str(error.value)) < 150


def test_a_value_of_the_wrong_type_is_named():
    wrong = [("lr", "0.1"), ("lr", True), ("width", None), ("seed", 1.0), ("batch_size", True), ("random_flip", 1)]
    wrong += [("image_sizes", 32), ("image_sizes", (32.0,)), ("saturation", (1.0,)), ("data_dir", 3), ("lr", [1])]
    for name, value in wrong:
        with pytest.raises(UserError, match=f"^{name} (is|has) .*; it must (be|have) "):
            TrainConfig(**{name: value})


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; it must be one of: softmax_ce, softmax_smooth_ce, svm"),
        ({"model_name": "../vgg_16"}, "model_name is '../vgg_16'; use only letters"),
        ({"config_name": ""}, "config_name is ''; use only letters"),
        ({"data_dir": "a\udcff"}, r"data_dir is 'a\\udcff', which cannot be printed"),
        ({"runs_dir": "a\x1b[2J\nb"}, r"runs_dir is 'a\\x1b\[2J\\nb', which cannot be printed on one line; rename"),
        ({"saturation": (2.0, 0.5)}, "saturation is .*; the first number must not exceed the second"),
        ({"random_resized_crop": (64, 44)}, "random_resized_crop is .*; the first number must not exceed the second"),
        ({"random_resized_crop": (0, 44)}, "random_resized_crop is .*; use two sides from 1 to 64, or 0 0"),
        ({"smoothing": 0.2}, "smoothing is 0.2, but loss is softmax_ce; set --loss softmax_smooth_ce"),
        ({"freeze_features": True}, "freeze_features .* --init-from RUN"),
        ({"warmup": 0.1}, "warmup needs a schedule of fixed length; set --schedule"),
        ({"image_sizes": (32, 48)}, "image_sizes needs a schedule of fixed length; set --schedule"),
        ({"image_sizes": (32, 48), "schedule": "cosine"}, "image_sizes .* set --random-resized-crop"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_is_answered_in_one_line(values, answer):
    with pytest.raises(UserError, match=answer) as error:
        TrainConfig(**values)
    assert "\n" not in str(error.value)


def test_a_configuration_survives_json():
    for config in (*RECIPES.values(), TrainConfig(image_sizes=(32,), schedule="cosine", random_resized_crop=(44, 64))):
        assert from_dict(json.loads(json.dumps(asdict(config))), "config.json") == config
    assert from_dict({"lr": 1, "saturation": [1, 2]}, "config.json") == TrainConfig(lr=1.0, saturation=(1.0, 2.0))


def test_an_error_in_json_names_its_file():
    answers = {"dropout": (0.5, "unknown setting dropout; this version knows: model_name, ")}
    answers |= {
        "lr": (10**400, "lr is .*; it must be 0 to"),
        "saturation": ([1.0, "x"], "saturation is 'x'; it must be a finite"),
    }
    for name, (value, answer) in answers.items():
        with pytest.raises(UserError, match=f"^runs/config.json: {answer}"):
            from_dict({name: value}, "runs/config.json")


def test_the_recipes():
    assert RECIPES["default"] == BASE == TrainConfig()
    assert {recipe.model_name for recipe in RECIPES.values()} == set(model_names())
    svm = {"loss": "svm", "lr": 0.001, "reg": 1.0, "reg_last_only": True}  # of 2017
    svm |= {"hidden_units": (4096, 4096), "dropout_layers": 1}
    assert RECIPES["vgg_16_svm"] == replace(BASE, **svm)
    changed = set(differences(RECIPES["vgg_16_svm_frozen"], BASE))
    assert changed == {"loss", "reg", "reg_last_only", "dropout_keep_prob", "init_from", "freeze_features"}
