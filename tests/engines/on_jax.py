"""Tests of the JAX engine that need Keras on JAX; `test_jax` runs them."""

import functools

import jax
import keras
import numpy as np
import pytest
from jax import export

from efficientnetv2 import config as config_lib
from efficientnetv2 import engines
from efficientnetv2.data import pipeline
from efficientnetv2.errors import StrategyError
from efficientnetv2.files import CheckpointError
from tests.conftest import assert_same, make_source
from tests.engines import steps

# One block and one device, where nothing else is asked for.
SMALL = (
    "model.blocks=r1_k3_s2_e1_i8_o8_c1,runtime.strategy=cpu,train.lr_base=0.2,"
    "train.lr_warmup_epoch=0,train.lr_sched=constant"
)


def make(overrides: str = ""):
    """Returns an engine of one block on one of two devices."""
    return steps.make_engine(f"{SMALL},{overrides}")


def batch_of(size: int = 16):
    random = np.random.default_rng(0)
    images = random.normal(size=(32, size, size, 3)).astype(np.float32)
    return images, np.eye(10, dtype=np.float32)[random.integers(0, 10, 32)]


@pytest.fixture(scope="module")
def engine():
    return make()


def test_a_state_is_restored_whole_or_not_at_all(engine):
    assert len(jax.devices()) == 2 and engine.replicas == 1
    assert engine.device == "CPU, float32, JAX"
    before = engine.arrays()
    engine.step(batch_of(), 0.0)
    after = engine.arrays()
    assert after["step"] == before["step"] + 1
    names = [name for name in before if name.startswith("ema/")]
    assert names and any((before[n] != after[n]).any() for n in names)
    for name in ("network/logits/kernel", "ema/logits/bias"):
        broken = {**before, name: np.zeros([7, 7])}
        with pytest.raises(CheckpointError, match=r"file.*\(7, 7\)"):
            engine.restore(broken, "file")
        del broken[name]
        with pytest.raises(CheckpointError, match="file has no variable"):
            engine.restore(broken, "file")
    assert_same(engine.arrays(), after)
    engine.restore(before, "file")
    engine.step(batch_of(), 0.0)
    assert_same(engine.arrays(), after)
    engine.restore(before, "file")


def test_the_network_has_the_current_weights(engine):
    engine.step(batch_of(), 0.0)
    state = engine.arrays()
    kernel = engine.network.get_layer("logits").kernel
    np.testing.assert_array_equal(kernel, state["network/logits/kernel"])
    images = batch_of()[0]
    logits = engine.network(images, training=False)
    assert np.abs(engine.logits(images) - logits).max() > 1e-4
    engine.network.set_weights(
        [state[f"ema/{v.path}"] for v in engine.network.weights]
    )
    logits = engine.network(images, training=False)
    np.testing.assert_allclose(engine.logits(images), logits, atol=1e-5)


def test_training_from_other_weights(engine):
    before = engine.network.get_weights()
    engine.network.set_weights([np.full_like(each, 0.5) for each in before])
    engine.reset_average()
    state = engine.arrays()
    engine.network.set_weights(before)
    engine.reset_average()
    assert state["step"] == 0
    for name, array in state.items():
        if name.startswith(("ema/", "network/")) and "seed" not in name:
            assert (array == 0.5).all(), name


def test_logits_of_any_batch_without_another_trace(engine):
    images = batch_of()[0]
    whole = engine.logits(images)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine, "_call", lambda *_, **__: pytest.fail("traced again")
        )
        for rows in (1, 7, 31):
            few = engine.logits(images[:rows])
            assert few.shape == (rows, 10) and few.dtype == np.float32
            np.testing.assert_allclose(few, whole[:rows], atol=1e-5)


def test_a_loss_that_is_not_finite_is_remembered_and_changes_nothing():
    engine = make()
    images, labels = batch_of()
    engine.step((images, labels), 0.0)
    good = engine.arrays()
    assert engine.first_bad_step() is None
    metrics = engine.step((images * np.nan, labels), 0.0)
    assert not np.isfinite(float(metrics["loss"]))
    engine.step((images, labels), 0.0)
    assert engine.first_bad_step() == 1
    assert_same(engine.arrays(), good)
    engine.restore(good, "file")
    assert engine.first_bad_step() is None


@pytest.mark.parametrize("strategy", ["cpu", "auto"])
def test_micro_batches_make_the_whole(strategy):
    """Without batch normalization, whose statistics are of a micro-batch."""
    engine = make(
        "model.bn_type=gn,model.gn_groups=2,train.gclip=1,"
        f"runtime.strategy={strategy}"
    )
    assert engine.replicas == (2 if strategy == "auto" else 1)
    before, results = engine.arrays(), []
    for size in (0, 4):
        engine.micro_batch_size = size
        engine.restore(before, "file")
        metrics = engine.step(batch_of(), 0.0)
        values = {name: float(value) for name, value in metrics.items()}
        results.append((values, engine.arrays()))
    (whole, first), (parts, second) = results
    assert parts == pytest.approx(whole, abs=1e-6)
    assert_same(second, first, 2e-5, leave="seed")


def test_dropout_takes_the_rate_of_the_stage(engine):
    """Of one compiled step; the layers draw anew in each."""
    state = engine.arrays()
    losses = []
    for rate in (0.0, 0.0, 0.5, 0.5):
        engine.restore(state, "file")
        losses.append(float(engine.step(batch_of(), rate)["loss"]))
    assert losses[0] == losses[1] != losses[2] == losses[3]
    assert engine.network.get_layer("head").dropout.rate_variable is None
    seeds = [name for name in state if "seed_generator" in name]
    again = engine.arrays()
    assert seeds and all((again[n] != state[n]).any() for n in seeds)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16", "float32"]
)
def test_precision(policy):
    engine = make(f"runtime.mixed_precision={policy}")
    assert policy in engine.device
    losses = [float(engine.step(batch_of(), 0.1)["loss"]) for _ in range(6)]
    assert losses[-1] < losses[0]
    for name, array in engine.arrays().items():
        if name.startswith(("network/", "ema/")) and "seed" not in name:
            assert array.dtype == np.float32, name
    assert engine.logits(batch_of()[0]).dtype == np.float32


def test_a_part_of_the_variables_is_trained():
    engine = make("train.varsexp=logits.*")
    before = engine.arrays()
    engine.step(batch_of(), 0.0)
    changed = {
        name
        for name, array in engine.arrays().items()
        if name.startswith("network/") and (array != before[name]).any()
    }
    assert "network/logits/kernel" in changed
    assert all("logits" in n or "seed" in n for n in changed), changed
    with pytest.raises(CheckpointError, match="matches no trainable"):
        make("train.varsexp=nothing")


def test_what_augments_on_the_device_is_what_the_pipeline_does():
    metrics = []
    for where in ("host", "device"):
        engine = make(
            f"data.augment_on={where},data.mixup_alpha=0.2,data.augname=randaug"
        )
        assert engine.augments == (where == "device")
        batches = engine.dataset(
            functools.partial(
                pipeline.training_dataset,
                make_source(),
                engine.config,
                engine.plan,
                on_device=engine.augments,
            )
        )
        rows = [
            engine.step(batch, 0.0)
            for batch, _ in zip(batches, range(3), strict=False)
        ]
        metrics.append([float(row["loss"]) for row in rows])
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-5)


def test_end_training_keeps_the_network(engine):
    other = make()
    images = batch_of()[0]
    weights = engine.network.get_weights()
    other.step(batch_of(), 0.0)
    other.end_training()
    other.network.set_weights(weights)
    expected = engine.network(images, training=False)
    np.testing.assert_allclose(other.logits(images), expected, atol=1e-5)


def test_an_engine_for_evaluation_alone():
    config = make().config
    engine = engines.create(config, None)
    images = batch_of()[0]
    expected = engine.network(images, training=False)
    np.testing.assert_allclose(engine.logits(images), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("train.batch_size=33", "33.*2 replicas.*such as 32"),
        ("train.micro_batch_size=32,train.batch_size=96", "does not divide"),
        ("runtime.strategy=gpu", "JAX sees no GPU, but cpu"),
        ("runtime.strategy=multi_worker", "one machine"),
        ("runtime.jit_compile=false", "always compiles"),
        ("runtime.mixed_precision=bfloat16_products", "is for TensorFlow"),
    ],
)
def test_impossible_requests_are_refused(overrides, words):
    if "strategy" not in overrides:
        overrides += ",runtime.strategy=auto"
    with pytest.raises(StrategyError, match=words):
        make(overrides)


def test_out_of_memory_is_recognized(engine):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
    assert engine.is_out_of_memory(error)
    assert not engine.is_out_of_memory(jax.errors.JaxRuntimeError("INTERNAL"))
    assert not engine.is_out_of_memory(MemoryError("RESOURCE_EXHAUSTED"))


def test_the_step_lowers_for_accelerators(engine):
    exported = export.export(engine.step_function(), platforms=["cuda", "tpu"])(
        *engine.step_arguments(24)
    )
    assert exported.platforms == ("cuda", "tpu")
    assert exported.in_avals[-2].shape == (32, 10)


@pytest.mark.parametrize("name", ["efficientnetv2-b0", "efficientnetv2-s"])
def test_the_steps_of_imagenet_lower_for_accelerators(name):
    config = config_lib.load(
        "fashion_mnist",
        model_name=name,
        recipe="imagenet_code",
        hparam_str="model.num_classes=1000,train.batch_size=8,"
        "runtime.mixed_precision=mixed_bfloat16",
    )
    plan = config_lib.run_plan(config)
    try:
        engine = engines.create(config, plan)
        # The program is the same between them, but for its shapes.
        for stage in (plan.stages[0], plan.stages[-1]):
            exported = export.export(
                engine.step_function(), platforms=["cuda", "tpu"]
            )(*engine.step_arguments(stage.image_size))
            assert exported.platforms == ("cuda", "tpu")
            assert "callback" not in exported.mlir_module()
    finally:
        keras.config.set_dtype_policy("float32")
