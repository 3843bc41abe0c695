"""A run filed as a result: its evidence, the command that gives its settings, the tables."""

import fcntl
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_run, write

import train
from evaluate import evaluate
from tiny_imagenet import ROOT
from tiny_imagenet.errors import UserError
from tiny_imagenet.recipes import BASE, RECIPES
from tiny_imagenet.run_dir import Point
from tools import report, tables

PNG = b"\x89PNG\r\n\x1a\n"
POINTS = [("train", 0.9, 60), ("validation", 0.29, 90), ("validation", 0.41, 120), ("validation", 0.46, 600)]


def curves(*points) -> str:
    lines = [{"split": split, "step": 1, "data_loss": 1.0, "top_1": top, "seconds": s} for split, top, s in points]
    return "".join(f"{json.dumps(line)}\n" for line in [*lines, {"split": "end", "step": 1, "seconds": 630}])


@pytest.fixture(scope="module")
def run(sample_dir, tmp_path_factory) -> Path:
    """A finished run."""
    folder = make_run(tmp_path_factory.mktemp("runs"), sample_dir, model_name="logistic_regression", batch_size=20)
    (folder / "metrics.jsonl").write_text(curves(*POINTS))
    return folder


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch) -> Path:
    """A folder for results, a README and a page of results, in the place of the real ones."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(tables, "TINY_IMAGENET", (10, 200))  # the sample set's numbers
    monkeypatch.setattr(tables, "README", write(tmp_path / "README.md", marks("summary")))
    monkeypatch.setattr(tables, "PAGE", write(tmp_path / "results.md", marks("results") + marks("board")))
    return tmp_path / "results"


def marks(name: str, table: str = "", options: str = "") -> str:
    return f"<!-- {name}: written by tools/report.py{options} -->\n{table}<!-- end of {name} -->"


def call(monkeypatch, *words) -> str | int:
    """Calls the command in this process and returns what it exits with."""
    monkeypatch.setattr("sys.argv", ["report.py", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        report.main()
    return ended.value.code


def test_a_result_is_a_claim_with_its_evidence_and_names_no_folder(run, results, sample_dir):
    description = json.loads((run / "config.json").read_text()) | {"resumed": ["numpy was 1, now 2"]}
    (run / "config.json").write_text(json.dumps(description))
    folder = report.file_result(run, "first", remark="alongside other runs")
    assert {path.name for path in folder.iterdir()} == {"config.json", "curves.png", "metrics.jsonl", "result.json"}
    assert (folder / "curves.png").read_bytes().startswith(PNG)
    assert (folder / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()
    found, scores = json.loads((folder / "result.json").read_text()), evaluate(run, None)
    assert found.items() >= {name: value for name, value in scores.items() if name != "run"}.items()
    assert (found["images"], found["view"], found["checkpoint"], found["n"]) == (50, "center crop", "best", 1)
    assert found["command"].startswith("python train.py --model-name logistic_regression --batch-size 20")
    assert (found["resumed"], found["remark"]) == (["numpy was 1, now 2"], "alongside other runs")
    assert {"hardware", "backend", "versions"} <= found.keys()
    settings = json.loads((folder / "config.json").read_text())["config"]
    assert settings["batch_size"] == 20 and not {"data_dir", "runs_dir", "config_name"} & settings.keys()
    texts = "".join(path.read_text() for path in folder.glob("*.json*"))
    assert str(sample_dir) not in texts and str(run) not in texts


def test_only_a_finished_run_is_filed(results, sample_dir, tmp_path):
    half = make_run(tmp_path, sample_dir, model_name="logistic_regression")
    (half / "metrics.jsonl").write_text('{"split": "validation", "seconds": 60}')
    for folder, message in ((half, "has not finished"), (tmp_path / "nowhere", "is not a run")):
        with pytest.raises(UserError, match=message):
            report.file_result(folder, "first")
    assert not results.exists()


CONFIGS = {f"recipe {name}": config for name, config in RECIPES.items()} | {
    "all kinds": replace(BASE, lr=1e-05, random_crop=False, skip_bad_images=True, model_name="vgg_16_bn", loss="svm"),
    "a recipe, changed": replace(RECIPES["logistic_regression"], lr=0.25, random_flip=False, saturation=(0.25, 1.5)),
    "a recipe, reset": replace(RECIPES["demo"], num_epochs=BASE.num_epochs, seed=7),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_command_gives_the_settings(config):
    places = {"config_name": "here", "data_dir": "/there", "runs_dir": "/elsewhere"}
    program, script, *words = shlex.split(report.train_command(replace(config, **places)))
    assert (program, script) == ("python", "train.py")
    assert not set(words) & set(places.values())
    assert train.parse(words).config == config


def test_the_command_is_the_shortest():
    assert report.train_command(BASE, "jax") == "KERAS_BACKEND=jax python train.py"
    assert report.train_command(replace(BASE, saturation=(1.0, 2.0))) == "python train.py --saturation 1.0 2.0"
    expected = "python train.py --recipe logistic_regression --lr 0.5 --no-random-crop"
    assert report.train_command(replace(RECIPES["logistic_regression"], lr=0.5, random_crop=False)) == expected
    for given in ("/home/someone/runs/losses/vgg_16/first", "runs/vgg_16/first", str(ROOT / "runs/vgg_16/first")):
        assert report.train_command(replace(BASE, init_from=given)).endswith(" --init-from runs/vgg_16/first")


def write_result(results, name, *points, **changes):
    row = {"single_crop_top_1": 0.1, "single_crop_top_5": 0.3, "ten_crop_top_1": 0.125, "ten_crop_top_5": 0.35}
    row |= {"images": 5000, "parameters": 1234, "seconds": 90, "hardware": "2 cores", "command": "python train.py"}
    row |= {"view": "center crop", "checkpoint": "best", "calibration_error": 0.04}
    write(results / name / "result.json", json.dumps(row | changes))
    write(results / name / "metrics.jsonl", curves(*points))
    data = {"fingerprint": "", "train": 200, "val": 50}
    description = {"data": data, "config": {"batch_size": 400}, "class_ids": ["n"] * 10, "class_names": ["n"] * 10}
    write(results / name / "config.json", json.dumps(description))


def test_the_table_goes_from_the_least_to_the_most_accurate(results):
    assert tables.results_table() == ""
    write_result(results, "a_best", single_crop_top_1=0.52, made_by="make all", remark="alongside others")
    write_result(results, "z_least", single_crop_top_1=0.03, seconds=3600, images=10000)
    *rows, _, caption = tables.results_table().splitlines()
    percents = "30.0 % | 12.5 / 35.0 %"
    assert rows[2] == f"| [z_least](../results/z_least) | 3.0 / {percents} | 60 min, 2 cores | `python train.py` |"
    assert rows[3].endswith(f" | 52.0 / {percents} | 1.5 min, 2 cores, alongside others | `make all` |")
    assert len({row.count("|") for row in rows}) == 1
    assert "on 5,000 or 10,000 validation images. The single crop is the center crop, and the checkpoint is" in caption
    assert "was best on these images" in caption
    write_result(results, "z_least", view="whole image, scaled", checkpoint="last")
    assert "| [z_least](../results/z_least) (whole image, scaled, last checkpoint) | " in tables.results_table()
    assert "Unless noted, the single crop is the center crop, and the checkpoint is the" in tables.results_table()
    write_result(results, "group/only", view="whole image, scaled", checkpoint="last")
    assert "| [only](../results/group/only) | 10.0 / 30.0 % | 12.5 / 35.0 % | 4.0 % | " in tables.results_table("group")
    assert "is the whole image, scaled, and the checkpoint is the last one." in tables.results_table("group")


def test_the_summary_has_the_results_of_models_and_recipes_best_first(results, monkeypatch):
    assert tables.summary_table() == ""
    cpu, remark = "16 cores, Intel(R) Xeon(R) Processor", "alongside others"
    write_result(results, "vgg_16", single_crop_top_1=0.03, hardware=cpu)
    write_result(results, "demo", single_crop_top_1=0.52, hardware=f"{cpu}, NVIDIA H200", remark=remark)
    write_result(results, "an_experiment", single_crop_top_1=0.9)
    assert call(monkeypatch) == 0
    assert tables.README.read_text() == marks("summary", tables.summary_table())
    _, _, best, least = tables.summary_table().splitlines()
    assert best == "| [demo](results/demo) | 1,234 | 52.0 / 12.5 % | 1.5 min, NVIDIA H200, alongside others |"
    assert least == "| [vgg_16](results/vgg_16) | 1,234 | 3.0 / 12.5 % | 1.5 min, 16 cores, Intel Xeon |"


def test_text_of_a_stranger_stays_in_its_cell(results, monkeypatch):
    evil = "a|b\n<!-- end of results -->`rm`[x](y)\x1b[2J"
    for number in range(2):
        write_result(results, f"r{number}", *POINTS, hardware=evil, command=evil, remark=evil, checkpoint="last")
    write_result(results, "x|y <b>", *POINTS, versions={evil: evil}, view=evil, made_by=evil, checkpoint="last")
    for _ in range(2):
        assert call(monkeypatch) == 0
        text = tables.PAGE.read_text()
        assert text.count("<!-- end of results -->") == 1 and "\x1b" not in text and "<b>" not in text
        assert text == marks("results", tables.results_table()) + marks("board", tables.board())
        assert {len(re.findall(r"(?<!\\)\|", row)) for row in tables.results_table().splitlines()[:5]} == {6}


OTHER = {"data": {"fingerprint": "", "train": 99, "val": 50}, "config": {}, "class_ids": ["n"], "class_names": ["n"]}
LEFT_OUT = [
    ("result.json", "{}", "it has no 'single_crop_top_1'"),
    ("config.json", "[", "config.json is damaged: "),
    ("config.json", json.dumps(OTHER), "was trained on 1 classes and 99 training images, not on Tiny ImageNet"),
    ("metrics.jsonl", '{"split": "train", "step": 1, "seconds": 1}', "lacks its loss or its top-1"),
]


@pytest.mark.parametrize(("name", "content", "words"), LEFT_OUT)
def test_a_damaged_or_other_result_is_left_out_with_a_line(results, monkeypatch, capsys, name, content, words):
    for folder in ("good", "bad"):
        write_result(results, folder, *POINTS)
    write(results / "bad" / name, content)
    assert call(monkeypatch) == 0
    assert "[good]" in tables.PAGE.read_text() and "[bad]" not in tables.PAGE.read_text()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("left out of the tables: ") and words in line and str(results / "bad") in line


def test_the_board_has_the_minutes_to_each_level(results):
    write_result(results, "too_low", ("validation", 0.2, 60), checkpoint="last")
    write_result(results, "chosen_by_validation", *POINTS, single_crop_top_1=0.5)
    assert tables.board() == ""
    machine = {"machine_speed": 56.7, "versions": {"keras": "3", "tensorflow": "2"}}
    write_result(results, "fast", *POINTS, single_crop_top_1=0.46, seconds=630, checkpoint="last", **machine)
    heading, _, row = tables.board().splitlines()
    assert heading.startswith("| minutes to a top-1 of | 30 % | 40 % | 45 % | 50 % |")
    numbers = "2.0 | 2.0 | 10 |  |  |  |  | 46.0 % in 10"
    assert row == f"| [fast](../results/fast) | {numbers} | 2 cores, keras 3, tensorflow 2 | 57 images/s |"
    exactly = [Point("validation", 120, top_1=float(np.float32(0.52)))]
    assert (tables.minutes_to(exactly, 52), tables.minutes_to(exactly, 55)) == (2, None)


def test_the_curves_of_all_results_are_drawn_by_minutes_or_epochs(results):
    write_result(results, "first", ("validation", 0.25, 90), ("train", 0.9, 100), ("validation", 0.5, 180))
    for by_minutes, scale, expected in ((True, "log", [[1.5, 25], [3, 50]]), (False, "linear", [[2, 25], [2, 50]])):
        (axes,) = tables.draw_comparison(tables.read_results(results), by_minutes).axes
        (line,) = axes.lines
        assert line.get_xydata().tolist() == expected
        assert (line.get_label(), axes.get_xscale()) == ("first: 2 cores", scale)


def test_the_command_files_a_group_apart_from_the_main_table(run, results, tmp_path, monkeypatch):
    group = marks("losses", options=" --group losses")
    tables.PAGE.write_text(marks("results") + "\n# Título\n" + marks("board") + group, encoding="utf-8")
    images = write(tmp_path / "images.txt", "val_0.JPEG\nval_1.JPEG\n")
    words = (run, "--group", "losses", "--name", "svm", "--images", images, "--made-by", "make all")
    assert call(monkeypatch, *words) == 0
    row = json.loads((results / "losses/svm/result.json").read_text())
    assert (row["made_by"], row["images"]) == ("make all", 2)
    assert f"[svm](svm) | {100 * row['single_crop_top_1']:.1f} / " in (results / "losses/README.md").read_text()
    expected = marks("losses", tables.results_table("losses"), " --group losses")
    text = marks("results") + "\n# Título\n" + marks("board") + expected
    assert tables.PAGE.read_text(encoding="utf-8") == text
    assert (results / "losses/curves.png").read_bytes().startswith(PNG)
    assert not (results / "curves.png").exists()  # there is no result outside the group
    assert "results/losses/svm already exists" in call(monkeypatch, *words)
    assert call(monkeypatch, *words, "--replace") == 0
    assert tables.PAGE.read_text(encoding="utf-8") == text
    tables.PAGE.write_text(marks("results") + marks("board"))
    assert call(monkeypatch, "--group", "losses") == 0  # the page need not have marks for it
    assert "--group is '../losses'" in call(monkeypatch, run, "--group", "../losses")
    assert "no result of Tiny ImageNet is filed there" in call(monkeypatch, "--group", "loses")
    for speed in ("0", "nan"):
        assert "--machine-speed" in call(monkeypatch, run, "--machine-speed", speed)


def test_the_tables_are_written_by_one_process_at_a_time(results, monkeypatch):
    def check_lock(group):
        with pytest.raises(BlockingIOError):
            fcntl.flock(os.open(results, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)

    monkeypatch.setattr(report, "write_tables", check_lock)
    assert call(monkeypatch) == 0


@pytest.mark.parametrize("text", ["", marks("results")[:45], f"<!-- end of results -->\n{marks('results')[:45]}"])
def test_missing_or_swapped_marks_are_named_and_nothing_is_written(text):
    tables.README.write_text(text)
    with pytest.raises(UserError, match="README.md lacks the marks"):
        tables.update_page(tables.README, "results", "new\n")
    assert tables.README.read_text() == text
