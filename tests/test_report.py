"""A run filed as a result: its evidence, the command that makes it again, the table in the README."""

from startup import UserError

import fcntl
import json
import os
import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest

import report
import train
from config import BASE, RECIPES, TrainConfig
from evaluate import evaluate

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def run(sample_dir, tmp_path_factory):
    """A trained run."""
    config = TrainConfig("logistic_regression", "tiny", str(sample_dir), str(tmp_path_factory.mktemp("runs")))
    return train.train(replace(config, batch_size=20, num_epochs=2, eval_interval=10, summary_interval=4))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder for results."""
    monkeypatch.setattr(report, "RESULTS", tmp_path / "results")
    return report.RESULTS


def test_a_filed_result_is_a_claim_with_its_evidence(run, results):
    folder = report.file_result(run, "first")
    assert folder == results / "first"
    assert {path.name for path in folder.iterdir()} == {"config.json", "curves.png", "metrics.jsonl", "result.json"}
    assert (folder / "curves.png").read_bytes().startswith(PNG)
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    found, expected = json.loads((folder / "result.json").read_text()), evaluate(run, None)
    assert {name: found[name] for name in expected if name != "run"} == {
        name: value for name, value in expected.items() if name != "run"
    }
    assert found["pictures"] == 50
    assert found["command"].startswith("python train.py --model-name logistic_regression --batch-size 20")
    assert {"n", "hardware", "backend", "versions"} <= found.keys()


def test_a_filed_result_names_no_folder_of_this_machine(run, results, sample_dir):
    folder = report.file_result(run, "first")
    settings = json.loads((folder / "config.json").read_text())["config"]
    assert settings["batch_size"] == 20
    assert not {"data_dir", "runs_dir", "config_name"} & settings.keys()
    for path in folder.glob("*.json*"):
        for place in (sample_dir, run):
            assert str(place) not in path.read_text(), path


def test_the_curves_have_the_result_s_name(run):
    assert report.draw_curves(report.read_points(run / "metrics.jsonl"), "first").get_suptitle() == "first"


def test_a_run_that_goes_on_is_not_filed(run, results, tmp_path):
    shutil.copytree(run, tmp_path / "half")
    metrics = tmp_path / "half" / "metrics.jsonl"
    metrics.write_text("".join(line for line in metrics.open() if '"end"' not in line))
    with pytest.raises(UserError, match="half has not come to its end; go on"):
        report.file_result(tmp_path / "half", "first")
    assert not results.exists()


def test_a_result_can_be_filed_again(run, results):
    assert report.file_result(run, "first") == report.file_result(run, "first")
    with pytest.raises(UserError, match="holds no run"):
        report.file_result(run.parent / "nowhere", "second")
    assert [path.name for path in results.iterdir()] == ["first"]


# The command


CONFIGS = {
    "2017": BASE,
    "floats": replace(BASE, lr=1e-05, reg=0.0, momentum=0.95),
    "flags": replace(BASE, random_crop=False, random_flip=False, skip_bad_images=True),
    "ranges": replace(BASE, saturation=(1.0, 1.0), hue=0.05),
    "names": replace(BASE, model_name="single_layer_nn", loss="svm", precision="mixed_bfloat16"),
    "a recipe, changed": replace(RECIPES["logistic_regression"], lr=0.25, random_flip=False, saturation=(0.25, 1.5)),
    "a recipe, reset": replace(RECIPES["demo"], num_epochs=BASE.num_epochs, seed=7),
} | {f"recipe {name}": config for name, config in RECIPES.items()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_command_gives_the_settings_back(config):
    places = {"config_name": "here", "data_dir": "/there", "runs_dir": "/elsewhere"}
    command = report.train_command(replace(config, **places))
    for place in places.values():
        assert place not in command
    other = replace(config, init_from="/home/somebody/runs/losses/vgg_16/first")
    assert "--init-from runs/vgg_16/first" in report.train_command(other)
    for place in ("pretrained/resnet_18", "runs/losses/vgg_16/first"):
        for init_from in (place, str(report.ROOT / place)):
            assert f"--init-from {place}" in report.train_command(replace(config, init_from=init_from))
    program, script, *words = shlex.split(command)
    assert (program, script) == ("python", "train.py")
    assert replace(train.parse(words).config, **places) == replace(config, **places)


def test_the_command_is_the_shortest():
    assert report.train_command(BASE) == "python train.py"
    assert report.train_command(BASE, "jax") == "KERAS_BACKEND=jax python train.py"
    recipe = replace(RECIPES["logistic_regression"], lr=0.5, random_crop=False)
    expected = "python train.py --recipe logistic_regression --lr 0.5 --no-random-crop"
    assert report.train_command(recipe) == expected
    assert report.train_command(replace(BASE, saturation=(1.0, 2.0))) == "python train.py --saturation 1.0 2.0"


# The tables


def write_result(results, name, **changes):
    row = {"model": name, "center_top_1": 0.1, "center_top_5": 0.3, "ten_crops_top_1": 0.125, "ten_crops_top_5": 0.35}
    row |= {"pictures": 5000, "seconds": 90, "hardware": "2 cores", "command": "python train.py", "center_ece": 0.04}
    row |= {"view": "centre crop", "weights_kept": "best"} | changes
    (results / name).mkdir(parents=True)
    (results / name / "result.json").write_text(json.dumps(row))


def test_the_table_goes_from_the_least_to_the_most_accurate(results):
    write_result(results, "a_best", model="vgg_16", center_top_1=0.52, command="python train.py --seed 1")
    write_result(results, "z_least", model="logistic_regression", center_top_1=0.03, seconds=3600)
    table = report.results_table()
    first, second = [line for line in table.splitlines() if line.startswith("| [")]
    numbers = "3.0 / 30.0 % | 12.5 / 35.0 %"
    assert first == f"| [z_least](results/z_least) | {numbers} | 60 min, 2 cores | `python train.py` |"
    assert second.startswith("| [a_best](results/a_best) | 52.0 / 30.0 % | 12.5 / 35.0 % | ")
    assert second.endswith("`python train.py --seed 1` |")
    assert "On 5,000 validation pictures" in table
    columns = {line.count("|") for line in table.splitlines() if line.startswith("|")}
    assert len(columns) == 1
    assert "The view is the centre crop, and the weights are the run's best by the same pictures" in table


def test_what_sets_results_apart_is_said_beside_them_and_what_they_share_below(results):
    same = {"view": "whole picture, scaled", "weights_kept": "last"}
    write_result(results, "one", **same)
    assert "| [one](results/one) | " in report.results_table()
    assert "The view is the whole picture, scaled, and the weights are the run's last.\n" in report.results_table()
    write_result(results, "two", made_by="python -m benchmarks.campaign losses --only two", remark="beside others")
    table = report.results_table()
    assert "| [one](results/one) (whole picture, scaled, last weights) | " in table
    assert "| [two](results/two) | " in table
    assert "| 1.5 min, 2 cores, beside others | `python -m benchmarks.campaign losses --only two` |" in table
    assert "If not said otherwise, the view is the centre crop, and the weights are the run's best by the same" in table


@pytest.mark.parametrize("by_minutes", [True, False])
def test_the_curves_of_all_results_are_drawn_by_minutes_or_epochs(results, by_minutes):
    write_result(results, "first")
    write_points(results, "first", ("validation", 0.25, 90), ("train", 0.9, 100), ("validation", 0.5, 180))
    (results / "first" / "config.json").write_text('{"data": {"train": 50}, "config": {"batch_size": 100}}')
    (axes,) = report.draw_comparison(report._read_results(results), by_minutes).axes
    (line,) = axes.lines
    assert line.get_xydata().tolist() == ([[1.5, 25], [3, 50]] if by_minutes else [[2, 25], [2, 50]])
    assert (line.get_label(), axes.get_xscale()) == ("first: 2 cores", "log" if by_minutes else "linear")


def test_all_numbers_of_pictures_are_said(results):
    write_result(results, "one", pictures=10000)
    write_result(results, "two", pictures=500)
    assert "On 500 or 10,000 validation pictures" in report.results_table()


def test_without_results_there_is_no_table(results):
    assert report.results_table() == ""


def write_points(results, name, *points):
    lines = [{"split": split, "step": 1, "data_loss": 1.0, "top_1": top_1, "seconds": s} for split, top_1, s in points]
    (results / name / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_the_board_has_the_minutes_to_each_level_of_those_that_came_to_the_first(results):
    machine = {"backend": "tensorflow", "versions": {"keras": "3", "tensorflow": "2"}}
    write_result(results, "slow", center_top_1=0.2, **machine)
    write_points(results, "slow", ("train", 0.9, 60), ("validation", 0.2, 60))
    write_result(results, "fast", center_top_1=0.46, seconds=630, machine_speed=56.7, weights_kept="last", **machine)
    steps = [("validation", 0.29, 60), ("train", 0.9, 70), ("validation", 0.41, 120), ("validation", 0.3, 300)]
    write_points(results, "fast", *steps, ("validation", 0.46, 600))
    header, _, row = report.board().splitlines()
    assert header.startswith("| minutes to a top-1 of | 30 % | 40 % | 45 % | 50 % |")
    numbers = "2.0 | 2.0 | 10 |  |  |  |  | 46.0 % in 10"
    assert row == f"| [fast](results/fast) | {numbers} | 2 cores, keras 3, tensorflow 2 | 57 pictures/s |"
    assert header.count("|") == row.count("|")


def test_weights_chosen_by_the_validation_pictures_are_not_on_the_board(results):
    assert report.board() == ""
    write_result(results, "best", center_top_1=0.5, weights_kept="best")
    write_points(results, "best", ("validation", 0.5, 60))
    assert report.board() == ""


def test_a_level_counts_as_reached_by_exactly_its_share():
    points = [{"split": "validation", "top_1": float(np.float32(0.52)), "seconds": 120}]
    assert [report._minutes(minutes) for minutes in (9.94, 9.96, 10.4)] == ["9.9", "10", "10"]
    assert report.minutes_to(points, 52) == 2
    assert report.minutes_to(points, 55) is None


def test_a_group_is_compared_apart_from_the_main_table(run, results, readme, monkeypatch):
    begin, end = report.marks("losses")
    every = report.BEGIN + report.END + "\n" + report.BOARD_BEGIN + report.BOARD_END + "\n"
    readme.write_text(every + begin + end)
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--group", "losses", "--name", "svm"])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 0
    row = evaluate(run, None)
    page = (results / "losses" / "README.md").read_text()
    assert f"[svm](svm) | {100 * row['center_top_1']:.1f} / {100 * row['center_top_5']:.1f} % |" in page
    assert f"| {100 * row['center_ece']:.1f} % |" in page
    assert readme.read_text() == every + begin + report.results_table("losses") + end
    assert "[svm](results/losses/svm)" in readme.read_text()
    for pictures in ("svm/curves.png", "curves.png"):
        assert (results / "losses" / pictures).read_bytes().startswith(PNG)
    assert not (results / "curves.png").exists()  # there is no result outside the group
    readme.write_text(every)  # no marks for it: the page alone
    with pytest.raises(SystemExit, match=r"results/losses/svm is there; .* --replace"):
        report.main()
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--group", "losses", "--name", "svm", "--replace"])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 0
    assert readme.read_text() == every
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--group", "losses"])
    with pytest.raises(SystemExit):
        report.main()
    assert (results / "losses" / run.name / "result.json").exists()
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--group", "../losses"])
    with pytest.raises(SystemExit, match="--group is '../losses'"):
        report.main()
    monkeypatch.setattr("sys.argv", ["report.py", "--group", "loses"])
    with pytest.raises(SystemExit, match="--group loses: no result is filed there"):
        report.main()


def test_the_tables_are_written_by_one_process_at_a_time(run, results, monkeypatch):
    def another_one_s_lock(group):
        with pytest.raises(BlockingIOError):
            fcntl.flock(os.open(results, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(report, "file_tables", another_one_s_lock)
    monkeypatch.setattr("sys.argv", ["report.py"])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 0


def test_remarks_and_the_pictures_are_filed_with_the_run(run, results, monkeypatch, tmp_path):
    (tmp_path / "pictures.txt").write_text("val_0.JPEG\nval_1.JPEG\n")
    monkeypatch.setattr(report, "file_tables", lambda group: None)
    words = [
        "--machine-speed",
        "56.5",
        "--made-by",
        "make all",
        "--remark",
        "alone",
        "--pictures",
        str(tmp_path / "pictures.txt"),
    ]
    monkeypatch.setattr("sys.argv", ["report.py", str(run), "--name", "first", *words])
    with pytest.raises(SystemExit) as ended:
        report.main()
    assert ended.value.code == 0
    row = json.loads((results / "first" / "result.json").read_text())
    assert (row["machine_speed"], row["made_by"], row["remark"], row["pictures"]) == (56.5, "make all", "alone", 2)
    for speed in ("0", "nan", "-1"):
        monkeypatch.setattr("sys.argv", ["report.py", str(run), "--machine-speed", speed])
        with pytest.raises(SystemExit, match="--machine-speed"):
            report.main()


@pytest.fixture
def readme(tmp_path, monkeypatch):
    """Another README, not yet written."""
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    return report.README


def test_only_what_is_between_the_marks_is_written_anew(readme):
    before, after = "# Título\n\n", "\n## After\n| a | table |\n"
    readme.write_text(f"{before}{report.BEGIN}old\nrows\n{report.END}{after}", encoding="utf-8")
    for _ in range(2):  # the second time changes nothing
        report.update_readme("new\n", report.BEGIN, report.END)
        assert readme.read_text(encoding="utf-8") == f"{before}{report.BEGIN}new\n{report.END}{after}"


@pytest.mark.parametrize("text", ["", report.BEGIN, report.END])
def test_a_missing_mark_is_named_and_nothing_written(readme, text):
    readme.write_text(text)
    with pytest.raises(UserError, match="README.md lacks the marks"):
        report.update_readme("new\n", report.BEGIN, report.END)
    assert readme.read_text() == text


def test_marks_in_the_wrong_order_are_refused(readme):
    text = f"{report.END}\nbetween\n{report.BEGIN}"
    readme.write_text(text)
    with pytest.raises(UserError, match="README.md"):
        report.update_readme("new\n", report.BEGIN, report.END)
    assert readme.read_text() == text


def test_the_readme_has_the_marks():
    text = report.README.read_text(encoding="utf-8")
    assert text.index(report.BEGIN) < text.index(report.END) < text.index(report.BOARD_BEGIN)
    assert text.index(report.BOARD_BEGIN) < text.index(report.BOARD_END)
