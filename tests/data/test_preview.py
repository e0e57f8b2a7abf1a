"""Contact sheets, and datasets written as folders and shards."""

import dataclasses
import functools

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
from tests.conftest import TINY, run_program, write_photos

pytestmark = pytest.mark.slow

SPLITS = ("train", "minival", "eval")


@pytest.mark.parametrize("mode", preprocessing.MODES)
def test_denormalize_undoes_normalize(mode):
    images = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    normal = preprocessing.normalize(images, mode)
    np.testing.assert_array_equal(
        preprocessing.denormalize(normal, mode), images
    )


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
    path = write_photos(tmp_path / "out", lambda _: source, images_per_class=3)
    info = registry.load_info(path)
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
    out, few = tmp_path / "out", {"images_per_class": 1, "class_names": names}
    info = registry.load_info(write_photos(out, lambda _: source, **few))
    assert info.class_names == names
    read = loading.load_from(info, "train", tmp_path)
    for file, label in zip(read.items, read.labels, strict=True):
        assert listing.folder_name(names[label]) in file
    other = tmp_path / "other"
    out.rename(other)
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
        path = write_photos(tmp_path / form, lambda _: backwards, form)
        assert registry.load_info(path).class_names == names[::-1]
        result = api.evaluate(folder_run, hparam_str=f"data.ds_name={path}")
        assert result["dataset"] == path and result["images"] == 200
        for key in ("top1", "cross_entropy"):
            assert result[key] == pytest.approx(expected[key])


def test_shards_written_from_a_dataset(tmp_path, source, monkeypatch):
    monkeypatch.setattr(output, "_SHARD", 64)
    path = write_photos(tmp_path / "out", lambda _: source, "tfrecord")
    assert len(list(tmp_path.glob("out/train-*"))) == 4
    info = registry.load_info(path)
    # The shards are found beside their YAML file.
    read = loading.load_from(info, "train", tmp_path / "elsewhere")
    examples = list(sources.encoded_examples(read))
    np.testing.assert_array_equal([k for _, k in examples], source.labels)
    for (image, _), expected in zip(examples, source.images, strict=True):
        np.testing.assert_array_equal(tf.io.decode_png(image), expected)
    assert info.recipe == "fashion_mnist"


def test_several_labels_go_into_shards_only(tmp_path, source):
    vectors = np.zeros((200, 10), np.float32)
    vectors[np.arange(200), source.labels] = 1
    vectors[:, 7] = 1
    several = dataclasses.replace(source, labels=vectors)
    write = functools.partial(write_photos, load=lambda _: several)
    with pytest.raises(DataError, match="tfrecord"):
        write(tmp_path / "out", multi_label=True)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        write(tmp_path)
    path = write(tmp_path / "out", form="tfrecord", multi_label=True)
    info = registry.load_info(path)
    assert info.multi_label
    read = loading.load_from(info, "eval", tmp_path)
    labels = [label for _, label in sources.encoded_examples(read)]
    np.testing.assert_array_equal(labels, vectors)
    wide = pipeline.to_vectors(tf.constant(vectors), 12).numpy()
    assert wide.shape == (200, 12) and not wide[:, 10:].any()


def test_the_command(tmp_path, photos):
    run = functools.partial(run_program, module="efficientnetv2.data")
    result = run(
        *("preview", f"--dataset={photos}", "--recipe=fashion_mnist"),
        *(f"--hparam_str={TINY},train.stages=2", "--images=4"),
        f"--output_dir={tmp_path / 'sheets'}",
    )
    assert result.returncode == 0, result.stderr
    assert len(list(tmp_path.glob("sheets/stage_*.png"))) == 2
    assert result.stderr == ""
    for arguments, words in (
        (["previw", "--dataset=cifar10"], "Did you mean 'preview'?"),
        (["preview"], "Set --dataset"),
        (["export", "--dataset=cifar10"], "Set --output_dir"),
    ):
        result = run(*arguments)
        assert result.returncode == 2 and words in result.stderr
