"""Splits of datasets."""

import os
import pathlib

import numpy as np
import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2.data import fashion_mnist, loading, registry
from tests.conftest import raises, run_code

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train", ("train", slice(None, None))),
        ("train[:55]", ("train", slice(None, 55))),
        ("a[5:9]", ("a", slice(5, 9))),
    ],
)
def test_slices(text, expected):
    assert loading.parse_slice(text) == expected
    with pytest.raises(ValueError, match="10%"):
        loading.parse_slice("train[:10%]")


@pytest.mark.parametrize("dataset", ["fashion_mnist", "cifar10"])
def test_train_and_minival_are_disjoint_and_make_trainval(dataset):
    splits = registry.load_info(dataset).splits
    rows = {
        name: range(split.num_images + 100_000)[
            loading.parse_slice(split.part or split.tfds_split)[1]
        ]
        for name, split in splits.items()
    }
    assert rows["train"].stop == rows["minival"].start
    assert (
        splits["train"].num_images + splits["minival"].num_images
        == splits["trainval"].num_images
    )
    test = splits["eval"].part or splits["eval"].tfds_split
    assert loading.parse_slice(test)[0] == "test"


@pytest.mark.parametrize("count", [60_000, 59_999])
def test_a_split_is_a_slice_of_the_right_size(monkeypatch, count):
    arrays = np.zeros((count, 28, 28, 1), np.uint8), np.arange(count) % 10
    monkeypatch.setattr(fashion_mnist, "load_part", lambda *_: arrays)
    config = config_lib.load("fashion_mnist")
    if count < 60_000:
        with pytest.raises(loading.DataError, match="4,999 images"):
            loading.load_split(config, "minival")
        return
    source = loading.load_split(config, "minival")
    assert len(source) == 5_000
    assert source.labels[0] == 55_000 % 10
    assert source.class_names[9] == "Ankle boot"


@pytest.mark.slow
def test_a_failed_import_of_tensorflow_datasets_says_why(tmp_path):
    # As in Colab: it imports, logs a traceback, and has no names.
    broken = tmp_path / "tensorflow_metadata"
    broken.mkdir()
    (broken / "__init__.py").write_text(
        "raise ImportError('incompatible Protobuf gencode')"
    )
    program = """
from efficientnetv2.data import loading
from efficientnetv2.errors import DataError
try:
    loading.import_tfds()
except DataError as error:
    print(error)
"""
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    text = run_code(program, env={**os.environ, "PYTHONPATH": path})
    assert "incompatible Protobuf gencode" in text
    assert "pip install 'tensorflow-metadata<1.18'" in text


def test_missing_data_without_a_network(tmp_path):
    config = config_lib.load(
        "cifar10",
        flags={"data.data_dir": str(tmp_path)},
        hparam_str="train.batch_size=64",
    )
    with raises(loading.DataError, "cifar10", tmp_path, "--data_dir"):
        loading.load_split(config, "train")
