"""Fixtures that several test files share."""

import signal
from pathlib import Path

import pytest

import tiny_imagenet  # noqa: F401  first: it loads TensorFlow quietly


@pytest.fixture(scope="session")
def sample_dir(tmp_path_factory) -> Path:
    """A sample set of ten classes with 20 training and 5 validation images each."""
    from tools.sample_data import draw_sample_set

    folder = tmp_path_factory.mktemp("data") / "sample"
    draw_sample_set(folder, train_per_class=20, val_per_class=5)
    return folder


@pytest.fixture(autouse=True)
def sigint_handler():
    """Restores the handler of Ctrl-C, which `cli.command` replaces for the whole process."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


SLOWEST = ("devices", "readme", "train", "resume", "notebooks", "cli", "models", "input_pipe")


def pytest_configure():
    """Lets Ctrl-C reach the scripts under test, even where the tests themselves run in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Starts the slowest files first, so that two processes end at about the same time."""
    order = {f"test_{name}.py": number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(SLOWEST)))
