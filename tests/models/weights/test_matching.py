"""All weights are set or none, whatever the format."""

import os
import pathlib
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import efficientnetv2
from efficientnetv2.errors import WeightsError
from efficientnetv2.models import weights
from tests.models.weights.made import (
    SLIM,
    logits,
    randomize,
    slim_model,
    tiny,
    unchanged,
)


def test_a_classifier_of_another_size_only_when_asked(reference):
    folder = reference / "tf1_slim"
    model = efficientnetv2.build_model(
        "efficientnetv2-b0", **{**SLIM, "num_classes": 3}
    )
    with unchanged(model), pytest.raises(WeightsError) as error:
        efficientnetv2.load_weights(model, folder)
    for word in ("model.ckpt-0", "(80, 10)", "(80, 3)", "skip_classifier"):
        assert word in str(error.value)
    report = efficientnetv2.load_weights(model, folder, skip_classifier=True)
    assert report.skipped == ["logits/kernel", "logits/bias"]
    assert any("head_1/dense" in name for name in report.unused)


def test_unused_weights_are_named(reference):
    model = slim_model(include_top=False)
    report = efficientnetv2.load_weights(model, reference / "tf2_slim")
    assert "_fc/kernel/.ATTRIBUTES/VARIABLE_VALUE" in report.unused
    assert "_fc/kernel" in str(report) and report.surprises


def _damage(path, reference, kind):
    """Writes a bad source and returns its path."""
    source = reference / "tf1_slim"
    prefix = path / "model.ckpt-0"
    if kind == "empty folder":
        return path
    if kind == "nothing":
        return path / "absent"
    if kind == "text":
        (path / "notes.txt").write_text("no weights")
        return path / "notes.txt"
    if kind == "pickle":
        (path / "model.pth").write_bytes(b"\x80\x04N.")
        return path / "model.pth"
    if kind.startswith("short "):
        suffix = kind.removeprefix("short ")
        (path / f"a{suffix}").write_bytes(b"\x89HDF\r\n\x1a\n" + b"a" * 40)
        return path / f"a{suffix}"
    if kind == "state without index":
        (path / "checkpoint").write_text('model_checkpoint_path: "gone"\n')
        return path
    for file in source.iterdir():
        shutil.copy(file, path)
    cut = {"cut data": "data-00000-of-00001", "cut index": "index"}[kind]
    file = pathlib.Path(f"{prefix}.{cut}")
    os.chmod(file, 0o644)
    with open(file, "r+b") as opened:
        opened.truncate(file.stat().st_size // 3)
    return path


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        ("empty folder", "has no checkpoint"),
        ("nothing", "no weights at"),
        ("text", "unknown format"),
        ("pickle", "cut short"),
        ("short .h5", "cut short"),
        ("short .keras", "cut short"),
        ("short .safetensors", "cut short"),
        ("short .npz", "cut short"),
        ("short .weights.h5", "cut short"),
        ("state without index", "is missing"),
        ("cut data", "cut short"),
        ("cut index", "cut short"),
    ],
)
def test_bad_sources_leave_the_model_alone(
    reference, slim, tmp_path, kind, word
):
    path = _damage(tmp_path, reference, kind)
    with unchanged(slim), pytest.raises(WeightsError, match=word) as error:
        efficientnetv2.load_weights(slim, path)
    assert str(tmp_path) in str(error.value)


def test_foreign_checkpoints(slim, tmp_path):
    tf.train.Checkpoint(a=tf.Variable(1.0)).save(tmp_path / "tf" / "ckpt")
    with pytest.raises(WeightsError, match="not of an EfficientNet"):
        efficientnetv2.load_weights(slim, tmp_path / "tf")
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(WeightsError, match="stem_conv/kernel"):
        efficientnetv2.load_weights(slim, other)
    other.save(tmp_path / "other.keras")
    with pytest.raises(WeightsError, match=r"other\.keras"):
        efficientnetv2.load_weights(slim, tmp_path / "other.keras")
    import safetensors.numpy

    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(WeightsError, match="conv_stem"):
        efficientnetv2.load_weights(slim, path)
    with pytest.raises(WeightsError, match="not built by"):
        efficientnetv2.load_weights(other, path)
    theirs = keras.applications.EfficientNetV2B0(weights=None, classes=10)
    with unchanged(theirs), pytest.raises(WeightsError, match="unchanged"):
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
