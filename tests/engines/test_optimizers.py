"""Optimizers and their schedules against the reference."""

import json

import keras
import ml_collections
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from efficientnetv2 import config as config_lib
from efficientnetv2 import progressive
from efficientnetv2.engines import optimizers
from efficientnetv2.progressive import RunPlan
from tests.conftest import examples


def test_learning_rates_equal_the_reference(reference):
    table = json.loads((reference / "lr_schedules.json").read_text())
    assert len(table["values"]) == 8
    for name, expected in table["values"].items():
        decay, _, floor = name.partition("/min=")
        schedule = optimizers.WarmupSchedule(
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


def test_the_average_is_the_one_of_the_released_code():
    """Its graph: the optimizer counts the step, then the average reads it."""
    v1 = tf.compat.v1
    values = np.random.default_rng(0).normal(size=20)
    theirs = []
    with tf.Graph().as_default(), v1.Session() as session:
        value = v1.get_variable("value", initializer=0.0, use_resource=True)
        step = v1.train.get_or_create_global_step()
        average = v1.train.ExponentialMovingAverage(0.6, num_updates=step)
        fed = v1.placeholder(tf.float32, [])
        with tf.control_dependencies([value.assign(fed)]):
            train = step.assign_add(1)
        with tf.control_dependencies([train]):
            update = average.apply([value])
        session.run(v1.global_variables_initializer())
        for each in values:
            session.run(update, {fed: each})
            theirs.append(session.run(average.average(value)))
    config = config_lib.load("fashion_mnist", hparam_str="train.ema_decay=0.6")
    ours = [0.0]
    for number, each in enumerate(values):
        decay = optimizers.ema_decay(config, number)
        ours.append(decay * ours[-1] + (1 - decay) * each)
    np.testing.assert_allclose(ours[1:], theirs, rtol=1e-5)
    early, late = (optimizers.ema_decay(config, step) for step in (9, 19))
    assert early < 0.6 == late


_CONFIG = config_lib.load("fashion_mnist").to_dict()


def _expected_rates(plan, train, peak, floor, steps):
    """Returns the released code's learning rates, in float64."""
    if train["lr_sched"] == "exponential":
        # In float32, as there: it decides at the edge of a stair, and a
        # power of many stairs shows it.
        width = np.float32(plan.steps_per_epoch * train["lr_decay_epoch"])
        stairs = np.floor(steps.astype(np.float32) / width)
        factor = np.float64(np.float32(train["lr_decay_factor"]))
        rates = peak * factor ** stairs.astype(np.float64)
    elif train["lr_sched"] == "cosine":
        rates = peak * (1 + np.cos(np.pi * steps / plan.total_steps)) / 2
    elif train["lr_sched"] == "linear":
        rates = peak * (1 - steps / plan.total_steps)
    else:
        rates = np.full(len(steps), peak)
    return np.maximum(rates, floor)


@examples(60)
@given(
    train=st.fixed_dictionaries(
        {
            "lr_sched": st.sampled_from(
                ["exponential", "cosine", "linear", "constant"]
            ),
            "lr_base": st.just(0.0) | st.floats(1e-12, 100),
            "lr_min": st.just(0.0) | st.floats(1e-12, 1),
            "lr_decay_epoch": st.floats(1e-9, 100),
            "lr_decay_factor": st.floats(0, 1),
            "lr_warmup_epoch": st.just(0.0) | st.floats(0, 20),
            "batch_size": st.integers(1, 10_000),
        }
    ),
    steps_per_epoch=st.integers(1, 3000),
    total_steps=st.integers(1, 300_000),
)
def test_any_schedule_follows_its_formula(train, steps_per_epoch, total_steps):
    config = ml_collections.ConfigDict(_CONFIG)
    config.train.update(train)
    plan = RunPlan(10**6, steps_per_epoch, total_steps)
    steps = np.unique(np.linspace(0, total_steps - 1, 200).astype(np.int64))
    warmup = int(train["lr_warmup_epoch"] * steps_per_epoch)
    steps = np.union1d(steps, [s for s in (warmup - 1, warmup) if s >= 0])
    steps = steps[steps < total_steps]

    # A schedule is elementwise, so one call does for all steps.
    rates = np.array(optimizers.learning_rate(config, plan)(steps))
    rates = np.broadcast_to(rates, steps.shape)
    peak, floor = (
        train[key] * train["batch_size"] / 256 for key in ("lr_base", "lr_min")
    )
    assert rates.dtype == np.float32
    assert np.isfinite(rates).all() and (rates >= 0).all()
    assert (rates <= max(peak, floor) * (1 + 1e-6)).all()

    rising = rates[steps < warmup]
    assert (np.diff(rising) >= 0).all()
    if len(rising):
        # From zero, on a line to the peak at the end of the warm-up.
        assert rising[0] == 0
        np.testing.assert_allclose(
            rising, peak * steps[: len(rising)] / warmup, rtol=1e-5
        )
    falling = rates[steps >= warmup]
    assert (np.diff(falling) <= max(peak, floor) * 1e-6).all()
    expected = _expected_rates(plan, train, peak, floor, steps)
    np.testing.assert_allclose(
        falling,
        expected[steps >= warmup],
        rtol=1e-4,
        atol=max(peak, floor) * 1e-6 + 1e-37,
    )
    assert (falling >= floor * (1 - 1e-6)).all()


@examples(60)
@given(
    base=st.floats(0, 1),
    increase=st.floats(-1, 100),
    total_steps=st.integers(1, 10**6),
    adaptive=st.booleans(),
)
def test_any_weight_decay_is_a_ramp_or_off(
    base, increase, total_steps, adaptive
):
    config = ml_collections.ConfigDict(_CONFIG)
    config.train.update(
        weight_decay=base,
        weight_decay_inc=increase,
        adaptive_weight_decay=adaptive,
    )
    plan = RunPlan(10**6, 100, total_steps)
    steps = np.linspace(0, total_steps, 50)
    values = progressive.weight_decay(config, plan, steps)
    if not adaptive:
        assert (values == base).all()
        return
    expected = base * (1 + increase * steps / total_steps)
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-12)


@examples(60)
@given(limit=st.floats(0, 0.9999999), step=st.integers(0, 10**6))
def test_any_ema_decay_rises_to_its_limit(limit, step):
    config = ml_collections.ConfigDict(_CONFIG)
    config.train.ema_decay = limit
    value, following = (
        optimizers.ema_decay(config, s) for s in (step, step + 1)
    )
    assert 0 <= value <= following <= limit
    assert value == limit or value == (2 + step) / (11 + step)
    in_float32 = float(optimizers.ema_decay(config, np.float32(step)))
    assert in_float32 == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("fused", [True, False])
def test_rmsprop_equals_the_reference(reference, fused, monkeypatch):
    if not fused:
        monkeypatch.setattr(
            optimizers.RMSProp, "_fused_apply", lambda self, *_: False
        )
    with np.load(reference / "rmsprop.npz") as expected:
        variable = keras.Variable(expected["weights"][0])
        optimizer = optimizers.RMSProp(
            float(expected["learning_rate"]),
            rho=float(expected["decay"]),
            momentum=float(expected["momentum"]),
            epsilon=float(expected["epsilon"]),
        )
        for gradient, weights in zip(
            expected["gradients"], expected["weights"][1:], strict=True
        ):
            optimizer.apply([tf.constant(gradient)], [variable])
            np.testing.assert_allclose(
                variable.numpy(), weights, rtol=0, atol=1e-5
            )


def _built(overrides):
    text = "train.lr_sched=constant,train.lr_warmup_epoch=0,train.lr_base=0.05,"
    text += "train.batch_size=256,"
    config = config_lib.load("fashion_mnist", hparam_str=text + overrides)
    return optimizers.build_optimizer(config, config_lib.run_plan(config))


@pytest.mark.parametrize(
    "name", "rmsprop momentum nesterov sgd adam adamw lion".split()
)
def test_every_optimizer_lowers_a_loss(name):
    optimizer = _built(f"train.optimizer={name}")
    variable = keras.Variable([3.0, -2.0])
    for _ in range(100):
        optimizer.apply([2.0 * variable], [variable])
    # Of 13 at the start; lion still swings.
    assert float(tf.reduce_sum(variable**2)) < 3.0


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("train.optimizer=rmsprop", "rmsprop"),
        ("train.optimizer=nesterov", "sgd"),
        ("train.optimizer=adamw", "adam"),
        ("train.optimizer=lion,train.layer_decay=0.9", "layerwise_lion"),
        # Its loss is scaled.
        ("runtime.mixed_precision=mixed_float16", "loss_scale_optimizer"),
    ],
)
def test_names_are_the_same_for_each_run_of_a_process(overrides, name):
    """By which checkpoints are read."""
    names = []
    for _ in range(2):
        optimizer = _built(overrides)
        optimizer.build([keras.Variable([1.0], name="logits")])
        names.append([variable.path for variable in optimizer.variables])
    assert names[0] == names[1] and optimizer.name == name


def test_config_round_trip():
    optimizer = optimizers.RMSProp(0.1, rho=0.8, momentum=0.7, epsilon=0.01)
    again = optimizers.RMSProp.from_config(optimizer.get_config())
    assert (again.rho, again.momentum, again.epsilon) == (0.8, 0.7, 0.01)
