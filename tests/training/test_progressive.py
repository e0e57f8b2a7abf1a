"""Stages and ramps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efficientnetv2 import config as config_lib
from efficientnetv2.config import RunPlan
from efficientnetv2.training import progressive, schedules


def _stages(overrides="", flags=None):
    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-m",
        recipe="imagenet_code",
        hparam_str="train.batch_size=100" + (overrides and "," + overrides),
        flags=flags,
    )
    return progressive.build_stages(config, config_lib.run_plan(config))


def test_the_released_code_sizes():
    # Table of the reference: int(128 + (384 - 128) * (k + 1) / 4).
    assert [s.image_size for s in _stages()] == [192, 256, 320, 384]


def test_the_paper_sizes():
    stages = _stages("train.isize_rule=paper,train.isize=380")
    assert [s.image_size for s in stages] == [128, 212, 296, 380]


def test_regularization_ramps_from_first_to_last():
    stages = _stages()
    assert [s.randaugment_magnitude for s in stages] == pytest.approx(
        [5, 5 + 10 / 3, 5 + 20 / 3, 15]
    )
    assert [s.mixup_alpha for s in stages] == pytest.approx(
        [0, 0.2 / 3, 0.4 / 3, 0.2]
    )
    assert [s.cutmix_alpha for s in stages] == [s.mixup_alpha for s in stages]
    assert len({s.dropout_rate for s in stages}) == 1  # the code's constant


@pytest.mark.parametrize(
    ("switch", "columns"),
    [
        ("progressive_image_size", ["image_size"]),
        ("adaptive_randaugment", ["randaugment_magnitude"]),
        ("adaptive_mixing", ["mixup_alpha", "cutmix_alpha"]),
        ("adaptive_dropout", ["dropout_rate"]),
    ],
)
def test_off_means_the_final_value_throughout(switch, columns):
    overrides = "model.dropout_base=0.1"
    on = _stages(overrides)
    off = _stages(overrides, {f"train.{switch}": False})
    for name in on[0].__dataclass_fields__:
        before = [getattr(stage, name) for stage in on]
        after = [getattr(stage, name) for stage in off]
        if name in columns:
            assert len(set(before)) > 1
            assert after == [before[-1]] * len(on)
        else:
            assert after == before


def test_in_the_fashion_mnist_recipe_every_ramp_is_real():
    for recipe in ("fashion_mnist", "fashion_mnist_best"):
        config = config_lib.load("fashion_mnist", recipe=recipe)
        plan = config_lib.run_plan(config)
        stages = progressive.build_stages(config, plan)
        for column in (
            "image_size",
            "randaugment_magnitude",
            "dropout_rate",
        ):
            assert len({getattr(s, column) for s in stages}) > 1, column
        mixing = {(s.mixup_alpha, s.cutmix_alpha) for s in stages}
        assert len(mixing) > 1
        assert schedules.weight_decay(
            config, plan, plan.total_steps
        ) > schedules.weight_decay(config, plan, 0)


@settings(max_examples=200, deadline=None)
@given(
    stages=st.integers(1, 40),
    epochs=st.floats(0.1, 5),
    ibase=st.integers(8, 512),
    isize=st.integers(8, 512),
    rule=st.sampled_from(["code", "paper"]),
)
def test_stages_cover_all_steps_without_a_gap(
    stages, epochs, ibase, isize, rule
):
    config = config_lib.load("fashion_mnist").copy_and_resolve_references()
    config.unlock()
    config.train.update(
        dict(stages=stages, isize=float(isize), isize_rule=rule)
    )
    config.data.ibase = ibase
    plan = RunPlan(1000, 100, max(stages, int(100 * epochs)))
    built = progressive.build_stages(config, plan)
    assert built[0].first_step == 0
    assert built[-1].last_step == plan.total_steps
    assert built[-1].image_size == isize
    low, high = min(ibase, isize), max(ibase, isize)
    for stage, following in zip(built, built[1:], strict=False):
        assert stage.last_step == following.first_step
    for stage in built:
        assert stage.first_step < stage.last_step
        assert low <= stage.image_size <= high
    order = progressive.stage_of_steps(config, built)
    assert order.dtype == np.int32 and order.shape == (plan.total_steps,)
    for index, stage in enumerate(built):
        assert (order[stage.first_step : stage.last_step] == index).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), stages=st.integers(1, 7))
def test_random_order_draws_all_stages_equally(seed, stages):
    config = config_lib.load(
        "fashion_mnist",
        hparam_str=f"train.stage_order=random,train.stages={stages}",
        flags={"train.seed": seed},
    )
    steps = 7000
    built = progressive.build_stages(config, RunPlan(1000, 100, steps))
    order = progressive.stage_of_steps(config, built)
    assert order.shape == (steps,)
    counts = np.bincount(order, minlength=stages)
    assert counts.sum() == steps and len(counts) == stages
    # Six standard deviations of a binomial.
    deviation = (steps / stages * (1 - 1 / stages)) ** 0.5
    assert np.abs(counts - steps / stages).max() <= 6 * deviation
    # Neighbours are independent: one in `stages` pairs is equal.
    equal = (order[1:] == order[:-1]).sum()
    assert abs(equal - steps / stages) <= 6 * deviation + 1


def test_a_step_draws_the_same_stage_in_a_longer_run():
    config = config_lib.load(
        "fashion_mnist", hparam_str="train.stage_order=random"
    )
    short, long = (
        progressive.stage_of_steps(
            config,
            progressive.build_stages(config, RunPlan(1000, 100, steps)),
        )
        for steps in (300, 500)
    )
    np.testing.assert_array_equal(short, long[:300])
    other = config_lib.load(
        "fashion_mnist", hparam_str="train.stage_order=random,train.seed=1"
    )
    built = progressive.build_stages(other, RunPlan(1000, 100, 300))
    assert not np.array_equal(progressive.stage_of_steps(other, built), short)


def test_the_table_says_that_stages_are_drawn():
    table = progressive.format_table(
        _stages(), 600, "randaug", lambda step: 1e-5 * (1 + step), "random"
    )
    *lines, note = table.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert all("drawn" in line for line in lines[1:])
    # Weight decay follows the step, so each row shows its whole ramp.
    assert all("1e-05 - 1.93" in line for line in lines[1:])
    assert "draws one of the 4 stages" in note


def test_the_table_shows_every_stage():
    stages = _stages()
    table = progressive.format_table(stages, 600, "randaug", lambda step: 1e-5)
    lines = table.splitlines()
    assert len(lines) == 5
    assert len({len(line) for line in lines}) == 1
    assert "384" in lines[-1] and "15" in lines[-1] and "1e-05" in lines[-1]
