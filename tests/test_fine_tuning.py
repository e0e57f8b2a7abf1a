"""What fine-tuning adds: optimizers, layer-wise rates, a run's own model."""

import keras
import numpy as np
import pytest

from efficientnetv2 import api, progressive, recovery, runs, zoo
from efficientnetv2 import config as config_lib
from efficientnetv2.engines import optimizers
from efficientnetv2.errors import UserError
from efficientnetv2.models import architecture


@pytest.fixture
def variables():
    """One of each layer of a network with two blocks, all of value 1."""
    made = []
    for layer in ("stem", "blocks_0", "blocks_1", "head", "logits"):
        with keras.name_scope(layer):
            made.append(keras.Variable([1.0], name="kernel"))
    with keras.name_scope("logits"):
        made.append(keras.Variable([1.0], name="bias"))
    assert made[1].path == "blocks_0/kernel"
    return made


def _optimizer(overrides, epochs=4):
    config = config_lib.load("fashion_mnist", hparam_str=overrides)
    plan = progressive.RunPlan(1280, 10, 10 * epochs)
    config = config.copy_and_resolve_references().unlock()
    config.train.lr_sched, config.train.lr_warmup_epoch = "constant", 0.0
    config.train.lr_base, config.train.batch_size = 0.1, 256
    return optimizers.build_optimizer(config, plan)


def _values(variables):
    return np.array([float(each.numpy()[0]) for each in variables])


def _step(optimizer, variables, gradient=1.0):
    gradients = [keras.ops.ones([1]) * gradient for _ in variables]
    optimizer.apply(gradients, variables)


def test_layer_decay_is_a_factor_per_layer(variables):
    optimizer = _optimizer("train.optimizer=sgd,train.layer_decay=0.5")
    _step(optimizer, variables)
    np.testing.assert_allclose(
        1.0 - _values(variables),
        0.1 * np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 1]),
        rtol=1e-5,
    )


@pytest.mark.parametrize("name", ["sgd", "nesterov", "rmsprop", "adamw"])
def test_layers_join_from_the_last_to_the_first(variables, name):
    # Ten steps are an epoch: blocks join at 4 of 4, 3 of 4 of 16 steps, ...
    optimizer = _optimizer(f"train.optimizer={name},train.unfreeze_epochs=1.6")
    joined = np.full(6, -1)
    for step in range(18):
        before = _values(variables)
        _step(optimizer, variables)
        changed = _values(variables) != before
        joined[changed & (joined < 0)] = step
    assert joined.tolist() == [16, 12, 8, 4, 0, 0]


def test_decoupled_decay_is_that_of_adamw(variables):
    ours = _optimizer("train.optimizer=adamw,train.decoupled_weight_decay=0.05")
    theirs = keras.optimizers.AdamW(0.1, weight_decay=0.05)
    expected = [keras.Variable([1.0], name="kernel")]
    for gradient in (1.0, -0.5, 2.0):
        _step(ours, variables, gradient)
        _step(theirs, expected, gradient)
    values = _values(variables)
    np.testing.assert_allclose(values[:5], _values(expected)[0], rtol=1e-5)
    # The bias is left out, by train.weight_decay_exclude.
    assert values[5] > values[4]


def test_without_options_an_optimizer_is_plain():
    assert type(_optimizer("train.optimizer=rmsprop")) is optimizers.RMSProp


def test_the_model_is_that_of_the_weights(folder_run):
    """`train.ft_init_ckpt=RUN` needs no --model_name."""
    photos = str(folder_run.parent / "photos")
    saved = config_lib.read_saved(folder_run)["model"]
    for weights in (folder_run, folder_run / "checkpoints/best.npz"):
        config = config_lib.load(
            photos, hparam_str=f"train.ft_init_ckpt={weights}"
        )
        assert config.model.model_name == saved["model_name"]
        assert list(config.model.blocks) == saved["blocks"]
        assert config.model.feature_size == 32
    # What is given by hand counts.
    config = config_lib.load(
        photos,
        model_name="efficientnetv2-b0",
        hparam_str=f"train.ft_init_ckpt={folder_run}",
    )
    assert config.model.model_name == "efficientnetv2-b0"
    assert config.model.feature_size == 1280
    config = config_lib.load(photos, hparam_str="train.ft_init_ckpt=imagenet")
    assert config.model.model_name == "efficientnetv2-b0"


def test_weights_of_another_model_are_named(folder_run):
    config = config_lib.load(
        str(folder_run.parent / "photos"),
        model_name="efficientnetv2-b0",
        hparam_str=f"train.ft_init_ckpt={folder_run},train.batch_size=32",
    )
    network = architecture.build_network(config.model.to_dict())
    with pytest.raises(UserError) as error:
        zoo.initialize(network, config)
    text = str(error.value)
    assert "--model_name=efficientnetv2-pico" in text
    assert text.count("stem/conv/kernel") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_a_failed_start_leaves_the_folder_free(tiny_config, tmp_path):
    lines = []
    wrong = tiny_config(f"train.epochs=1,train.ft_init_ckpt={tmp_path}/none")
    with pytest.raises(UserError, match="none"):
        api.execute(wrong, tmp_path / "run", "train", log=lines.append)
    assert (tmp_path / "run/config.yaml").exists()
    right = tiny_config("train.epochs=0.5,train.stages=1")
    api.execute(right, tmp_path / "run", "train", log=lines.append)
    # Now there is a checkpoint, which another configuration does not get.
    with pytest.raises(runs.RunError, match="another configuration"):
        other = tiny_config("train.epochs=0.6,train.stages=1")
        api.execute(other, tmp_path / "run", "train", log=lines.append)


@pytest.mark.slow
@pytest.mark.usefixtures("small_data")
def test_callbacks_by_name(tiny_config, tmp_path, monkeypatch):
    (tmp_path / "tracking_of_test.py").write_text(
        "import keras\n"
        "class Tracker(keras.callbacks.Callback):\n"
        "    steps = 0\n"
        "    def on_train_batch_end(self, batch, logs=None):\n"
        "        Tracker.steps += 'loss' in logs\n"
        "def nothing():\n"
        "    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    name = "tracking_of_test:Tracker"
    config = tiny_config(f"train.epochs=1,train.callbacks={name}")
    assert list(config.train.callbacks) == [name]
    api.execute(config, tmp_path / "run", "train", log=lambda _: None)
    import tracking_of_test

    assert tracking_of_test.Tracker.steps == 200 // 32
    for wrong, words in (
        ("tracking_of_test:Traker", "Traker"),
        ("no_such_module:Tracker", "no_such_module"),
        ("tracking_of_test:nothing", "not a keras.callbacks.Callback"),
    ):
        with pytest.raises(UserError, match=words):
            recovery.load_callbacks([wrong])
    with pytest.raises(UserError, match="module:Class"):
        tiny_config("train.callbacks=tracking_of_test")
