"""build_model as its users use it."""

import functools
import os

import keras
import numpy as np
import pytest
import yaml

import efficientnetv2
from efficientnetv2 import config as config_lib
from efficientnetv2 import declarative, zoo
from efficientnetv2.data import preprocessing
from efficientnetv2.serving.spec import ServingSpec
from tests.conftest import raises, run_code, run_program
from tests.models.weights.made import randomize

OPTIONS = {
    "num_classes": 4,
    "blocks": [
        "r1_k3_s1_e1_i8_o8_c1",
        "r2_k3_s2_e2_i8_o16_c1",
        "r1_k3_s2_e2_i16_o16_c1",
        "r2_k3_s2_e2_i16_o24_se0.25",
        "r1_k3_s2_e2_i24_o32_se0.25",
    ],
    "feature_size": 24,
}


V1 = {"include_preprocessing": True}


def _tiny(**options):
    return efficientnetv2.build_model(
        "efficientnetv2-b0", **{**OPTIONS, **options}
    )


def _images(size=40, batch=2):
    random = np.random.default_rng(0)
    return random.uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def test_a_name_gives_the_model():
    model = efficientnetv2.build_model("efficientnetv2-b0")
    assert model.name == "efficientnetv2-b0"
    assert model.output_shape == (None, 1000)
    lines = []
    model.summary(print_fn=lambda line, **_: lines.append(line))
    text = "\n".join(lines)
    assert "blocks_20" in text and "7,200,312" in text


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("efficientnetv2-t", {}, "efficientnetv2-"),
        ("EfficientNetV2S", {}, "efficientnetv2-s"),
        ("efficientnetv2-b0", {"actfn": "relu"}, "model.act_fn"),
        ("efficientnetv2-b0", {"act_fn": "rellu"}, "'relu'"),
        ("efficientnetv2-b0", {"survival_prob": 2.0}, "at most 1"),
        ("efficientnetv2-b0", {"fused_stages": 7}, "the 6 stages"),
        ("efficientnetv2-b0", {"pooling": "avrg"}, "include_top=False"),
        ("efficientnet-b0", {"pooling": "a", "include_top": False}, "'max'"),
        ("efficientnetv2-b0", {"include_preprocessing": "v3"}, "v2"),
        ("efficientnet-b0", {**V1, "input_shape": (32, 32, 4)}, "4 channels"),
        ("efficientnetv2-b0", {"input_shape": (3, 32, 32)}, "(32, 32, 3)"),
        ("efficientnetv2-b0", {"input_shape": (32, 32)}, "(32, 32)"),
        ("efficientnetv2-b0", {"input_shape": (32, 32, None)}, "channels)"),
        ("efficientnetv2-b0", {"input_shape": (0, 32, 3)}, "above 0"),
        ("efficientnetv2-b0", {"input_shape": 224}, "224"),
        ("absent.yaml", {}, "absent.yaml"),
    ],
)
def test_mistakes(name, options, word):
    with raises(ValueError, word):
        efficientnetv2.build_model(name, **options)


def test_two_models_in_a_third():
    inputs = keras.Input((32, 32, 3))
    left, right = (
        _tiny(include_top=False, name=name) for name in ("left", "right")
    )
    both = keras.Model(
        inputs, keras.layers.concatenate([left(inputs), right(inputs)])
    )
    assert (left.name, right.name) == ("left", "right")
    assert both.get_layer("left") is left
    assert both.output_shape == (None, 48)


def test_published_weights_are_those_of_the_architecture(monkeypatch):
    asked = []

    def fetch(name, weights):
        asked.append((name, weights))
        raise zoo.WeightsError("no network")

    monkeypatch.setattr(zoo.published, "fetch", fetch)
    with pytest.raises(zoo.WeightsError, match="no network"):
        efficientnetv2.build_model(
            "efficientnetv2-pico", weights="imagenet", name="left"
        )
    assert asked[0] == ("efficientnetv2-pico", "imagenet")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantization_by_keras(mode):
    keras.utils.set_random_seed(0)
    model = efficientnetv2.build_model(
        "efficientnetv2-pico", num_classes=3, survival_prob=0.8
    )
    quantized = keras.models.clone_model(model)
    quantized.set_weights(model.get_weights())
    quantized.quantize(mode)
    assert quantized.get_layer("logits").quantization_mode == mode
    images = _images(16)
    logits = model(images).numpy()
    np.testing.assert_allclose(
        quantized(images), logits, atol=0.2 * np.abs(logits).max()
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(channels):
    model = _tiny(
        include_preprocessing="v2", input_shape=(None, None, channels)
    )
    images = np.full((1, 32, 32, channels), 255.0, np.float32)
    assert model(images).shape == (1, 4)


def test_a_users_own_block_strings(tmp_path):
    path = tmp_path / "mine.yaml"
    options = {**OPTIONS, "num_classes": None, "model_name": "mine"}
    path.write_text(yaml.safe_dump({"model": options}))
    model = efficientnetv2.build_model(str(path), num_classes=3)
    assert model.name == "mine" and model.output_shape == (None, 3)
    config = config_lib.load("fashion_mnist", model_name=str(path))
    assert config.model.blocks == OPTIONS["blocks"]
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"no model\.blocks"):
        efficientnetv2.build_model(str(empty))


_V1 = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("name", "mode", "mean", "deviation"),
    [
        ("efficientnetv2-s", True, 128 / 255, 128 / 255),
        ("efficientnetv2-b0", True, *_V1),
        ("efficientnetv2-b3", True, *_V1),
        ("efficientnet-b1", True, *_V1),
        ("efficientnet-lite0", True, 127 / 255, 128 / 255),
        ("efficientnetv2-s", "ft", 0.5, 0.5),
    ],
)
def test_one_normalization_of_a_model_everywhere(name, mode, mean, deviation):
    """Numbers of the released configurations, on images in [0, 1]."""
    pixels = np.arange(256, dtype=np.float32)[:, None] * np.ones(3, np.float32)
    expected = (pixels / 255 - mean) / deviation
    model = efficientnetv2.build_model(
        name, include_preprocessing=mode, blocks=OPTIONS["blocks"]
    )
    inside = model.get_layer("normalize")(pixels)
    np.testing.assert_allclose(inside, expected, atol=1e-5)
    config = config_lib.load(
        "imagenet",
        model_name=name,
        hparam_str="data.augname=ft" if mode == "ft" else "",
    )
    # What training, evaluation, prediction and export take.
    spec = ServingSpec.from_config(config, ["tench"] * 1000)
    for mode in (spec.mode, config.data.normalization):
        np.testing.assert_allclose(
            preprocessing.normalize(pixels, mode), expected, atol=1e-5
        )
        np.testing.assert_array_equal(
            preprocessing.denormalize(expected, mode), pixels
        )


def test_features():
    images = _images()
    pooled, features, largest = (
        _tiny(include_top=False, pooling=kind) for kind in ("avg", None, "max")
    )
    assert pooled.output_shape == (None, 24)
    assert features.output_shape == (None, None, None, 24)
    for other in (features, largest):
        other.set_weights(pooled.get_weights())
    array = np.asarray(features(images))
    assert array.shape == (2, 2, 2, 24)
    np.testing.assert_allclose(
        pooled(images), array.mean((1, 2)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(largest(images), array.max((1, 2)))


def test_feature_pyramid():
    model = _tiny()
    pyramid = efficientnetv2.feature_pyramid(model)
    shapes = {k: tuple(v.shape[1:]) for k, v in pyramid(_images(64)).items()}
    channels = {1: 8, 2: 16, 3: 16, 4: 24, 5: 32}
    assert shapes == {
        f"reduction_{k}": (64 >> k, 64 >> k, count)
        for k, count in channels.items()
    }
    chosen = efficientnetv2.feature_pyramid(model, (3, 5))
    assert list(chosen.output) == ["reduction_3", "reduction_5"]
    by_hand = keras.Model(model.input, model.get_layer("reduction_4").output)
    assert by_hand(_images(33)).shape == (2, 3, 3, 24)
    with pytest.raises(ValueError, match="no reduction_6"):
        efficientnetv2.feature_pyramid(model, (6,))
    for name in ("efficientnetv2-s", "efficientnetv2-b0", "efficientnet-b0"):
        model = efficientnetv2.build_model(name, width_coefficient=0.1)
        found = efficientnetv2.feature_pyramid(model).output.values()
        assert len(found) == 5


@pytest.mark.slow
def test_frozen_in_sequential_and_fine_tuned(tmp_path):
    base = _tiny(include_top=False, include_preprocessing=True)
    base.trainable = False
    model = keras.Sequential(
        [keras.Input((32, 32, 3)), base, keras.layers.Dense(2)]
    )
    images = np.zeros((32, 32, 32, 3), np.float32)
    labels = np.arange(32) % 2
    images[labels == 1, :, :16] = 255
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fit(rate, epochs):
        """Returns names of the base's weights, and whether each changed."""
        before = base.get_weights()
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        model.fit(images, labels, epochs=epochs, verbose=0)
        return [
            (variable.name, not np.array_equal(old, variable))
            for old, variable in zip(before, base.weights, strict=True)
        ]

    assert not any(changed for _, changed in fit(0.05, 20))
    assert model.evaluate(images, labels, verbose=0)[1] == 1.0
    base.trainable = True
    assert all(c for name, c in fit(1e-3, 1) if name == "kernel")
    model.save(tmp_path / "tuned.keras")
    again = keras.models.load_model(tmp_path / "tuned.keras")
    np.testing.assert_array_equal(model(images), again(images))


PROGRAM = """
import {0}
import {1}
import numpy as np
folder = "{2}"
assert keras.backend.backend() == "{3}"
model = keras.models.load_model(f"{{folder}}/model.keras")
images = np.load(f"{{folder}}/images.npy")
logits = keras.ops.convert_to_numpy(model(images))
np.save(f"{{folder}}/logits.npy", logits)
own = efficientnetv2.build_model(f"{{folder}}/model.yaml", weights=model)
own = keras.ops.convert_to_numpy(own(images))
np.testing.assert_array_equal(own, logits)
"""


@pytest.fixture
def saved(tmp_path):
    """A saved model with its YAML, images and logits."""
    options = {**OPTIONS, "num_classes": 1000, "act_fn": "hswish"}
    model = _tiny(**options)
    randomize(model)
    model.save(tmp_path / "model.keras")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": options}))
    np.save(tmp_path / "images.npy", _images(49))
    return tmp_path, np.asarray(model(_images(49)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "imports", "bound"),
    [
        ("tensorflow", ("keras", "efficientnetv2"), 0.0),
        ("jax", ("efficientnetv2", "keras"), 1e-4),
    ],
)
def test_a_keras_file_in_a_fresh_process(saved, backend, imports, bound):
    folder, logits = saved
    program = PROGRAM.format(*imports, folder, backend)
    run_code(program, env={**os.environ, "KERAS_BACKEND": backend})
    found = np.load(folder / "logits.npy")
    np.testing.assert_allclose(found, logits, rtol=0, atol=bound)
    assert np.abs(logits).max() > 0.05


@pytest.mark.slow
def test_saved_model_round_trip(tmp_path):
    import tensorflow as tf

    model = _tiny(input_shape=(40, 40, 3))
    model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_array_equal(loaded.serve(_images()), model(_images()))


def test_the_table_command():
    run = functools.partial(run_program, module="efficientnetv2.models")
    result = run("--model_name=efficientnetv2-s", "--image_size=384")
    assert result.returncode == 0, result.stderr
    row = "MBConv4, k3, SE0.25       2       128       6    24x24"
    for words in (row, "21,612,360", "8.37B"):
        assert words in result.stdout
    assert max(map(len, result.stdout.split("\n"))) <= 80
    rows = {
        line.split()[0]: line.split()
        for line in run().stdout.splitlines()
        if line.startswith("efficientnet")
    }
    assert list(rows) == declarative.names("models")
    assert rows["efficientnetv2-l"][-2:] == ["85.7%", "86.9%"]
    fused = run(
        "--model_name=efficientnet-b4", "--hparam_str=model.fused_stages=3"
    )
    assert fused.stdout.count("Fused-MBConv") == 3
    for arguments, word in (
        (["--model_name=efficientnetv2-z"], "efficientnetv2-s"),
        (["--model_name=efficientnetv2-s", "--image_size=0"], "image_size"),
        (["--hparam_str=train.epochs=3"], "train"),
        (["x"], "'x'"),
    ):
        result = run(*arguments)
        assert result.returncode in (1, 2)
        assert word in result.stderr and "Traceback" not in result.stderr
