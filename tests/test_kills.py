"""Runs that are killed at random moments end with the same weights."""

import multiprocessing
import pathlib
import random

import pytest

from efficientnetv2 import checkpoints
from efficientnetv2 import config as config_lib
from tests.conftest import TINY, assert_same

pytestmark = pytest.mark.slow

KILLS = 20
# Of one life of a process, which needs a part of this for its first step.
MOST_SECONDS = 6.0
OVERRIDES = (
    "train.epochs=40,train.stages=4,train.batch_size=20,data.cutmix_alpha=1,"
    "model.survival_prob=0.8,data.aug_prob=1,checkpoint.every_steps=3,"
    "eval.every_epochs=4"
)


def train(dataset: str, model_dir: str) -> None:
    """Trains, or goes on; runs in a process of its own."""
    from efficientnetv2 import api

    config = config_lib.load(
        dataset, recipe="fashion_mnist", hparam_str=f"{TINY},{OVERRIDES}"
    )
    api.execute(config, model_dir, mode="train", log=lambda _: None)


@pytest.fixture
def process():
    """Starts `train` in a fresh process, TensorFlow being imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["efficientnetv2.api", __name__])

    def start(*arguments):
        child = context.Process(target=train, args=arguments)
        child.start()
        return child

    return start


def _result(model_dir: pathlib.Path):
    checkpoint = checkpoints.load_latest(model_dir)
    return checkpoint.arrays, [
        (each["step"], each["top1"], each["cross_entropy"])
        for each in checkpoint.meta["history"]["evaluations"]
    ]


def test_twenty_kills_change_nothing(tmp_path, photos, process):
    whole = process(photos, str(tmp_path / "whole"))
    whole.join()
    assert whole.exitcode == 0
    expected, evaluations = _result(tmp_path / "whole")
    assert len(evaluations) == 10
    chance, kills, runs = random.Random(0), 0, 0
    while kills < KILLS:
        model_dir = tmp_path / f"killed{runs}"
        runs += 1
        finished = False
        while not finished:
            child = process(photos, str(model_dir))
            if kills < KILLS:
                child.join(chance.uniform(0, MOST_SECONDS))
            else:
                child.join()
            finished = child.exitcode == 0
            if not finished:
                assert child.exitcode is None, "the run failed by itself"
                child.kill()
                child.join()
                kills += 1
        arrays, again = _result(model_dir)
        assert again == evaluations
        assert_same(arrays, expected)
