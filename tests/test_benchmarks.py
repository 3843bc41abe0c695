"""What the benchmarks make of their measurements; the measuring itself is `make bench`."""

from startup import UserError, keras

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

import train
from benchmarks import bench, campaign
from config import BASE
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
def test_every_run_of_a_campaign_has_settings_and_a_name_of_its_own(name):
    runs = campaign.CAMPAIGNS[name]
    assert len(set(runs.values())) == len({place.rpartition("/")[2] for place in runs}) == len(runs)
    for config in runs.values():
        if config.loss == "svm" and config.optimizer == "sgd":  # 2017's, whose only penalty is on the last layer
            assert (config.weight_decay, config.reg_last_only, config.reg, config.lr) == (0, True, 1, 0.001)
        if config.init_from:
            model, other = config.init_from.split("/")
            assert [config.model_name for place, config in runs.items() if place.endswith(other)][0] == model


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The commands of a campaign, as lines, that runs in an empty folder: they end runs and file them at once."""
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    lines = []

    def run_script(*words):
        lines.append(" ".join(words))
        if words[0] == "train.py":
            config = train.parse([word for word in words[1:] if word != "--resume"]).config
            make(tmp_path / config.run_dir, "config.json", f'{{"split": "end", "step": 1, "seconds": {len(lines)}}}\n')
        else:
            group, name = (words[words.index(flag) + 1] if flag in words else "" for flag in ("--group", "--name"))
            curves = (tmp_path / words[1] / "metrics.jsonl").read_text()
            make(tmp_path / "results" / group / name, "result.json", curves)

    monkeypatch.setattr(campaign, "run_script", run_script)
    return lines


def make(folder, file, curves):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).touch()
    (folder / "metrics.jsonl").write_text(curves)


END = '{"split": "end", "step": 1, "seconds": 1}\n'


def test_a_campaign_goes_on_where_it_was(tmp_path, called, capsys):
    make(tmp_path / "runs" / "losses" / "resnet_18" / "softmax_ce", "config.json", END)  # trained and filed
    make(tmp_path / "results" / "losses" / "softmax_ce", "result.json", END)
    make(tmp_path / "runs" / "losses" / "resnet_18" / "softmax_smooth_ce", "config.json", END)  # trained
    make(tmp_path / "runs" / "losses" / "resnet_18" / "svm", "config.json", END.replace("end", "train"))
    make(tmp_path / "results" / "losses" / "svm_2017", "result.json", END)  # filed, but trained elsewhere
    campaign.run("losses", data_dir="elsewhere", pictures="list.txt")
    assert "runs/losses/resnet_18/softmax_ce is trained and filed" in capsys.readouterr().out
    name = {line: line.partition("-name ")[2].split()[0] for line in called}
    kinds = [(line.split()[0], name[line], "--resume" in line) for line in called]
    rest = [(script, run, False) for run in ("svm_2017", "svm_2017_frozen") for script in ("train.py", "report.py")]
    assert kinds == [
        ("report.py", "softmax_smooth_ce", False),
        ("train.py", "svm", True),
        ("report.py", "svm", False),
        *rest,
    ]
    assert called[0] == (
        "report.py runs/losses/resnet_18/softmax_smooth_ce --name softmax_smooth_ce --replace --data-dir elsewhere "
        "--pictures list.txt --group losses --made-by python -m benchmarks.campaign losses --only softmax_smooth_ce"
    )
    trained = [line for line in called if line.startswith("train.py")]
    assert all("--data-dir elsewhere" in line for line in trained)
    assert "--init-from runs/losses/resnet_18/softmax_ce" in trained[-1]
    done = len(called)
    campaign.run("losses", data_dir="elsewhere")
    assert len(called) == done


def test_the_commands_of_a_campaign_train_with_its_settings(called):
    campaign.run("losses", only=("svm_2017_frozen",))
    configs = [train.parse(line.split()[1:]).config for line in called if line.startswith("train.py")]
    places = [{"runs_dir": "runs/losses", "config_name": name} for name in ("softmax_ce", "svm_2017_frozen")]
    first, second = (campaign.CAMPAIGNS["losses"][f"losses/{place['config_name']}"] for place in places)
    second = replace(second, init_from="runs/losses/resnet_18/softmax_ce")  # which was not there, so it came first
    assert configs == [replace(config, **place) for config, place in zip((first, second), places, strict=True)]


def test_of_a_campaign_only_those_that_are_named_are_trained(called):
    campaign.run("losses", only=("svm",))
    assert [line.split()[0] for line in called] == ["train.py", "report.py"]
    with pytest.raises(UserError, match="--only other: the campaign losses has softmax_ce, "):
        campaign.run("losses", only=("svm", "other"))


def test_a_rehearsal_begins_anew(tmp_path, called):
    make(tmp_path / "runs" / "rehearsal_gpu" / "vgg_16" / "vgg_16", "config.json", END)
    for place in ("rehearsal_gpu/vgg_16", "vgg_16", "ablations/vgg_16_hue"):
        make(tmp_path / "results" / place, "result.json", END)
    campaign.run("gpu", rehearse=True)
    assert len(called) == 2 * len(campaign.CAMPAIGNS["gpu"])
    assert not any("--resume" in line or "--made-by" in line for line in called)
    assert all("--group rehearsal_gpu" in line for line in called if line.startswith("report.py"))
    for place in ("vgg_16", "ablations/vgg_16_hue"):  # of no rehearsal
        assert (tmp_path / "results" / place / "metrics.jsonl").read_text() == END


def test_the_campaign_for_a_gpu_needs_one():
    with pytest.raises(UserError, match="a GPU is needed"):
        campaign.run("gpu")


def test_a_campaign_stops_where_a_script_fails():
    with pytest.raises(UserError, match="train.py ended with 1; .*the same command goes on"):
        campaign.run_script("train.py", "--model-name", "none")


def test_the_table_in_the_readme_is_that_of_the_results():
    everything = json.loads(bench.RESULTS.read_text())
    assert bench.BEGIN + bench.readme_table(everything) + bench.END in (ROOT / "README.md").read_text()
