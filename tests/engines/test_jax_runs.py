"""Whole runs on JAX: from TensorFlow, to a SavedModel, through kills."""

import random
import time

import keras
import pytest

from efficientnetv2 import api, checkpoints
from efficientnetv2 import config as config_lib
from tests.conftest import assert_same, start_program
from tests.engines import steps

pytestmark = pytest.mark.slow

KILLS = 3
OVERRIDES = (
    f"{steps.OVERRIDES},train.stages=1,model.survival_prob=0.8,"
    "model.dropout_rate=0.2,checkpoint.every_steps=3"
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Children compile a step once for all of them."""
    return {
        **steps.jax_environment(),
        "KERAS_BACKEND": "",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def _start(dataset, model_dir, environment, mode="train"):
    return start_program(
        *("--backend=jax", "--recipe=fashion_mnist", f"--mode={mode}"),
        *(f"--dataset={dataset}", f"--hparam_str={OVERRIDES}"),
        f"--model_dir={model_dir}",
        env=environment,
    )


class _Interrupt(keras.callbacks.Callback):
    """Ends a run at its first epoch."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise KeyboardInterrupt


def test_from_tensorflow_to_jax_to_a_saved_model(photos, environment, tmp_path):
    config = config_lib.load(
        photos, recipe="fashion_mnist", hparam_str=OVERRIDES
    )
    with pytest.raises(KeyboardInterrupt):
        api.train(config, tmp_path, [_Interrupt()], log=lambda _: None)
    assert checkpoints.list_steps(tmp_path)[-1] == 6
    child = _start(photos, tmp_path, environment, "train_and_eval")
    output, _ = child.communicate()
    assert child.returncode == 0, output
    assert "Resuming at step 6 of 24" in output
    assert "CPU, float32, JAX" in output
    assert f"Exported best.npz to {tmp_path}/saved_model" in output
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()
    last = checkpoints.load_latest(tmp_path)
    assert last.meta["step"] == last.arrays["step"] == 24
    # TensorFlow evaluates what JAX has trained to the same figures.
    metrics = config_lib.read_yaml(tmp_path / "metrics.json")
    assert metrics["finished"] and metrics["environment"]["jax"]
    result = api.evaluate(tmp_path, log=lambda _: None)
    for name in ("top1", "top5", "cross_entropy"):
        assert result[name] == pytest.approx(metrics["test"][name], abs=1e-5)


def test_kills_change_nothing(photos, environment, tmp_path):
    whole = _start(photos, tmp_path / "whole", environment)
    output, _ = whole.communicate()
    assert whole.returncode == 0, output
    expected = checkpoints.load_latest(tmp_path / "whole").arrays
    chance, killed = random.Random(0), tmp_path / "killed"
    for _ in range(KILLS):
        done = checkpoints.list_steps(killed)
        child = _start(photos, killed, environment)
        while checkpoints.list_steps(killed) == done:
            assert child.poll() is None, child.communicate()
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.2))
        child.kill()
        child.communicate()
    last = _start(photos, killed, environment)
    output, _ = last.communicate()
    assert last.returncode == 0, output
    arrays = checkpoints.load_latest(killed).arrays
    assert arrays["step"] == 24
    assert_same(arrays, expected)
