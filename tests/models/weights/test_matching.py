"""All weights are set or none, whatever the format."""

import shutil

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

import efficientnetv2
from efficientnetv2.errors import WeightsError
from efficientnetv2.models import weights
from tests.conftest import raises
from tests.models.weights.made import (
    logits,
    randomize,
    slim_model,
    tiny,
    unchanged,
)


def test_a_classifier_of_another_size_only_when_asked(reference):
    folder = reference / "tf1_slim"
    model = slim_model(num_classes=3)
    words = ("model.ckpt-0", "(80, 10)", "(80, 3)", "skip_classifier")
    with unchanged(model), raises(WeightsError, *words):
        efficientnetv2.load_weights(model, folder)
    report = efficientnetv2.load_weights(model, folder, skip_classifier=True)
    assert report.skipped == ["logits/kernel", "logits/bias"]
    assert any("head_1/dense" in name for name in report.unused)


def test_unused_weights_are_named(reference):
    model = slim_model(include_top=False)
    report = efficientnetv2.load_weights(model, reference / "tf2_slim")
    assert "_fc/kernel/.ATTRIBUTES/VARIABLE_VALUE" in report.unused
    assert "_fc/kernel" in str(report) and report.surprises


HDF5 = b"\x89HDF\r\n\x1a\n" + b"a" * 40


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("", None, "has no checkpoint"),
        ("absent", None, "no weights at"),
        ("notes.txt", b"no weights", "unknown format"),
        ("model.pth", b"\x80\x04N.", "truncated"),
        ("a.h5", HDF5, "truncated"),
        ("a.keras", HDF5, "truncated"),
        ("a.safetensors", HDF5, "truncated"),
        ("a.npz", HDF5, "truncated"),
        ("a.weights.h5", HDF5, "truncated"),
        ("checkpoint", b'model_checkpoint_path: "gone"\n', "is missing"),
        ("model.ckpt-0.data-00000-of-00001", 10_000, "truncated"),
        ("model.ckpt-0.index", 500, "truncated"),
    ],
)
def test_bad_sources_leave_the_model_alone(
    reference, slim, tmp_path, name, content, word
):
    path = tmp_path / name
    if isinstance(content, int):
        for file in (reference / "tf1_slim").iterdir():
            shutil.copyfile(file, tmp_path / file.name)
        content = path.read_bytes()[:content]
    if content is not None:
        path.write_bytes(content)
    source = tmp_path if "ck" in name else path
    with unchanged(slim), raises(WeightsError, word, tmp_path):
        efficientnetv2.load_weights(slim, source)


def test_foreign_checkpoints(slim, tmp_path):
    tf.train.Checkpoint(a=tf.Variable(1.0)).save(tmp_path / "tf" / "ckpt")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save(tmp_path / "other.keras")
    safetensors.numpy.save_file(
        {"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors"
    )
    for source, word in (
        (tmp_path / "tf", "not an EfficientNet"),
        (other, "stem_conv/kernel"),
        (tmp_path / "other.keras", "other.keras"),
        (tmp_path / "other.safetensors", "conv_stem"),
    ):
        with raises(WeightsError, word):
            efficientnetv2.load_weights(slim, source)
    with raises(WeightsError, "not built by"):
        efficientnetv2.load_weights(other, tmp_path / "other.safetensors")
    theirs = keras.applications.EfficientNetV2B0(weights=None, classes=10)
    with unchanged(theirs), raises(WeightsError, "unchanged"):
        efficientnetv2.to_keras_applications(slim, theirs)


def test_a_new_file_is_a_new_format(tmp_path, monkeypatch, images):
    (tmp_path / "raw.py").write_text(
        """
import contextlib
import numpy as np
from efficientnetv2.models import weights

def recognizes(path):
    return path.suffix == ".raw"

@contextlib.contextmanager
def opened(path, ema):
    arrays = np.load(path.open("rb"))
    shapes = {name: arrays[name].shape for name in arrays.files}
    yield weights.Source(
        str(path), shapes, arrays.__getitem__, lambda slot: [slot.path]
    )
"""
    )
    monkeypatch.setattr(weights, "__path__", [*weights.__path__, str(tmp_path)])
    model = tiny()
    randomize(model)
    arrays = {s.path: np.asarray(s.variable) for s in weights.slots(model)}
    with open(tmp_path / "model.raw", "wb") as file:
        np.savez(file, **arrays)
    again = tiny(weights=tmp_path / "model.raw")
    np.testing.assert_array_equal(logits(again, images), logits(model, images))
