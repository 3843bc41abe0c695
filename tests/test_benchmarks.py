"""What the benchmarks make of their measurements; the measuring itself is `make bench`."""

from startup import UserError, keras

import json

import numpy as np
import pytest
from conftest import ROOT

import train
from benchmarks import bench, campaign
from config import BASE, RECIPES
from models import build_model

FASTER = bench.Claim("speed", "group", "ours", ("slow", "quick"), goal=2)
OWN = bench.Claim("memory", "group", "ours", (), goal=2, at_most=True)


@pytest.mark.parametrize(
    ("rounds", "less_is_better", "expected"),
    [
        ({"ours": [10, 30, 20], "slow": [1, 1, 1], "quick": [5, 10, 5]}, False, ([2, 3, 4], "quick")),
        ({"ours": [1, 2, 1], "slow": [9, 9, 9], "quick": [4, 4, 8]}, True, ([4, 2, 8], "quick")),
    ],
)
def test_ratios_are_taken_round_by_round_against_the_best_peer(rounds, less_is_better, expected):
    assert bench.ratios(FASTER, rounds, less_is_better) == expected


def test_without_a_peer_the_figures_are_ours_and_their_median_counts(monkeypatch):
    figures = {"ours": [3, 1, 2]}
    assert bench.ratios(OWN, figures, less_is_better=False) == ([3, 1, 2], "")
    monkeypatch.setattr(bench, "_claims", lambda: [OWN])
    assert bench.judge({"group": {"unit": "GB", "rounds": figures}})[0]["value"] == 2


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
    rounds = {"ours": [3.0, 1.0, 4.0], "slow": [1.0, 1.0, 1.0], "quick": [2.0, 2.0, 2.0]}
    ratio, own = bench.judge({"group": {"unit": "GB", "rounds": rounds}})
    assert (ratio["value"], ratio["lowest"], ratio["highest"]) == (1.5, 0.5, 2.0)
    assert (ratio["peer"], ratio["reached"]) == ("quick", False)
    assert (own["value"], own["reached"]) == (3.0, False)
    assert bench.shown(ratio) == ("1.50 x", "at least 2 x")
    assert bench.shown(own) == ("3.00", "at most 2")
    assert bench.shown({"value": 107731.4, "goal": 30000, "at_most": False}) == ("107,731", "at least 30,000")
    assert "MISSED" in bench.table([ratio])
    assert bench._cell(ratio) == "1.50 x, missed (0.50 to 2.00)"
    assert bench._cell(own | {"reached": True, "lowest": 3.0, "highest": 3.0}) == "**3.00**"


def test_machines_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(bench, "_claims", lambda: [FASTER, OWN])
    measured = {"unit": "GB", "date": "2026-01-02", "seconds": 60, "rounds": {"ours": [4], "slow": [1], "quick": [2]}}
    one = {"command": "make bench", "shares_of_the_ceilings": {}, "measured": {"group": measured}}
    one["table"] = bench.judge(one["measured"])
    lines = bench.readme_table({"first": one, "second": one | {"table": one["table"][1:]}}).splitlines()
    assert lines[0] == "| what | goal | first | second | against |"
    assert lines[2] == "| speed | at least 2 x | **2.00 x** |  | quick |"
    assert lines[3] == "| memory | at most 2 | 4.00, missed | 4.00, missed |  |"
    assert len({line.count("|") for line in lines[:4]}) == 1
    groups = f"1 of its {len(bench.GROUPS)} groups"
    assert lines[5] == f"- first: `make bench`; {groups}, measured on 2026-01-02 in 1 min; 1 to 1 rounds a group."


def test_the_arithmetic_of_vgg_16_is_counted_right():
    model = build_model(BASE, 200)
    count = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.Dense):
            places = layer.output.shape[1] * layer.output.shape[2] if isinstance(layer, keras.layers.Conv2D) else 1
            count += places * int(np.prod(layer.kernel.shape))
    assert 3 * 2 * count == bench.VGG_16_FLOP


@pytest.mark.parametrize("name", campaign.CAMPAIGNS)
def test_every_run_of_a_campaign_has_settings_of_its_own(name):
    runs = campaign.CAMPAIGNS[name]
    configs = [train.parse(words.format(runs="runs/other").split()).config for words in runs.values()]
    assert len(set(configs)) == len(runs)
    for words, config in zip(runs.values(), configs, strict=True):
        assert RECIPES[words.split()[1]].model_name == config.model_name
        if config.loss == "svm" and config.optimizer == "sgd":  # 2017's, whose only penalty is on the last layer
            assert (config.weight_decay, config.reg_last_only, config.reg, config.lr) == (0, True, 1, 0.001)


def test_a_campaign_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    called = []
    monkeypatch.setattr(campaign, "run_script", lambda *words: called.append(" ".join(words)))
    filed, begun = tmp_path / "results" / "losses" / "softmax_ce", tmp_path / "runs" / "losses" / "resnet_18" / "svm"
    for folder, file in ((filed, "result.json"), (begun, "config.json")):
        folder.mkdir(parents=True)
        (folder / file).touch()
    campaign.run("losses", data_dir="elsewhere")
    assert "softmax_ce: filed already" in capsys.readouterr().out
    trained, reported = called[::2], called[1::2]
    assert len(trained) == len(reported) == len(campaign.CAMPAIGNS["losses"]) - 1
    assert [" --resume" in words for words in trained] == [False, True, False, False]
    assert all("--data-dir elsewhere --runs-dir runs/losses --config-name " in words for words in trained)
    assert "--init-from runs/losses/resnet_18/softmax_ce --freeze-features" in trained[-1]
    assert reported[0] == "report.py runs/losses/resnet_18/softmax_smooth_ce --group losses --name softmax_smooth_ce"


def test_of_a_campaign_only_those_that_are_named_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    called = []
    monkeypatch.setattr(campaign, "run_script", lambda *words: called.append(words))
    campaign.run("losses", only=("svm",))
    assert [words[0] for words in called] == ["train.py", "report.py"]
    with pytest.raises(UserError, match="--only other: the campaign losses has softmax_ce, "):
        campaign.run("losses", only=("svm", "other"))


def test_a_rehearsal_begins_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    called = []
    monkeypatch.setattr(campaign, "run_script", lambda *words: called.append(words))
    for folder in ("results/rehearsal_losses/svm", "runs/rehearsal_losses/resnet_18/svm", "results/losses/svm"):
        (tmp_path / folder).mkdir(parents=True)
        for file in ("result.json", "config.json"):
            (tmp_path / folder / file).touch()
    campaign.run("losses", rehearse=True)
    assert len(called) == 2 * len(campaign.CAMPAIGNS["losses"])
    assert not any("--resume" in words for words in called)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["losses"]


def test_the_campaign_for_a_gpu_needs_one():
    with pytest.raises(UserError, match="a GPU is needed"):
        campaign.run("gpu")


def test_a_campaign_stops_where_a_script_fails():
    with pytest.raises(UserError, match="train.py ended with 1; .*the same command goes on"):
        campaign.run_script("train.py", "--model-name", "none")


def test_the_table_in_the_readme_is_that_of_the_results():
    everything = json.loads(bench.RESULTS.read_text())
    assert bench.BEGIN + bench.readme_table(everything) + bench.END in (ROOT / "README.md").read_text()
