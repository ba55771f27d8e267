"""What tests of the command line share: a command as a person types it, and images as a person has them."""

from __future__ import annotations

import pytest

from tightframe import load_images
from tightframe.cli import main, terminal


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command as typed; gives its status, what it printed, and what it said on standard error."""
    monkeypatch.setattr(terminal.out, "width", 80)
    monkeypatch.setattr(terminal.err, "width", 80)

    def run(*arguments):
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Digits as PNG files in class folders, in a folder with a blank in its name."""
    root = tmp_path_factory.mktemp("images") / "my digits"
    data = load_images("digits:5-9", max_per_class=8).train
    for index, label in enumerate(data.labels):
        folder = root / f"digit {data.classes[label]}"
        folder.mkdir(parents=True, exist_ok=True)
        data[index].save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def tuned(images, names, tmp_path_factory):
    """The folder that ``tightframe tune`` wrote."""
    folder = tmp_path_factory.mktemp("tuned") / "net"
    short = ("--epochs", "2", "--lr", "0.05", "--weight-decay", "0.0001", "--block", "layer3.0")
    assert main(["tune", str(images), "--model", names["wide"], "--out", str(folder), *short]) == 0
    return folder
