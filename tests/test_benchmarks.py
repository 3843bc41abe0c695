"""What the benchmarks make of their measurements; the measuring itself is `make bench`."""

import json

import keras
import numpy as np
import pytest
from conftest import ROOT

from benchmarks import bench
from config import BASE
from models import build_model

FASTER = bench.Claim("speed", "group", "ours", ("slow", "quick"), goal=2)
OWN = bench.Claim("memory", "group", "ours", (), goal=2, at_most=True)


@pytest.mark.parametrize(
    ("rounds", "less_is_better", "expected"),
    [
        ({"ours": [10, 30, 20], "slow": [1, 1, 1], "quick": [5, 10, 5]}, False, (3, "quick")),  # of 2, 3 and 4
        ({"ours": [1, 2, 1], "slow": [9, 9, 9], "quick": [4, 4, 8]}, True, (4, "quick")),  # of 4, 2 and 8
    ],
)
def test_a_ratio_is_the_median_over_the_rounds_against_the_best_peer(rounds, less_is_better, expected):
    assert bench.median_ratio(FASTER, rounds, less_is_better) == expected


def test_a_figure_of_ours_is_its_median():
    assert bench.median_ratio(OWN, {"ours": [3, 1, 2]}, less_is_better=False) == (2, "")


def test_every_claim_is_about_what_is_measured():
    for claim in bench._claims():
        contenders = bench.GROUPS[claim.group].contenders
        assert {claim.ours, *claim.peers} <= contenders.keys(), claim.what


def test_every_contender_is_there():
    for group in bench.GROUPS.values():
        for name in group.contenders.values():
            module, function = name.split(".")
            assert f"\ndef {function}(" in (ROOT / "benchmarks" / f"{module}.py").read_text()


def test_rows_say_what_was_reached(monkeypatch):
    monkeypatch.setattr(bench, "_claims", lambda: [FASTER, OWN])
    rounds = {"ours": [3.0], "slow": [1.0], "quick": [2.0]}
    ratio, own = bench.judge({"group": {"unit": "GB", "rounds": rounds}})
    assert (ratio["value"], ratio["peer"], ratio["reached"]) == (1.5, "quick", False)
    assert (own["value"], own["reached"]) == (3.0, False)
    assert bench.shown(ratio) == ("1.50 x", "at least 2 x")
    assert bench.shown(own) == ("3.00", "at most 2")
    assert bench.shown({"value": 107731.4, "goal": 30000, "at_most": False}) == ("107,731", "at least 30,000")
    assert "MISSED" in bench.table([ratio])


def test_the_arithmetic_of_vgg_16_is_counted_right():
    model = build_model(BASE, 200)
    count = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = layer.output.shape[1] * layer.output.shape[2] if isinstance(layer, keras.layers.Conv2D) else 1
            count += places * int(np.prod(layer.kernel.shape))
    assert 3 * 2 * count == bench.VGG_16_FLOP


def test_the_table_in_the_readme_is_that_of_the_results():
    everything = json.loads(bench.RESULTS.read_text())
    assert bench.BEGIN + bench.readme_table(everything) + bench.END in (ROOT / "README.md").read_text()
