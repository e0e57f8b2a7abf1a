"""What is made of a split: so many images of each class, and weights."""

import csv
import dataclasses

import numpy as np
import pytest

from efficientnetv2 import config as config_lib
from efficientnetv2.config import run_plan
from efficientnetv2.data import fingerprint, loading, registry, sources
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Shard,
    StreamSource,
    class_weights,
)
from efficientnetv2.declarative import ConfigError
from efficientnetv2.errors import DataError
from tests.data import test_formats as made


def _folder(root, source):
    return made._write_folder(root / "photos", source)


def _csv(root, source):
    photos = _folder(root, source)
    path = root / "photos.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "label"))
        for image in sorted(photos.rglob("*.png")):
            writer.writerow((image.relative_to(root), image.parent.name))
    return path


def _shards(root, source):
    made._write_shards(root / "mine", source)
    return made._records_yaml(root / "mine.yaml")


def test_the_choice_is_fixed_balanced_and_nested(source):
    few = sources.with_images_per_class(source, 3)
    more = sources.with_images_per_class(source, 7)
    assert np.bincount(few.labels).tolist() == [3] * 10
    images = {image.tobytes() for image in more.images}
    assert all(image.tobytes() in images for image in few.images)
    # Runs that are compared, or resumed elsewhere, see the same images.
    places = np.flatnonzero(
        (source.images[:, None] == few.images[None]).all((2, 3, 4)).any(1)
    )
    assert places[:6].tolist() == [5, 7, 12, 16, 18, 33]
    np.testing.assert_array_equal(few.labels, source.labels[places])


@pytest.mark.parametrize("make", [_folder, _csv, _shards])
def test_every_source_gives_so_many(tmp_path, source, make):
    options = "data.images_per_class=4,train.batch_size=8,train.epochs=3"
    config = made._config(make(tmp_path, source), tmp_path, options)
    loaded = loading.load_split(config, "train")
    assert np.bincount(loaded.labels).tolist() == [4] * 10
    assert isinstance(loaded, EncodedSource)
    plan = run_plan(config)
    assert (plan.num_images, plan.steps_per_epoch) == (len(loaded), 5)
    assert plan.total_steps == 15
    # The other splits stay whole.
    info = registry.load_info(config.data.ds_name)
    assert (
        len(loading.load_split(config, "eval"))
        == info.splits["eval"].num_images
    )


def test_images_of_shards_keep_their_labels(tmp_path, source):
    options = "data.images_per_class=4,train.batch_size=8"
    config = made._config(_shards(tmp_path, source), tmp_path, options)
    expected = sources.with_images_per_class(source, 4)
    loaded = loading.load_split(config, "train")
    np.testing.assert_array_equal(loaded.labels, expected.labels)
    assert loaded.items == [made._png(image) for image in expected.images]


def test_bad_images_are_replaced_where_they_are_skipped(tmp_path, source):
    photos = _folder(tmp_path, source)
    text = "data.images_per_class=4,train.batch_size=8"
    bad = loading.load_split(
        made._config(photos, tmp_path, text), "train"
    ).items[0]
    with open(bad, "wb") as file:
        file.write(b"no image")
    config = made._config(photos, tmp_path, f"{text},data.on_corrupt=skip")
    loaded = loading.load_split(config, "train")
    assert bad not in loaded.items
    assert np.bincount(loaded.labels).tolist() == [4] * 10


def test_what_cannot_be_balanced_is_refused(tmp_path, source):
    with pytest.raises(DataError, match="'class 0' has only 20"):
        sources.with_images_per_class(source, 21)
    several = ArraySource(
        source.images, np.eye(10)[source.labels], source.class_names
    )
    with pytest.raises(DataError, match="several labels"):
        sources.with_images_per_class(several, 1)
    config = made._config(_shards(tmp_path, source), tmp_path)
    stream = loading.load_split(config, "train")
    with pytest.raises(DataError, match="at most 1000 per class"):
        sources.with_images_per_class(stream, 1001)
    path = tmp_path / "cut"
    path.write_bytes(b"no records" * 10)
    broken = dataclasses.replace(stream, shards=[Shard(str(path))])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        sources.with_images_per_class(broken, 1)


def test_too_many_are_refused_before_data_are_read():
    with pytest.raises(ConfigError, match=r"has 55,000; at most 5,500\."):
        config_lib.load(
            "fashion_mnist", hparam_str="data.images_per_class=5501"
        )


def test_a_run_resumes_with_its_own_images_only(tmp_path, source):
    photos = _folder(tmp_path, source)
    text = "train.batch_size=8,data.images_per_class="
    run = tmp_path / "run"
    run.mkdir()

    def claim(images, begun):
        config = made._config(photos, tmp_path, f"{text}{images}")
        return fingerprint.claim(config, run, lambda _: None, begun)

    for name, content in claim(4, begun=False).items():
        (run / name).write_text(content)
    claim(4, begun=True)
    with pytest.raises(fingerprint.ChangedDataError, match="4 then, 5 now"):
        claim(5, begun=True)
    with pytest.raises(fingerprint.ChangedDataError, match="4 then, all now"):
        claim("null", begun=True)
    # Its data are known elsewhere too.
    moved = photos.rename(tmp_path / "moved")
    fingerprint.check_is_of_run(str(moved), str(photos), run)


# --- Weights of classes in the loss -------------------------------------------

NAMES = ["cat", "dog: large"]
SOURCE = ArraySource(
    np.zeros([4, 2, 2, 3], np.uint8), np.array([0, 1, 1, 1]), NAMES
)


def test_weights_of_classes():
    weights = class_weights(["balanced"], SOURCE)
    np.testing.assert_allclose(weights, [2.0, 2 / 3])
    assert np.mean(weights[SOURCE.labels]) == pytest.approx(1.0)
    weights = class_weights(["dog: large:3"], SOURCE)
    np.testing.assert_array_equal(weights, [1.0, 3.0])
    assert class_weights(None, SOURCE) is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("cta:2", "Did you mean 'cat'"),
        ("cat:many", "no positive number"),
        ("cat:-1", "no positive number"),
        ("balance", "neither"),
    ],
)
def test_wrong_weights(entry, words):
    with pytest.raises(DataError, match=words):
        class_weights([entry], SOURCE)
    source = StreamSource([], lambda record: record, 4, NAMES)
    with pytest.raises(DataError, match="shards"):
        class_weights(["balanced"], source)
