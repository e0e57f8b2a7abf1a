"""Stages and ramps."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2 import config as config_lib
from efficientnetv2 import progressive
from efficientnetv2.config import ConfigError
from efficientnetv2.data import registry
from tests.conftest import examples


def _stages(overrides="", flags=None):
    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-m",
        recipe="imagenet_code",
        hparam_str="train.batch_size=100" + (overrides and "," + overrides),
        flags=flags,
    )
    return config_lib.run_plan(config).stages


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


def test_in_the_fashion_mnist_recipe_every_ramp_is_active():
    for recipe in ("fashion_mnist", "fashion_mnist_best"):
        config = config_lib.load("fashion_mnist", recipe=recipe)
        plan = config_lib.run_plan(config)
        stages = plan.stages
        for column in (
            "image_size",
            "randaugment_magnitude",
            "dropout_rate",
        ):
            assert len({getattr(s, column) for s in stages}) > 1, column
        mixing = {(s.mixup_alpha, s.cutmix_alpha) for s in stages}
        assert len(mixing) > 1
        assert progressive.weight_decay(
            config, plan, plan.total_steps
        ) > progressive.weight_decay(config, plan, 0)


@examples(200)
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
    steps = max(stages, int(100 * epochs))
    plan = progressive.plan_run(config, 1000, steps)
    built = plan.stages
    assert built[0].first_step == 0
    assert built[-1].last_step == plan.total_steps
    assert built[-1].image_size == isize
    low, high = min(ibase, isize), max(ibase, isize)
    for stage, following in zip(built, built[1:], strict=False):
        assert stage.last_step == following.first_step
    for stage in built:
        assert stage.first_step < stage.last_step
        assert low <= stage.image_size <= high
    order = plan.stage_of_steps
    assert order.dtype == np.int32 and order.shape == (plan.total_steps,)
    for index, stage in enumerate(built):
        assert (order[stage.first_step : stage.last_step] == index).all()


_CONFIG = config_lib.load("fashion_mnist").to_dict()
_SWITCHES = {
    "progressive_image_size": ["image_size"],
    "adaptive_randaugment": ["randaugment_magnitude"],
    "adaptive_mixing": ["mixup_alpha", "cutmix_alpha"],
    "adaptive_dropout": ["dropout_rate"],
}
_MAGNITUDES = st.floats(0, 100)
_RATES = st.floats(0, 0.999)


@examples(150)
@given(
    images=st.integers(1, 2000),
    batch_size=st.integers(1, 64),
    epochs=st.floats(1e-6, 5),
    min_steps=st.integers(0, 20),
    train=st.fixed_dictionaries(
        {
            "stages": st.integers(1, 9),
            "isize": st.integers(8, 512).map(float),
            "isize_rule": st.sampled_from(["code", "paper"]),
            **{switch: st.booleans() for switch in _SWITCHES},
        }
    ),
    data=st.fixed_dictionaries(
        {
            "ibase": st.integers(8, 512),
            "ram_base": _MAGNITUDES,
            "ram": _MAGNITUDES,
            "mixup_alpha_base": _MAGNITUDES,
            "mixup_alpha": _MAGNITUDES,
            "cutmix_alpha_base": _MAGNITUDES,
            "cutmix_alpha": _MAGNITUDES,
        }
    ),
    dropout_base=st.none() | _RATES,
    dropout=_RATES,
)
def test_every_valid_run_has_stages_without_gaps_and_monotone_ramps(
    images, batch_size, epochs, min_steps, train, data, dropout_base, dropout
):
    config = config_lib.ml_collections.ConfigDict(_CONFIG)
    config.train.update(
        train,
        batch_size=batch_size,
        batch_parts=1,
        epochs=epochs,
        min_steps=min_steps,
    )
    config.data.update(data)
    config.model.dropout_base = dropout_base
    config.model.dropout_rate = dropout
    info = registry.load_info("fashion_mnist")
    splits = {name: registry.Split(images) for name in info.splits}
    with pytest.MonkeyPatch.context() as patch:
        info = dataclasses.replace(info, splits=splits)
        patch.setattr(registry, "load_info", lambda _: info)
        plan = config_lib.run_plan(config)
        is_valid = batch_size <= images and train["stages"] <= plan.total_steps
        if not is_valid:
            with pytest.raises(ConfigError, match="is more than the"):
                config_lib.check(config)
            return
        config_lib.check(config)

    assert 0 <= images - plan.steps_per_epoch * batch_size < batch_size
    steps = epochs * plan.steps_per_epoch
    assert abs(plan.total_steps - steps) <= 0.5 or (
        plan.total_steps == max(min_steps, 1) > steps - 0.5
    )
    stages = plan.stages
    assert len(stages) == train["stages"]
    ends = [stage.last_step for stage in stages]
    assert [stage.first_step for stage in stages] == [0, *ends[:-1]]
    assert ends[-1] == plan.total_steps
    lengths = [stage.last_step - stage.first_step for stage in stages]
    assert 1 <= min(lengths) and max(lengths) - min(lengths) <= 1
    assert {stage.batch_size for stage in stages} == {batch_size}

    ramps = {
        "image_size": (data["ibase"], int(train["isize"])),
        "randaugment_magnitude": (data["ram_base"], data["ram"]),
        "mixup_alpha": (data["mixup_alpha_base"], data["mixup_alpha"]),
        "cutmix_alpha": (data["cutmix_alpha_base"], data["cutmix_alpha"]),
        "dropout_rate": (
            dropout if dropout_base is None else dropout_base,
            dropout,
        ),
    }
    switches = {
        column: train[switch]
        for switch, columns in _SWITCHES.items()
        for column in columns
    }
    for column, (first, last) in ramps.items():
        values = [getattr(stage, column) for stage in stages]
        assert values[-1] == last, column
        if not switches[column] or len(values) == 1:
            assert set(values) == {last}, column
            continue
        sign = 1 if first <= last else -1
        # A ramp of floats may miss by the last bits.
        rising = np.diff(np.multiply(values, sign))
        assert rising.min() >= -1e-12 * max(first, last), column
        assert sign * first <= sign * values[0], column
        if column != "image_size" or train["isize_rule"] == "paper":
            assert values[0] == first, column


@examples(30)
@given(seed=st.integers(0, 2**31 - 1), stages=st.integers(1, 7))
def test_random_order_draws_all_stages_equally(seed, stages):
    config = config_lib.load(
        "fashion_mnist",
        hparam_str=f"train.stage_order=random,train.stages={stages}",
        flags={"train.seed": seed},
    )
    steps = 7000
    order = progressive.plan_run(config, 1000, steps).stage_of_steps
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
        progressive.plan_run(config, 1000, steps).stage_of_steps
        for steps in (300, 500)
    )
    np.testing.assert_array_equal(short, long[:300])
    other = config_lib.load(
        "fashion_mnist", hparam_str="train.stage_order=random,train.seed=1"
    )
    drawn = progressive.plan_run(other, 1000, 300).stage_of_steps
    assert not np.array_equal(drawn, short)


def _table(overrides):
    config = config_lib.load(
        "fashion_mnist",
        model_name="efficientnetv2-m",
        recipe="imagenet_code",
        hparam_str=f"train.epochs=4,train.batch_size=128,{overrides}",
    )
    plan = config_lib.run_plan(config)
    text = progressive.describe(config, plan)
    assert max(map(len, text.split("\n"))) <= 80
    return progressive.table(config, plan), text


def test_the_table_says_that_stages_are_drawn():
    rows, text = _table("train.stage_order=random,train.weight_decay_inc=1")
    assert len(rows) == 5
    assert all(row[2] == "drawn" for row in rows[1:])
    # Weight decay follows the step, so each row shows its whole ramp.
    assert {row[8] for row in rows[1:]} == {"1e-05 to 2e-05"}
    assert "In all stages: epochs 0-4, from step drawn" in text


def test_the_table_shows_every_stage():
    rows, text = _table("data.augname=randaug")
    assert len(rows) == 5
    assert len({len(row) for row in rows}) == 1
    assert {"384", "15", "1e-05"} <= set(rows[-1])
    # What is the same everywhere stands below.
    assert "batch size 128" in text.split("\n")[-1] and "15" in text
    without, text = _table("data.augname=null")
    assert [row[4] for row in without[1:]] == ["-"] * 4
    assert "RandAugment" not in text
    _, text = _table("train.stages=1")
    assert text.startswith("stage 1, epochs 0-4, from step 0, image size 38")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_its_columns(width):
    config = config_lib.load("fashion_mnist")
    plan = config_lib.run_plan(config)
    text = progressive.describe(config, plan, width)
    lines = text.split("\n")
    assert max(map(len, lines)) <= width
    # In blocks, each of which names the stages again.
    blocks = sum(line.startswith("stage ") for line in lines)
    assert blocks == (2 if width == 40 else 1)
    words = text.replace("-\n", "").split()
    assert "CutMix" in words and "dropout" in words
