"""A small study, and a runner that trains nothing."""

import json
import pathlib

import pytest

from efficientnetv2.study import definition, records
from tests.study import made_up

SMALL = {
    "title": "Two dropout rates",
    "dataset": "fashion_mnist",
    "recipe": "fashion_mnist",
    "overrides": "train.epochs=2, train.isize=24,\n data.ibase=16",
    "base": "little",
    "arms": {
        "little": {
            "title": "dropout 0.1",
            "overrides": "model.dropout_rate=0.1",
        },
        "much": {"title": "dropout 0.5", "overrides": "model.dropout_rate=0.5"},
    },
    "hypotheses": [
        {
            "claim": "Less dropout is better.",
            "test": "better",
            "arm": "little",
            "against": "much",
        }
    ],
}


@pytest.fixture
def small():
    """A study of two arms."""
    return definition.parse("small", SMALL)


@pytest.fixture
def code(monkeypatch):
    """What `records.code_hashes` returns in this test."""
    hashes = dict(made_up.CODE)
    monkeypatch.setattr(records, "code_hashes", lambda dataset: dict(hashes))
    return hashes


class FakeRuns:
    """Stands for the processes of runs: leaves the files that main leaves.

    Attributes:
        commands: that were run.
        before: called with the command before its files are written.
    """

    def __init__(self):
        self.commands: list[list[str]] = []
        self.before = lambda command: None

    def __call__(self, command, output: pathlib.Path, lock: int) -> None:
        self.commands.append(list(command))
        self.before(command)
        options = dict(
            part[2:].split("=", 1) for part in command if part.startswith("--")
        )
        seed = int(options["seed"])
        entry = {
            "top1": 0.8 + seed / 100,
            "top5": 0.99,
            "images": 5000,
            "step": 858,
            "epoch": 2.0,
            "train_seconds": 100.0,
            "evaluation_seconds": 10.0,
        }
        metrics = {
            "finished": True,
            "test": entry | {"images": 10000},
            "best": entry,
            "evaluations": [entry],
            "train_seconds": 101.0,
            "evaluation_seconds": 10.0,
            "environment": made_up.ENVIRONMENT | {"command": "main"},
        }
        folder = pathlib.Path(options["model_dir"])
        (folder / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def runs():
    return FakeRuns()
