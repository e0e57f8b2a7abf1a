"""What goes wrong while training, and how a run goes on."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import api, checkpoints, files, recovery, runs
from efficientnetv2.config import ConfigError
from efficientnetv2.data import pipeline
from efficientnetv2.engines.tensorflow import Engine
from tests.conftest import assert_same, engine_and_batch

pytestmark = [pytest.mark.usefixtures("small_data"), pytest.mark.slow]

SHORT = "train.epochs=3,train.stages=1,data.augname=null,eval.val_split=null"
# Nothing depends on how many images are computed together.
EXACT = (
    "model.survival_prob=1,model.dropout_rate=0,model.dropout_base=null,"
    "model.bn_type=gn,model.gn_groups=4"
)


def _train(config, folder):
    lines = []
    api.execute(config, folder, mode="train", log=lines.append)
    return checkpoints.load_latest(folder), "\n".join(lines)


def _poison(monkeypatch, bad_steps):
    """Makes some batches of data, by their numbers, not finite."""
    whole = pipeline.training_dataset

    def poisoned(source, config, plan, first_step, skipped, **rest):
        dataset = whole(source, config, plan, first_step, skipped, **rest)
        numbers = tf.data.Dataset.range(
            first_step + skipped, plan.total_steps + skipped
        )

        def spoil(batch, number):
            images, labels = batch
            bad = tf.reduce_any(number == tf.constant(bad_steps, tf.int64))
            return tf.where(bad, np.nan, 1.0) * images, labels

        return tf.data.Dataset.zip(dataset, numbers).map(spoil)

    monkeypatch.setattr(pipeline, "training_dataset", poisoned)


def test_rollback_leaves_out_the_data_that_led_to_it(
    tiny_config, tmp_path, monkeypatch
):
    # Six steps an epoch, a checkpoint every four and at their ends.
    _poison(monkeypatch, [9, 11])
    config = tiny_config(
        f"{SHORT},train.on_nan=rollback,checkpoint.every_steps=4"
    )
    latest, text = _train(config, tmp_path / "run")
    assert latest.meta["step"] == 18
    # Back to 8 without 8 and 9; then 10 is 8's data, 11 is not finite.
    assert latest.meta["history"]["skipped"] == 4
    assert text.count("was not finite") == 2
    assert "step 9 " in text and "skipping the 2 batches" in text
    for array in latest.arrays.values():
        assert np.isfinite(array).all()
    again, _ = _train(config, tmp_path / "again")
    assert_same(latest.arrays, again.arrays)


def test_rollback_before_the_first_checkpoint(
    tiny_config, tmp_path, monkeypatch
):
    _poison(monkeypatch, [1])
    config = tiny_config(f"{SHORT},train.on_nan=rollback")
    latest, text = _train(config, tmp_path / "run")
    assert latest.meta["history"]["skipped"] == 2
    assert "returning to step 0" in text
    _poison(monkeypatch, list(range(100)))
    monkeypatch.setattr(recovery, "_MOST_ROLLBACKS", 1)
    with pytest.raises(recovery.NotFiniteError, match="went back 1 times"):
        _train(config, tmp_path / "hopeless")


def test_micro_batches_give_the_gradients_of_the_batch(
    tiny_config, source, tmp_path
):
    results = []
    for micro, parts in ((0, 1), (8, 1), (16, 2), (0, 4)):
        config = tiny_config(
            f"{SHORT},{EXACT},train.micro_batch_size={micro},"
            f"train.batch_parts={parts}"
        )
        engine, batch = engine_and_batch(config, source)
        metrics = engine.step(batch, 0.0)
        results.append(
            [v.numpy() for v in engine.network.weights]
            + [metrics[name] for name in ("loss", "top1", "top5")]
        )
    for other in results[1:]:
        for one, value in zip(results[0], other, strict=True):
            np.testing.assert_allclose(value, one, atol=1e-5)


def test_wrong_micro_batches(tiny_config):
    for options in ("size=5", "size=8,train.batch_parts=16"):
        with pytest.raises(ConfigError, match="micro_batch_size"):
            tiny_config(f"train.micro_batch_{options}")


def _limit_memory(monkeypatch, most):
    whole = Engine._side_by_side

    def limited(self, images, *arguments):
        if images.shape[0] > most:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM")
        return whole(self, images, *arguments)

    monkeypatch.setattr(Engine, "_side_by_side", limited)


def test_out_of_memory_leads_to_smaller_parts(
    tiny_config, tmp_path, monkeypatch
):
    config = tiny_config(f"{SHORT},{EXACT}")
    expected, _ = _train(config, tmp_path / "whole")
    _limit_memory(monkeypatch, 8)
    latest, text = _train(config, tmp_path / "limited")
    assert "over 16 at a time" in text and "over 8 at a time" in text
    assert latest.meta["history"]["micro_batch_size"] == 8
    # Each part draws its own dropout, here of nothing.
    assert_same(latest.arrays, expected.arrays, 1e-3, leave="seed_generator")


def test_too_little_memory_for_one_image(tiny_config, tmp_path, monkeypatch):
    _limit_memory(monkeypatch, 0)
    with pytest.raises(recovery.OutOfMemoryError, match="with 1 images"):
        config = tiny_config(f"{SHORT},train.batch_size=4,train.batch_parts=1")
        _train(config, tmp_path)


def test_a_second_process_on_one_model_dir_is_refused(tiny_config, tmp_path):
    program = (
        "import sys, time\n"
        "from efficientnetv2 import files\n"
        "with files.locked(sys.argv[1]) as lock:\n"
        "    print(lock.holder, flush=True)\n"
        "    time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / runs.LOCK)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "None\n"
        with pytest.raises(runs.RunError, match=f"process {other.pid} on"):
            _train(tiny_config(SHORT), tmp_path)
    finally:
        other.kill()
        other.wait()
    # The lock ends with its process.
    with files.locked(tmp_path / runs.LOCK) as lock:
        assert lock.holder is None
