"""What the benchmarks conclude from measurements, and what a campaign runs; `make bench` does the measuring."""

import json
from dataclasses import replace

import pytest
from helpers import write

import train
from benchmarks import bench, campaign, groups, summary
from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError

FASTER = groups.Claim("speed", "group", "ours", ("slow", "quick"), goal=2)
OWN = groups.Claim("memory", "group", "ours", (), goal=2, at_most=True)
END = '{"split": "end", "step": 1, "seconds": 1}\n'


def test_ratios_are_computed_round_by_round_against_the_best_peer():
    more = {"ours": [10, 30, 20], "slow": [1, 1, 1], "quick": [5, 10, 5]}
    less = {"ours": [1, 2, 1], "slow": [9, 9, 9], "quick": [4, 4, 8]}
    assert summary.ratios(FASTER, more, less_is_better=False) == ([2, 3, 4], "quick")
    assert summary.ratios(FASTER, less, less_is_better=True) == ([4, 2, 8], "quick")
    assert summary.ratios(OWN, less, less_is_better=True) == ([1, 2, 1], "")


def test_every_claim_is_measured_and_every_contender_exists():
    for claim in groups.claims():
        assert {claim.ours, *claim.peers} <= groups.GROUPS[claim.group].contenders.keys(), claim.what
    for group in groups.GROUPS.values():
        for module, function in (name.split(".") for name in group.contenders.values()):
            assert f"\ndef {function}(" in (ROOT / "benchmarks" / f"{module}.py").read_text()


def test_rows_show_what_was_reached_and_machines_stand_side_by_side(monkeypatch):
    monkeypatch.setattr(summary, "claims", lambda: [FASTER, OWN])
    rounds = {"ours": [3.0, 1.0, 4.0], "slow": [1.0, 1.0, 1.0], "quick": [2.0, 2.0, 2.0]}
    measured = {"group": {"unit": "GB", "date": "2026-01-02", "seconds": 60, "rounds": rounds}}
    ratio, own = summary.judge(measured)
    assert "MISSED" in summary.text_table([ratio])
    one = {"command": "make bench", "shares": {"of it": 0.5}, "measured": measured, "table": [ratio, own]}
    other = one | {"table": [own | {"reached": True, "value": 30_000.4, "lowest": 1.0, "highest": 1.0}]}
    lines = summary.markdown_table({"first": one, "second": other}).splitlines()
    assert lines[0] == "| what | goal | first | second | against |"
    assert lines[2] == "| speed | at least 2 x | 1.50 x, missed (0.50 to 2.00) |  | quick |"
    assert lines[3] == "| memory | at most 2 | 3.00, missed (1.00 to 4.00) | **30,000** |  |"
    assert f"; 1 of {len(groups.GROUPS)} groups, measured on 2026-01-02 in 1 min, with 3 to 3 rounds" in lines[5]


def test_the_page_shows_the_filed_measurements():
    everything = json.loads(bench.RESULTS.read_text())
    for found in everything.values():
        assert found["table"] == summary.judge(found["measured"])
    assert f"{summary.markdown_table(everything)}<!-- end of benchmarks -->" in bench.PAGE.read_text()


# Campaigns


@pytest.mark.parametrize("name", campaign.CAMPAIGNS)
def test_every_run_of_a_campaign_has_its_own_settings_and_name(name):
    runs = campaign.CAMPAIGNS[name]
    assert len(set(runs.values())) == len({place.rpartition("/")[2] for place in runs}) == len(runs)
    for config in runs.values():
        if config.loss == "svm" and config.optimizer == "sgd":  # 2017's
            assert (config.weight_decay, config.reg_last_only, config.reg) == (0, True, 1)
            assert config.lr == (0.01 if config.freeze_features else 0.001)
        if config.init_from:
            model, other = config.init_from.split("/")
            assert [config.model_name for place, config in runs.items() if place.endswith(other)][0] == model


@pytest.fixture
def called(tmp_path, monkeypatch):
    """The commands, as lines, of campaigns in an empty folder, where runs are trained and filed at once."""
    monkeypatch.setattr(campaign, "ROOT", tmp_path)
    lines = []

    def run_script(*words):
        lines.append(" ".join(words))
        if words[0] == "train.py":
            config = train.parse([word for word in words[1:] if word != "--resume"]).config
            write_run(tmp_path / config.run_dir, "config.json", f'{{"split": "end", "seconds": {len(lines)}}}\n')
        else:
            group, name = (words[words.index(flag) + 1] if flag in words else "" for flag in ("--group", "--name"))
            metrics = (tmp_path / words[2] / "metrics.jsonl").read_text()
            write_run(tmp_path / "results" / group / name, "result.json", metrics)

    monkeypatch.setattr(campaign, "run_script", run_script)
    return lines


def write_run(folder, file, metrics=END):
    write(folder / file, "")
    write(folder / "metrics.jsonl", metrics)


def test_a_campaign_continues_where_it_was(tmp_path, called, capsys):
    runs, results = tmp_path / "runs/losses/resnet_18", tmp_path / "results/losses"
    write_run(runs / "softmax_ce", "config.json")  # trained and filed
    write_run(results / "softmax_ce", "result.json")
    write_run(runs / "softmax_smooth_ce", "config.json")  # trained
    write_run(runs / "svm", "config.json", END.replace("end", "train"))
    write_run(results / "svm_2017", "result.json")  # filed, but trained elsewhere
    campaign.run("losses", data_dir="elsewhere", images="list.txt")
    assert "runs/losses/resnet_18/softmax_ce is already trained and filed" in capsys.readouterr().out
    name = {line: line.rpartition("-name ")[2].split()[0] for line in called}
    rest = [(script, run, False) for run in ("svm_2017", "svm_2017_frozen") for script in ("train.py", "-m")]
    expected = [("-m", "softmax_smooth_ce", False), ("train.py", "svm", True), ("-m", "svm", False), *rest]
    assert [(line.split()[0], name[line], "--resume" in line) for line in called] == expected
    filed = "--name softmax_smooth_ce --replace --data-dir elsewhere --images list.txt --group losses --made-by"
    command = "python -m benchmarks.campaign losses --only softmax_smooth_ce"
    assert called[0] == f"-m tools.report runs/losses/resnet_18/softmax_smooth_ce {filed} {command}"
    assert all("--data-dir elsewhere" in line for line in called)
    assert "--init-from runs/losses/resnet_18/softmax_ce" in called[-2]
    done = len(called)
    campaign.run("losses", data_dir="elsewhere")
    assert len(called) == done


def test_only_the_named_runs_are_trained_with_the_campaigns_settings(called):
    campaign.run("losses", only=("svm_2017_frozen",))
    configs = [train.parse(line.split()[1:]).config for line in called if line.startswith("train.py")]
    first, second = (
        replace(campaign.CAMPAIGNS["losses"][f"losses/{name}"], runs_dir="runs/losses", config_name=name)
        for name in ("softmax_ce", "svm_2017_frozen")
    )
    second = replace(second, init_from="runs/losses/resnet_18/softmax_ce")  # which did not exist, so it came first
    assert configs == [first, second]
    with pytest.raises(UserError, match="--only other: .*the campaign losses has softmax_ce, "):
        campaign.run("losses", only=("svm", "other"))
    with pytest.raises(UserError, match="no GPU"):
        campaign.run("gpu")


def test_a_rehearsal_starts_from_the_beginning(tmp_path, called):
    write_run(tmp_path / "runs/rehearsal_gpu/vgg_16/vgg_16", "config.json")
    for place in ("rehearsal_gpu/vgg_16", "vgg_16", "ablations/vgg_16_hue"):
        write_run(tmp_path / "results" / place, "result.json")
    campaign.run("gpu", rehearse=True)
    assert len(called) == 2 * len(campaign.CAMPAIGNS["gpu"])
    assert not any("--resume" in line or "--made-by" in line for line in called)
    assert all("--group rehearsal_gpu" in line for line in called if not line.startswith("train.py"))
    for place in ("vgg_16", "ablations/vgg_16_hue"):  # of no rehearsal
        assert (tmp_path / "results" / place / "metrics.jsonl").read_text() == END


@pytest.mark.slow
def test_a_campaign_stops_where_a_script_fails():
    with pytest.raises(UserError, match="tools.nothing exited with 1 .*the same command again"):
        campaign.run_script("-m", "tools.nothing")
