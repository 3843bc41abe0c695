"""What goes wrong around a run: a full disk, no permission, a folder that is removed, moved or half rewound."""

import ctypes
import resource
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
from helpers import quick_config
from test_resume import assert_same_run

from tiny_imagenet import checkpoint
from tiny_imagenet.callbacks import StepCallback
from tiny_imagenet.errors import UserError
from tiny_imagenet.run_dir import has_ended, list_checkpoints, read_config
from tiny_imagenet.summaries import Summaries, log_files
from train import parse, train


@pytest.fixture(scope="module")
def finished(sample_dir, tmp_path_factory):
    """The folder of a finished run of 20 steps; its checkpoints are those of the steps 10 and 20."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(Summaries, "start", lambda *_: None)  # no images, no graph
        yield train(quick_config(sample_dir, tmp_path_factory.mktemp("runs"), model_name="single_layer_nn", width=0.05))


@pytest.fixture
def copied(finished, tmp_path):
    """The settings of a copy of that run."""
    config = replace(read_config(finished)[0], runs_dir=str(tmp_path / "runs"))
    shutil.copytree(finished, config.run_dir)
    return config


def file_times(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@contextmanager
def file_size_limit(num_bytes: int):
    """As on a disk that is nearly full: the system refuses to let a file grow beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_can_be_resumed(finished, copied):
    folder = copied.run_dir
    first, last = list_checkpoints(folder)
    size, before = (last / "arrays.npz").stat().st_size, file_times(first)
    assert max(path.stat().st_size for path in log_files(folder)) < size // 3
    answer = f"cannot write {last} .File too large.; the previous version is kept; allow larger files"
    with file_size_limit(size * 3 // 4), pytest.raises(UserError, match=answer):
        train(copied, resume_from=first.name)
    assert list_checkpoints(folder) == [first]
    assert file_times(first) == before
    train(copied, resume=True)
    assert_same_run(folder, finished)


def test_a_disk_that_is_full_at_the_very_end_names_the_folder(finished, copied, monkeypatch):
    def end(self, *arguments, end=Summaries.end):
        with file_size_limit((copied.run_dir / "metrics.jsonl").stat().st_size + 9):
            end(self, *arguments)

    with monkeypatch.context() as patches:
        patches.setattr(Summaries, "end", end)
        with pytest.raises(UserError, match=f"logs in {copied.run_dir} .File too large.; the checkpoints are kept"):
            train(copied, resume=True)  # nothing is left to train
    train(copied, resume=True)
    assert has_ended(copied.run_dir)
    assert_same_run(copied.run_dir, finished)


@contextmanager
def permissions_of_a_user():
    """The permissions of files count even if the tests run as root, which lays down two capabilities meanwhile."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3; this thread
    every, fewer = (ctypes.c_uint32 * 6)(), (ctypes.c_uint32 * 6)()
    assert libc.capget(header, every) == libc.capget(header, fewer) == 0
    fewer[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, of the effective ones
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        libc.capset(header, every)


@pytest.mark.parametrize("exists", [False, True], ids=["new", "resumed"])
def test_a_folder_without_permission_is_one_line_and_unchanged(copied, exists):
    folder = copied.run_dir
    if not exists:
        shutil.rmtree(folder)
    before, closed = file_times(folder), [folder, folder / "checkpoints"] if exists else [folder.parent]
    for path in closed:
        path.chmod(0o555)
    with permissions_of_a_user(), pytest.raises((UserError, PermissionError), match="Permission denied") as error:
        train(copied, resume_from="step_00000010" if exists else None)
    assert str(folder) in str(error.value)
    assert file_times(folder) == before


def test_a_run_folder_that_is_removed_during_training_is_one_line_and_not_created_again(copied, monkeypatch):
    def on_train_batch_end(self, batch, logs, after_step=StepCallback.on_train_batch_end):
        if batch == 3:
            shutil.rmtree(copied.run_dir)
        after_step(self, batch, logs)

    monkeypatch.setattr(StepCallback, "on_train_batch_end", on_train_batch_end)
    with pytest.raises(UserError, match=f"cannot write {copied.run_dir}/.* {copied.run_dir}.* is gone"):
        train(copied, resume_from="step_00000010")
    assert not copied.run_dir.exists()


def test_rewinding_can_be_interrupted_at_any_moment(finished, copied, monkeypatch):
    """Later checkpoints are removed, then the logs are cut; here the process ends between the two."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(checkpoint, "cut_logs", interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(copied, resume_from="step_00000010")
    assert [path.name for path in list_checkpoints(copied.run_dir)] == ["step_00000010"]
    train(copied, resume=True)
    assert_same_run(copied.run_dir, finished)


def test_a_copy_under_another_name_is_resumed_and_the_original_left_alone(finished, copied):
    before, new = file_times(finished), copied.run_dir.rename(copied.run_dir.with_name("new"))
    words = ["--runs-dir", copied.runs_dir, "--model-name", copied.model_name, "--config-name", "new"]
    arguments = parse([*words, "--resume-from", "step_00000010"])
    assert train(arguments.config, arguments.resume, arguments.resume_from) == new
    assert not copied.run_dir.exists()
    assert file_times(finished) == before
    assert read_config(new)[0].config_name == "new"
    assert_same_run(new, finished)
