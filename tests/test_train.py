"""Whole runs on a tiny model: train, resume, evaluate, export."""

import dataclasses
import json
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import (
    api,
    checkpoints,
    engines,
    recovery,
    runs,
    zoo,
)
from efficientnetv2 import config as config_lib
from efficientnetv2.data import pipeline, registry
from efficientnetv2.engines import optimizers, strategies, tensorflow
from efficientnetv2.errors import UserError
from efficientnetv2.models import weights
from tests.conftest import assert_same, engine_and_batch, raises, run_code

pytestmark = [pytest.mark.usefixtures("small_data"), pytest.mark.slow]


def _execute(config, folder, **kwargs):
    lines = []
    api.execute(config, folder, log=lines.append, **kwargs)
    return "\n".join(lines)


def _metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def _weights(folder):
    return checkpoints.load_latest(folder).arrays


LEARNS = (
    "train.epochs=12,train.stages=3,train.lr_base=0.1,data.augname=null,"
    "data.mixup_alpha=0,data.cutmix_alpha=0,train.lr_warmup_epoch=1,"
    "train.ema_decay=0.9,data.transformations=null"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run that the tests of this file read."""
    return tmp_path_factory.mktemp("runs") / "finished"


def test_a_run_learns_and_leaves_its_files(tiny_config, finished, capsys):
    config = tiny_config(LEARNS)
    text = _execute(config, finished) + capsys.readouterr().out
    assert "Stage 3 of 3: images of 24 pixels" in text
    assert "images/s" in text and "weight decay" in text
    metrics = _metrics(finished)
    assert metrics["finished"] and metrics["steps"] == 72
    waiting, computing = metrics["step_seconds"]
    assert 0 < waiting and 0 < computing
    assert waiting + computing < metrics["train_seconds"]
    assert metrics["waiting_share"] == waiting / (waiting + computing)
    assert f"{metrics['waiting_share']:.1%} of their time" in text
    assert metrics["test"]["images"] == 200
    assert metrics["test"]["top1"] > 0.5
    assert len(metrics["evaluations"]) == 12
    for name in ("train_seconds", "evaluation_seconds"):
        seconds = [e[name] for e in metrics["evaluations"]]
        assert 0 < seconds[0] and seconds == sorted(seconds)
        assert seconds[-1] <= metrics[name]
    assert metrics["evaluation_seconds"] < metrics["train_seconds"]
    top1 = [each["top1"] for each in metrics["evaluations"]]
    assert metrics["best"]["top1"] == max(top1)
    assert checkpoints.list_steps(finished) == [60, 66, 72]
    assert (finished / "checkpoints" / "best.npz").exists()
    assert not [p for p in finished.rglob("*.tmp*")]
    again = config_lib.load(hparam_str=str(finished / "config.yaml"))
    assert again.to_dict() == config.to_dict()


def test_the_report_of_a_run(finished):
    text = (finished / "report.html").read_text()
    heads = ("What the network saw", "Stage 3: ", "Curves", "Most confused")
    for words in (*heads, "Expected calibration error", "stages: 3"):
        assert words in text
    # Curves, matrix and calibration; six images per stage, and mistakes.
    assert text.count("<svg") == 3
    mistakes = text.partition("Worst mistakes")[2].count("data:image/png")
    assert text.count("data:image/png") == 3 * 6 + mistakes


def test_another_config_is_refused(tiny_config, finished):
    with raises(runs.RunError, "train.weight_decay: 1e-05 there, 2e-05 now"):
        _execute(tiny_config(LEARNS + ",train.weight_decay=2e-5"), finished)
    # Where the data lie is no part of the run.
    moved = tiny_config(LEARNS, flags={"data.data_dir": "/elsewhere"})
    assert "is finished" in _execute(moved, finished)


@pytest.mark.parametrize("name", [None, "best", "last", "66"])
def test_evaluation_of_a_named_checkpoint(tiny_config, finished, name):
    text = _execute(tiny_config(LEARNS), finished, mode="eval", checkpoint=name)
    assert "(200 images" in text
    if name == "66":
        assert "step 66" in text


def test_a_missing_checkpoint_lists_what_there_is(tiny_config, finished):
    with pytest.raises(checkpoints.CheckpointError, match="60, 66, 72"):
        _execute(tiny_config(LEARNS), finished, mode="eval", checkpoint="7")


def test_tensorboard_scalars(finished):
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(
        str(finished / "tensorboard"), size_guidance={"tensors": 0}
    )
    events.Reload()
    tags = set(events.Tags()["tensors"])
    for name in (
        "loss cross_entropy l2 top1 top5 learning_rate weight_decay "
        "image_size images_per_second waiting_share"
    ).split():
        assert f"train/{name}" in tags
    assert {"validation/top1", "validation/top5"} <= tags
    sizes = [
        float(tf.make_ndarray(event.tensor_proto))
        for event in events.Tensors("train/image_size")
    ]
    assert sizes[0] == 18 and sizes[-1] == 24 and len(sizes) == 72


def test_the_saved_model_needs_only_tensorflow(finished, source, tiny_config):
    folder = finished / "alone"
    shutil.copytree(finished / "saved_model", folder)
    images = np.repeat(source.images[:5], 3, axis=-1)
    np.save(finished / "images.npy", images)
    program = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'efficientnetv2':
            raise ImportError(name)
sys.meta_path.insert(0, Block())
sys.argv[1:] = ARGUMENTS
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
images = np.load(sys.argv[2])
served = model.signatures['serving_default'](images=tf.constant(images))
encoded = tf.stack([tf.io.encode_png(image) for image in images])
from_bytes = model.signatures['encoded'](image_bytes=encoded)
other_size = model.signatures['serving_default'](
    images=tf.zeros([2, 50, 31, 3], tf.uint8))
assert other_size['probabilities'].shape == (2, 10)
np.savez(sys.argv[3], served=served['probabilities'],
         encoded=from_bytes['probabilities'],
         labels=[name.decode() for name in served['label'].numpy()])
"""
    result = finished / "served.npz"
    arguments = [str(folder), str(finished / "images.npy"), str(result)]
    run_code(
        program.replace("ARGUMENTS", repr(arguments)),
        env={**os.environ, "PYTHONPATH": ""},
        cwd=finished,
    )
    config = tiny_config(LEARNS)
    from efficientnetv2.models import architecture

    network = architecture.build_network(config.model.to_dict())
    best = checkpoints.read_checkpoint(
        checkpoints.find_checkpoint(finished, "best")
    )
    weights.load_averaged(network, best)
    dataset = pipeline.evaluation_dataset(source, config)
    logits = network(next(iter(dataset))[0][:5])
    expected = tf.nn.softmax(logits).numpy()
    with np.load(result) as file:
        np.testing.assert_allclose(file["served"], expected, atol=1e-5)
        np.testing.assert_allclose(file["encoded"], expected, atol=1e-5)
        names = file["labels"].tolist()
    class_names = registry.load_info("fashion_mnist").class_names
    assert names == [class_names[k] for k in expected.argmax(1)]


# Resuming within an epoch, at its end, and behind a change of stage; the
# pipeline's own tests resume RandAugment.
RESUMED = (
    "train.epochs=2.5,train.stages=2,checkpoint.every_steps=4,data.augname=null"
)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Where the tests below keep the run that all others must equal."""
    return tmp_path_factory.mktemp("runs") / "whole"


def _run_once(config, folder):
    if not folder.exists():
        _execute(config, folder, mode="train")
    return _weights(folder)


@pytest.mark.parametrize("stop_at", [5, 6, 9])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tiny_config, tmp_path, monkeypatch, uninterrupted, stop_at
):
    config = tiny_config(RESUMED)
    whole = _run_once(config, uninterrupted)
    real = tensorflow.Engine.step
    steps = []

    def interrupt(self, *arguments):
        if len(steps) == stop_at:
            raise KeyboardInterrupt
        steps.append(real(self, *arguments))
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(tensorflow.Engine, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            _execute(config, tmp_path / "parts", mode="train")
    text = _execute(config, tmp_path / "parts", mode="train")
    assert "Resuming at step" in text
    parts = _weights(tmp_path / "parts")
    assert whole["step"] == 15
    assert_same(parts, whole)


def test_stages_drawn_at_random(tiny_config, tmp_path, monkeypatch, capsys):
    """Pipeline and dropout take the same stage, also in a resumed run."""
    config = tiny_config(
        RESUMED + ",train.stages=3,train.stage_order=random,"
        "model.dropout_base=0.1,model.dropout_rate=0.3,eval.val_split=null,"
        "model.blocks=r1_k3_s2_e1_i8_o8_c1"
    )
    seen = []
    real = tensorflow.Engine.step

    def record(self, batch, dropout_rate):
        if interrupts and len(seen) == 23:
            raise KeyboardInterrupt
        seen.append((batch[0].shape[1], round(dropout_rate, 3)))
        return real(self, batch, dropout_rate)

    monkeypatch.setattr(tensorflow.Engine, "step", record)
    interrupts = False
    text = _execute(config, tmp_path / "whole", mode="train")
    assert "Each step draws one of 3" in capsys.readouterr().out
    plan = config_lib.run_plan(config)
    order = plan.stage_of_steps
    assert len(set(order)) == 3 and sorted(order) != list(order)
    drawn = [plan.stages[index] for index in order]
    assert seen == [(s.image_size, round(s.dropout_rate, 3)) for s in drawn]
    interrupts = True
    with pytest.raises(KeyboardInterrupt):
        _execute(config, tmp_path / "parts", mode="train")
    interrupts = False
    text = _execute(config, tmp_path / "parts", mode="train_and_test")
    assert "Resuming at" in text and "Done: eval top-1" in text
    left = {path.name for path in (tmp_path / "parts").iterdir()}
    assert "metrics.json" in left
    assert not left & {"report.html", "saved_model", "preview", "plots"}
    assert_same(_weights(tmp_path / "parts"), _weights(tmp_path / "whole"))
    # Checkpoints are by step and epoch, not at the ends of stages.
    assert checkpoints.list_steps(tmp_path / "whole") == [8, 12, 15]


def test_a_corrupt_checkpoint_is_skipped(tiny_config, tmp_path, uninterrupted):
    config = tiny_config(RESUMED)
    expected = _run_once(config, uninterrupted)
    shutil.copytree(uninterrupted, tmp_path / "run")
    newest = checkpoints.path_of_step(tmp_path / "run", 15)
    newest.write_bytes(newest.read_bytes()[:-2000])
    text = _execute(config, tmp_path / "run", mode="train")
    assert "truncated" in text and "Resuming at step 12" in text
    assert_same(_weights(tmp_path / "run"), expected)


def test_a_signal_writes_a_checkpoint(tiny_config, tmp_path, monkeypatch):
    config = tiny_config(RESUMED)
    real = tensorflow.Engine.step
    steps = []

    def terminate(self, *arguments):
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        steps.append(real(self, *arguments))
        return steps[-1]

    monkeypatch.setattr(tensorflow.Engine, "step", terminate)
    with pytest.raises(recovery.Interrupted, match="SIGTERM at step 6"):
        _execute(config, tmp_path / "run", mode="train")
    assert checkpoints.list_steps(tmp_path / "run")[-1] == 6
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_loss_that_is_not_finite_stops_the_run(tiny_config, tmp_path):
    config = tiny_config(
        "train.lr_base=1e30,train.lr_warmup_epoch=0,data.augname=null"
    )
    with pytest.raises(recovery.NotFiniteError, match="step .*stage 1"):
        _execute(config, tmp_path, mode="train")


def test_one_step_equals_the_formulas(tiny_config, source, tmp_path):
    """Loss, weight decay, clipping, RMSProp and EMA, by hand."""
    config = tiny_config(
        "train.stages=1,train.batch_parts=1,data.augname=null,"
        "train.optimizer=rmsprop,model.survival_prob=1,data.mixup_alpha=0.3,"
        "model.dropout_rate=0,model.dropout_base=null,train.gclip=0.5,"
        "train.weight_decay=1e-3,train.weight_decay_inc=4,"
        "train.lr_warmup_epoch=0,train.lr_sched=constant"
    )
    plan = config_lib.run_plan(config)
    engine = engines.create(config, plan)
    # A reference copy that goes through Keras' own layers and tape.
    network = engines.create(config, plan).network
    network.set_weights(engine.network.get_weights())
    engine.restore({**engine.arrays(), "step": np.int64(5)}, "the test")
    own = dataclasses.replace(plan, num_images=200, steps_per_epoch=6)
    batch = next(iter(pipeline.training_dataset(source, config, own)))
    images, labels = batch
    coefficient = 1e-3 * (1 + 4 * 5 / plan.total_steps)
    decayed = [
        not any(word in v.path for word in ("bias", "gamma", "beta"))
        for v in network.trainable_variables
    ]
    assert 0 < sum(decayed) < len(decayed)
    with tf.GradientTape() as tape:
        logits = network(images, training=True)
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=config.train.label_smoothing
        )(labels, logits)
        pairs = zip(network.trainable_variables, decayed, strict=True)
        loss += coefficient * tf.add_n(
            [tf.nn.l2_loss(v.value) for v, is_decayed in pairs if is_decayed]
        )
    variables = [v.value for v in network.trainable_variables]
    gradients = tape.gradient(loss, variables)
    gradients = [tf.clip_by_norm(gradient, 0.5) for gradient in gradients]
    gradients, _ = tf.clip_by_global_norm(gradients, 0.5)
    rate = config.train.lr_base * 32 / 256
    before = [variable.numpy() for variable in variables]
    names = [variable.path for variable in network.trainable_variables]
    old_state = engine.arrays()
    logs = engine.step(batch, 0.0)
    new_state = engine.arrays()
    assert float(logs["loss"]) == pytest.approx(float(loss), rel=1e-5)
    decay = optimizers.ema_decay(config, 5)
    for old, gradient, name in zip(before, gradients, names, strict=True):
        square = 0.9 + 0.1 * gradient.numpy() ** 2
        expected = old - rate * gradient.numpy() / np.sqrt(square + 1e-3)
        new = new_state[f"network/{name}"]
        np.testing.assert_allclose(new, expected, atol=2e-6)
        np.testing.assert_allclose(
            new_state[f"ema/{name}"],
            decay * old_state[f"ema/{name}"] + (1 - decay) * expected,
            atol=2e-6,
        )
    # Batch-norm statistics are averaged too.
    moved = [
        not np.array_equal(new_state[name], old_state[name])
        for name in new_state
        if name.startswith("ema/") and "moving" in name
    ]
    assert moved and all(moved)


def test_the_waiting_for_batches_is_measured(
    tiny_config, source, tmp_path, monkeypatch
):
    config = tiny_config(
        "data.augname=null,train.stages=2,train.epochs=1,eval.val_split=null"
    )
    plan = config_lib.run_plan(config)
    batches = pipeline.training_dataset(source, config, plan)
    options = tf.data.Options()
    # Nothing is read while a step computes, so that all sleep is waiting.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_optimization.map_parallelization = False

    def delay(images, labels):
        slept = tf.numpy_function(lambda: time.sleep(0.2) or 0, [], tf.int64)
        with tf.control_dependencies([slept]):
            return tf.identity(images), tf.identity(labels)

    slow = batches.map(delay).with_options(options)
    weights, shares = [], []
    for dataset in (batches, slow):
        monkeypatch.setattr(
            pipeline, "training_dataset", lambda *_, found=dataset, **__: found
        )
        folder = tmp_path / f"run{len(weights)}"
        _execute(config, folder, mode="train")
        weights.append(_weights(folder))
        shares.append(_metrics(folder))
    assert_same(*weights)
    fast, slow = (each["step_seconds"] for each in shares)
    assert slow[0] > 6 * 0.2 and slow[0] > fast[0]


def test_one_trace_serves_all_stages(tiny_config, tmp_path, monkeypatch):
    traces = []
    plain = tensorflow.Engine.train_step

    def traced(self, images, *arguments):
        traces.append(images.shape)
        return plain(self, images, *arguments)

    monkeypatch.setattr(tensorflow.Engine, "train_step", traced)
    config = tiny_config("data.augname=null,train.stages=3,train.epochs=1")
    _execute(config, tmp_path, mode="train")
    assert len(traces) == 1


def test_a_batch_of_fewer_images_than_parts(tiny_config, source, tmp_path):
    config = tiny_config("train.batch_parts=4")
    engine, (images, _) = engine_and_batch(config, source)
    images = images.numpy()[:5]
    np.testing.assert_allclose(
        engine.logits(images[:1]), engine.logits(images)[:1], atol=1e-5
    )


def test_parts_at_once_give_what_parts_in_turn_give(
    tiny_config, source, tmp_path
):
    # With batch normalization, dropout and stochastic depth, which write.
    config = tiny_config("train.stages=1,train.batch_parts=4")
    first, states = None, []
    for wrap in (lambda step: step, tf.function):
        engine, batch = engine_and_batch(config, source)
        if first is not None:
            engine.restore(first, "the first")
        first = engine.arrays()
        wrap(engine.train_step)(*batch, tf.constant(0.2))
        states.append(engine.arrays())
    in_turn, at_once = states
    assert_same(at_once, in_turn, 2e-5)
    for name in in_turn:
        if "seed_generator" in name:
            assert in_turn[name][1] == first[name][1] + 4
    name = next(n for n in first if n.endswith("moving_variance"))
    assert not np.allclose(first[name], at_once[name])


@pytest.mark.parametrize(
    "precision", ["mixed_bfloat16", "mixed_float16", "bfloat16_products"]
)
def test_mixed_precision_trains(tiny_config, tmp_path, precision, monkeypatch):
    # Without the instructions it is slower, and works.
    cpuinfo, folder = tmp_path / "cpuinfo", tmp_path / "run"
    cpuinfo.write_text("flags : avx512_bf16")
    monkeypatch.setattr(strategies, "_CPUINFO", cpuinfo)
    config = tiny_config(
        "train.epochs=1,train.stages=2,data.augname=null,"
        f"runtime.mixed_precision={precision}"
    )
    try:
        _execute(config, folder, mode="train")
    finally:
        strategies.set_up(tiny_config())
    arrays = _weights(folder)
    assert all(np.isfinite(value).all() for value in arrays.values())
    assert _metrics(folder)["steps"] == 6


def test_fine_tuning_starts_from_a_run(tiny_config, finished, tmp_path):
    # Another number of classes: only the classifier is left as it was.
    overrides = f"{LEARNS},train.ft_init_ckpt={finished}"
    for classes, left_out in ((10, False), (12, True)):
        config = tiny_config(f"{overrides},model.num_classes={classes}")
        network = engines.create(config, config_lib.run_plan(config)).network
        text = zoo.initialize(network, config)
        expected = checkpoints.read_checkpoint(
            checkpoints.find_checkpoint(finished, None)
        ).arrays
        np.testing.assert_array_equal(
            network.get_layer("stem").conv.kernel,
            expected["ema/stem/conv/kernel"],
        )
        assert ("logits/kernel" in text) == left_out


def test_a_classifier_of_other_names_is_not_kept(
    tiny_config, finished, tmp_path, monkeypatch
):
    other = dataclasses.replace(
        registry.load_info("any"), class_names=[f"other {k}" for k in range(10)]
    )
    monkeypatch.setattr(registry, "load_info", lambda _: other)
    config = tiny_config(f"{LEARNS},train.ft_init_ckpt={finished}")
    network = engines.create(config, config_lib.run_plan(config)).network
    text = zoo.initialize(network, config)
    assert "the classifier starts from scratch" in text
    loaded = checkpoints.read_checkpoint(
        checkpoints.find_checkpoint(finished, None)
    ).arrays
    for part, equal in (("stem/conv", True), ("logits", False)):
        layer = network.get_layer(part.partition("/")[0])
        kernel = (layer.conv if "/" in part else layer).kernel
        assert np.array_equal(kernel, loaded[f"ema/{part}/kernel"]) == equal


def _engine(config):
    return engines.create(config, config_lib.run_plan(config))


def test_only_chosen_variables_train(tiny_config):
    engine = _engine(tiny_config("train.varsexp=logits"))
    paths = [variable.path for variable in engine.trained]
    assert paths == ["logits/kernel", "logits/bias"]
    engine = _engine(tiny_config("train.varsexp=(head|logits)/.*"))
    paths = [variable.path for variable in engine.trained]
    assert {path.split("/")[0] for path in paths} == {"head", "logits"}
    with pytest.raises(UserError, match="nothing"):
        _engine(tiny_config("train.varsexp=nothing"))


def test_frozen_layers_keep_their_statistics(tiny_config, source, tmp_path):
    """Only what is trained changes, batch norm's statistics included."""
    config = tiny_config("train.varsexp=(head|logits)/.*")
    engine, batch = engine_and_batch(config, source)
    before = engine.arrays()
    engine.step(batch, 0.0)
    changed = {
        name.split("/")[1]
        for name, value in engine.arrays().items()
        if name.startswith("network/")
        and "seed_generator" not in name
        and not np.array_equal(value, before[name])
    }
    assert changed == {"head", "logits"}


def test_patience_ends_a_run_early(tiny_config, tmp_path):
    # Nothing changes, so no evaluation is better than the first.
    config = tiny_config(
        "train.lr_base=0,train.ema_decay=0,train.epochs=9,train.stages=1,"
        "data.augname=null,eval.patience=2,eval.every_epochs=0.5,"
        "model.bn_type=gn,model.gn_groups=4"
    )
    _execute(config, tmp_path, mode="train_and_test")
    metrics = _metrics(tmp_path)
    assert metrics["stopped"] == metrics["steps"] == 9
    assert [each["step"] for each in metrics["evaluations"]] == [3, 6, 9]
    assert metrics["finished"] and metrics["test"]["images"] == 200
    # The end is kept: the same command does not go on.
    metrics_path = tmp_path / "metrics.json"
    metrics_path.write_text(json.dumps({**metrics, "finished": False}))
    _execute(config, tmp_path, mode="train")
    assert checkpoints.list_steps(tmp_path)[-1] == 9


def test_a_finished_run_is_extended(tiny_config, tmp_path):
    options = f"{RESUMED},train.lr_sched=linear,train.epochs="
    _execute(tiny_config(options + "1"), tmp_path, mode="train_and_test")
    with pytest.raises(runs.RunError, match="train.epochs: 1.0 there, 2.0"):
        _execute(tiny_config(options + "2"), tmp_path, mode="train")
    longer = tiny_config(options + "2,train.extend=true")
    text = _execute(longer, tmp_path, mode="train_and_test")
    assert "Extended from 1 to 2 epochs" in text
    assert "stage is 2 of 2 (24 px)" in text and "(it was 0)" in text
    assert "Resuming at step 6 of 12" in text
    metrics = _metrics(tmp_path)
    assert metrics["steps"] == 12 and metrics["finished"]
    shorter = tiny_config(options + "1,train.extend=true")
    with pytest.raises(runs.RunError, match="train.epochs: 2.0 there, 1.0"):
        _execute(shorter, tmp_path, mode="train")


def test_a_model_dir_that_cannot_be_used(tiny_config, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(runs.RunError, match="is a file"):
        _execute(tiny_config(), file)
    with pytest.raises(runs.RunError, match="Cannot make|is a file"):
        _execute(tiny_config(), file / "below")
