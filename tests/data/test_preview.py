"""Contact sheets, and datasets written as folders and shards."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from efficientnetv2 import api
from efficientnetv2 import config as config_lib
from efficientnetv2.data import (
    decoding,
    fingerprint,
    listing,
    loading,
    output,
    pipeline,
    preprocessing,
    registry,
    sources,
)
from efficientnetv2.errors import DataError
from tests.conftest import TINY

pytestmark = pytest.mark.slow

SPLITS = ("train", "minival", "eval")


def _info(source, **changes):
    return dataclasses.replace(
        registry.load_info("fashion_mnist"),
        class_names=source.class_names,
        **changes,
    )


@pytest.mark.parametrize("mode", preprocessing.MODES)
def test_denormalize_undoes_normalize(mode):
    images = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    again = preprocessing.denormalize(
        preprocessing.normalize(images, mode), mode
    )
    np.testing.assert_array_equal(again, images)


def test_captions():
    names = ["cat", "dog", "cow"]
    for label, lines in (
        ([0, 1, 0], ["dog"]),
        ([0.25, 0, 0.75], ["0.75 cow", "0.25 cat"]),
        ([0.5, 0.3, 0.2], ["0.50 cat", "and 2 more"]),
        ([1, 1, 0], ["cat", "dog"]),
    ):
        assert output.caption(np.array(label, np.float32), names) == lines


@pytest.mark.usefixtures("small_data")
def test_a_sheet_shows_the_images_of_its_stage(tmp_path, source, tiny_config):
    config = tiny_config("train.stages=2,data.ram=10,data.cutmix_alpha=1")
    config = output.with_batch_size(config, 8)
    first, second = output.write_sheets(
        source, config, tmp_path / "new", "title"
    )
    assert (first.name, second.name) == ("stage_1.png", "stage_2.png")
    plan = config_lib.run_plan(config)
    dataset = pipeline.training_dataset(source, config, plan)
    images, _ = next(iter(dataset))
    assert images.shape == (8, 20, 20, 3)
    pixels = np.array(Image.open(first))
    # Each pixel of an image is a square of the sheet.
    left, upper = output.place(0, 6)
    cell = output.CELL
    shown = pixels[upper + 4 : upper + cell : 8, left + 4 : left + cell : 8]
    np.testing.assert_array_equal(
        shown, preprocessing.denormalize(images[0], "v2")
    )
    assert (pixels[upper + cell + 4 : upper + cell + 16] < 100).any()
    assert (np.array(Image.open(second)) != pixels).any()


def test_a_preview_of_fewer_images_than_a_sheet_holds(source, tiny_config):
    config = output.with_batch_size(tiny_config(), 10**6)
    assert config.train.batch_size == 55_000


def test_a_folder_written_from_a_dataset(tmp_path, source):
    path = output.write_dataset(
        _info(source), lambda split: source, tmp_path / "out", "folder", 3
    )
    info = registry.load_info(str(path))
    assert info.class_names == source.class_names
    assert info.recipe == "own_images"
    for split in SPLITS:
        read = loading.load_from(info, split, tmp_path)
        assert len(read) == 30
        for label in range(10):
            chosen = np.flatnonzero(source.labels == label)[:3]
            files = np.array(read.items)[read.labels == label]
            for file, index in zip(files, chosen, strict=True):
                np.testing.assert_array_equal(
                    decoding.decode(tf.io.read_file(file)),
                    source.images[index].repeat(3, axis=-1),
                )


def test_a_list_of_classes_orders_a_folder(tmp_path, source):
    # Which are not sorted, and of which one is no folder's name.
    names = ["T-shirt/top", *(f"{9 - k} things" for k in range(9))]
    info = dataclasses.replace(_info(source), class_names=names)
    path = output.write_dataset(
        info, lambda split: source, tmp_path / "out", "folder", 1
    )
    assert registry.load_info(str(path)).class_names == names
    read = loading.load_from(registry.load_info(str(path)), "train", tmp_path)
    for file, label in zip(read.items, read.labels, strict=True):
        assert listing.folder_name(names[label]) in file
    other = tmp_path / "other"
    path.rename(other)
    (other / listing.NAMES_FILE).unlink()
    sorted_info = registry.load_info(str(other))
    assert sorted_info.class_names[-1] == "T-shirt-top"
    assert listing.folder_name("../up") == "-up"
    # A model of the first order is evaluated all the same.
    read = loading.load_from(sorted_info, "train", tmp_path)
    again = sources.in_order_of(read, names)
    assert again.class_names == names and again.describe(0)
    for file, label in zip(again.items, again.labels, strict=True):
        assert listing.folder_name(names[label]) in file
    with pytest.raises(DataError, match="does not know the class '1 things'"):
        sources.in_order_of(read, ["3 thing", *names[:6]])


def test_evaluation_on_classes_in_another_order(folder_run, source, tmp_path):
    names = fingerprint.class_names(folder_run)
    backwards = dataclasses.replace(
        source, labels=9 - source.labels, class_names=source.class_names[::-1]
    )
    expected = api.evaluate(folder_run, log=print)
    assert names == source.class_names and expected["top1"] > 0.5
    for form in ("folder", "tfrecord"):
        path = output.write_dataset(
            _info(backwards), lambda split: backwards, tmp_path / form, form
        )
        assert registry.load_info(str(path)).class_names == names[::-1]
        result = api.evaluate(folder_run, hparam_str=f"data.ds_name={path}")
        assert result["dataset"] == str(path)
        assert result["images"] == expected["images"] == 200
        assert result["top1"] == expected["top1"]
        assert result["cross_entropy"] == pytest.approx(
            expected["cross_entropy"]
        )


def test_shards_written_from_a_dataset(tmp_path, source, monkeypatch):
    monkeypatch.setattr(output, "_SHARD", 64)
    path = output.write_dataset(
        _info(source), lambda split: source, tmp_path / "out", "tfrecord"
    )
    assert len(list(tmp_path.glob("out/train-*"))) == 4
    info = registry.load_info(str(path))
    # The shards are found beside their YAML file.
    read = loading.load_from(info, "train", tmp_path / "elsewhere")
    examples = list(sources.encoded_examples(read))
    np.testing.assert_array_equal([k for _, k in examples], source.labels)
    for (image, _), expected in zip(examples, source.images, strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(image), expected)
    assert registry.load_info(str(path)).recipe == "fashion_mnist"


def test_several_labels_go_into_shards_only(tmp_path, source):
    vectors = np.zeros((200, 10), np.float32)
    vectors[np.arange(200), source.labels] = 1
    vectors[:, 7] = 1
    several = dataclasses.replace(source, labels=vectors)
    info = _info(source, multi_label=True)
    with pytest.raises(DataError, match="tfrecord"):
        output.write_dataset(
            info, lambda split: several, tmp_path / "out", "folder"
        )
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        output.write_dataset(
            _info(source), lambda split: source, tmp_path, "folder"
        )
    path = output.write_dataset(
        info, lambda split: several, tmp_path / "out", "tfrecord"
    )
    info = registry.load_info(str(path))
    assert info.multi_label
    read = loading.load_from(info, "eval", tmp_path)
    labels = [label for _, label in sources.encoded_examples(read)]
    np.testing.assert_array_equal(labels, vectors)


def test_the_command(tmp_path, source):
    output.write_dataset(
        _info(source), lambda split: source, tmp_path / "photos", "folder"
    )

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "efficientnetv2.data", *arguments],
            capture_output=True,
            text=True,
        )

    result = run(
        "preview",
        f"--dataset={tmp_path / 'photos'}",
        "--recipe=fashion_mnist",
        f"--hparam_str={TINY},train.stages=2",
        "--images=4",
        f"--output_dir={tmp_path / 'sheets'}",
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("sheets/stage_*.png"))) == 2
    assert result.stderr == ""
    for arguments, words in (
        (["previw", "--dataset=cifar10"], "Did you mean 'preview'?"),
        (["preview"], "--dataset is missing"),
        (["export", "--dataset=cifar10"], "--output_dir is missing"),
    ):
        result = run(*arguments)
        assert result.returncode == 2 and words in result.stderr
