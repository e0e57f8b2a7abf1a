"""Learning rate, weight decay and EMA decay against the reference."""

import json

import numpy as np
import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2.config import RunPlan
from efficientnetv2.training import schedules


def test_learning_rates_equal_the_reference(reference):
    table = json.loads((reference / "lr_schedules.json").read_text())
    assert len(table["values"]) == 8
    for name, expected in table["values"].items():
        decay, _, floor = name.partition("/min=")
        schedule = schedules.WarmupSchedule(
            table["initial_lr"],
            total_steps=table["total_steps"],
            steps_per_epoch=table["steps_per_epoch"],
            decay=decay,
            decay_factor=table["decay_factor"],
            decay_epochs=table["decay_epochs"],
            warmup_epochs=table["warmup_epochs"],
            minimal_lr=float(floor),
        )
        rates = [float(schedule(step)) for step in table["steps"]]
        np.testing.assert_allclose(rates, expected, rtol=1e-6, atol=1e-12)


def test_the_rate_goes_with_the_batch_size():
    config = config_lib.load(
        "fashion_mnist",
        hparam_str="train.batch_size=512,train.lr_base=0.016,"
        "train.lr_sched=constant,train.lr_warmup_epoch=0",
    )
    rate = schedules.learning_rate(config, config_lib.run_plan(config))
    assert float(rate(10)) == pytest.approx(0.032)


def test_weight_decay_ramps_and_can_be_switched_off():
    plan = RunPlan(1000, 10, 200)
    overrides = "train.weight_decay=1e-5,train.weight_decay_inc=3"
    config = config_lib.load("fashion_mnist", hparam_str=overrides)
    assert schedules.weight_decay(config, plan, 0) == pytest.approx(1e-5)
    assert schedules.weight_decay(config, plan, 100) == pytest.approx(2.5e-5)
    assert schedules.weight_decay(config, plan, 200) == pytest.approx(4e-5)
    off = config_lib.load(
        "fashion_mnist",
        hparam_str=overrides,
        flags={"train.adaptive_weight_decay": False},
    )
    for step in (0, 100, 200):
        assert schedules.weight_decay(off, plan, step) == 1e-5


def test_ema_decay_rises_to_its_limit():
    config = config_lib.load(
        "fashion_mnist", hparam_str="train.ema_decay=0.9999"
    )
    assert schedules.ema_decay(config, 0) == pytest.approx(0.1)
    assert schedules.ema_decay(config, 90) == pytest.approx(0.91)
    assert schedules.ema_decay(config, 10**7) == 0.9999
    assert float(schedules.ema_decay(config, np.float32(90))) == pytest.approx(
        0.91
    )
