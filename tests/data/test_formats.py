"""The same images from arrays, shards, folders and TensorFlow Datasets."""

import functools
import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import yaml
from PIL import Image

from efficientnetv2 import api, declarative
from efficientnetv2 import config as config_lib
from efficientnetv2.config import run_plan
from efficientnetv2.data import (
    faults,
    loading,
    output,
    pipeline,
    registry,
    sources,
)
from efficientnetv2.errors import DataError
from tests.conftest import TINY, encode, raises, run_program

pytestmark = pytest.mark.slow

CLASSES = [f"class {k}" for k in range(10)]


def _png(image) -> bytes:
    return encode(Image.fromarray(np.squeeze(image)), "PNG")


def _write_folder(root, source):
    for index, (image, label) in enumerate(
        zip(source.images, source.labels, strict=True)
    ):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index:03d}.png").write_bytes(_png(image))
    return root


def _example(image, labels):
    vector = np.zeros(20)
    vector[labels] = 1
    return output.to_example(image, vector)


def _write_shards(root, source, count=4, labels=None):
    root.mkdir(parents=True, exist_ok=True)
    if labels is None:
        labels = [[label + 1] for label in source.labels]
    bounds = np.linspace(0, len(source), count + 1).astype(int)
    for shard, (first, last) in enumerate(
        zip(bounds[:-1], bounds[1:], strict=True)
    ):
        path = str(root / f"train-{shard:05d}-of-{count:05d}")
        with tf.io.TFRecordWriter(path) as writer:
            for k in range(first, last):
                writer.write(_example(_png(source.images[k]), labels[k]))
    return root


def _write_yaml(path, **content):
    path.write_text(yaml.safe_dump(content))
    return str(path)


def _records_yaml(path, **options):
    splits = {
        name: {"num_images": 200, "files": "train*"}
        for name in ("train", "minival", "eval")
    }
    content = {"source": "tfrecord", "num_classes": 10, "class_names": CLASSES}
    content |= {"recipe": "fashion_mnist", "label_offset": -1, "splits": splits}
    return _write_yaml(path, **content | options)


def _config(dataset, tmp_path, overrides=""):
    return config_lib.load(
        str(dataset),
        recipe="fashion_mnist",
        hparam_str=f"{TINY},{overrides}" if overrides else TINY,
        flags={"data.data_dir": str(tmp_path)},
    )


def _evaluated(source, config):
    parts = list(pipeline.evaluation_dataset(source, config))
    return tuple(
        np.concatenate([part[k].numpy() for part in parts]) for k in (0, 1)
    )


def _same(one, other):
    tf.nest.map_structure(np.testing.assert_array_equal, one, other)


def _batches(source, config, first_step=0, skipped=0):
    plan = run_plan(config)
    dataset = pipeline.training_dataset(
        source, config, plan, first_step, skipped
    )
    return [(x.numpy(), y.numpy()) for x, y in dataset]


def test_a_folder_gives_what_the_array_gives(tmp_path, source):
    _write_folder(tmp_path / "photos", source)
    config = _config(
        tmp_path / "photos",
        tmp_path,
        "train.epochs=2,train.stages=2,train.batch_size=16,data.cutmix_alpha=1",
    )
    loaded = loading.load_split(config, "trainval", log=lambda _: None)
    assert loaded.class_names == CLASSES
    # The array with the same images in the same order.
    numbers = [int(path[-7:-4]) for path in loaded.items]
    same = sources.ArraySource(
        source.images[numbers], source.labels[numbers], CLASSES
    )
    np.testing.assert_array_equal(loaded.labels, same.labels)
    _same(_evaluated(loaded, config), _evaluated(same, config))
    config.unlock()
    config.train.split = "trainval"
    ours, theirs = _batches(loaded, config), _batches(same, config)
    assert len(ours) == len(theirs) == 2 * (len(same) // 16)
    sizes = set()
    for (x, y), (other_x, other_y) in zip(ours, theirs, strict=True):
        # Resizing one by one and in a batch may fall on two sides of a whole
        # number, which then is rounded down: one level of 256.
        difference = np.abs(x - other_x)
        assert difference.max() <= 1 / 128 + 1e-5
        assert np.mean(difference > 1e-5) < 1e-3
        np.testing.assert_array_equal(y, other_y)
        sizes.add(x.shape[1])
    assert sizes == {20, 24}
    resumed = _batches(loaded, config, first_step=len(ours) - 3)
    _same(resumed, ours[-3:])


def test_shards(tmp_path, source):
    _write_shards(tmp_path / "mine", source)
    name = _records_yaml(tmp_path / "mine.yaml")
    options = "train.epochs=2,train.batch_size=32,data.aug_prob=0"
    config = _config(name, tmp_path, options)
    loaded = loading.load_split(config, "train")
    _same(_evaluated(loaded, config), _evaluated(source, config))
    batches = _batches(loaded, config)
    assert len(batches) == 2 * (200 // 32)
    assert batches[0][0].shape == (32, 18, 18, 3)
    for epoch in (batches[:6], batches[6:]):
        labels = np.concatenate([y.argmax(1) for _, y in epoch])
        # 192 of 200 examples, of which each class has twenty.
        assert np.bincount(labels).min() >= 12
    first, second = batches[0][1], batches[6][1]
    assert (first != second).any()
    for step in (4, 7):
        _same(_batches(loaded, config, first_step=step), batches[step:])
    # Mixing follows the step, and is left out here with the data.
    plain = f"{options},train.stages=1,data.mixup_alpha=0,data.cutmix_alpha=0"
    config = _config(name, tmp_path, plain)
    skipping = _batches(loaded, config, first_step=2, skipped=5)
    assert len(skipping) == 10
    _same(skipping[:5], _batches(loaded, config)[7:])


@pytest.mark.parametrize("loss_type", ["softmax", "sigmoid", "sigmoid_sum"])
def test_training_on_several_labels(tmp_path, source, loss_type):
    # The class itself, and whether it is even.
    labels = [[label + 1, 11 + label % 2] for label in source.labels]
    _write_shards(tmp_path / "mine", source, labels=labels)
    classes = {"num_classes": 12, "class_names": [*CLASSES, "even", "odd"]}
    name = _records_yaml(tmp_path / "mine.yaml", multi_label=True, **classes)
    options = "train.epochs=1,train.label_smoothing=0,data.augname=null"
    options += f",train.loss_type={loss_type}"
    api.execute(_config(name, tmp_path, options), tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    test = metrics["test"]
    assert test["images"] == 200
    assert test["precision_1"] == test["top1"]
    assert 0 < test["recall_1"] <= 0.5 and 0 < test["pr_auc"] < 1
    assert (tmp_path / "run" / "saved_model").is_dir()


def test_bad_images_can_be_left_out(tmp_path, source):
    _write_folder(tmp_path / "photos", source)
    _write_shards(tmp_path / "mine", source)
    third = tmp_path / "mine" / "train-00002-of-00004"
    with tf.io.TFRecordWriter(str(third)) as writer:
        for k in range(100, 150):
            image = _png(source.images[k])[: 50 if k in (107, 108) else None]
            label = [source.labels[k] + 1]
            writer.write(_example(image, label))
    name = _records_yaml(tmp_path / "mine.yaml")
    options = "train.epochs=2,data.on_corrupt=skip,data.augname=null"
    for dataset, split, total in (
        (tmp_path / "photos", "trainval", 180),
        (name, "train", 200),
    ):
        config = _config(dataset, tmp_path, options)
        config.unlock()
        config.train.split = config.eval.split = config.eval.val_split = split
        if dataset != name:
            files = registry.list_images(dataset).splits[split].files
            pathlib.Path(files[3]).write_bytes(b"")
            pathlib.Path(files[90]).write_bytes(b"no image")
        lines = []
        folder = tmp_path / f"run-{total}"
        api.execute(config, folder, log=lines.append)
        text = "\n".join(lines)
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["steps"] == 2 * (total // 32)
        assert metrics["test"]["images"] == total - 2
        if dataset == name:
            assert "Left out 2 different images" in text
        else:
            assert "left out 2 of 180 images" in text and files[90] in text


def _truncate(path, part=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])


def _flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("kind", ["empty", "cut", "text", "gone"])
def test_a_bad_image_in_a_folder_is_named(tmp_path, source, kind, mode):
    _write_folder(tmp_path / "photos", source)
    config = _config(tmp_path / "photos", tmp_path, "train.epochs=1")
    split = loading.load_split(config, "eval", log=lambda _: None)
    bad = pathlib.Path(split.items[7])
    if kind == "cut":
        _truncate(bad)
    elif kind == "gone":
        bad.unlink()
    else:
        bad.write_bytes(b"" if kind == "empty" else b"no image at all")
    words = [bad, f"class {CLASSES[split.labels[7]]!r}"]
    words += ["it is empty"] * (kind == "empty")
    with raises(DataError, *words), faults.explained(split):
        if mode == "eval":
            _evaluated(split, config)
        else:
            config.unlock()
            config.train.split = "eval"
            config.train.batch_size = 20
            _batches(split, config)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", ["train-00002-of-00004", "truncated at record"]),
        ("flip", ["train-00002-of-00004", "record"]),
        ("label", ["train-00002-of-00004, record 3", "10 is not below 10"]),
        ("image", ["train-00002-of-00004, record 3", "cannot be read"]),
        ("missing", ["hold 150 examples", "200"]),
        ("foreign", ["train-00002-of-00004, record 0", "image/encoded"]),
        ("text", ["train-00002-of-00004, record 0", "not a tf.train.Example"]),
        ("noise", ["train-00002-of-00004, record 0", "not a tf.train.Example"]),
    ],
)
def test_bad_shards_are_named(tmp_path, source, kind, words):
    labels = [[label + 1] for label in source.labels]
    if kind == "label":
        labels[103] = [11]
    _write_shards(tmp_path / "mine", source, labels=labels)
    third = tmp_path / "mine" / "train-00002-of-00004"
    if kind == "cut":
        _truncate(third)
    elif kind == "flip":
        _flip(third)
    elif kind == "missing":
        third.unlink()
    elif kind in ("text", "noise"):
        with tf.io.TFRecordWriter(str(third)) as writer:
            writer.write({"text": b"no record", "noise": b"\n\xa4\xff"}[kind])
    elif kind in ("image", "foreign"):
        new = {"image": b"encoded", "foreign": b"pixels."}[kind]
        with tf.io.TFRecordWriter(str(third)) as writer:
            for k in range(50):
                image = _png(source.images[k])
                if kind == "image" and k == 3:
                    image = image[:50]
                writer.write(_example(image, [1]).replace(b"encoded", new))
    name = _records_yaml(tmp_path / "mine.yaml")
    config = _config(name, tmp_path, "train.epochs=1,train.batch_size=20")
    split = loading.load_split(config, "train")
    with raises(DataError, *words), faults.explained(split):
        _batches(split, config)


def test_hosts_read_files_of_their_own(tmp_path, source):
    _write_shards(tmp_path, source)
    info = registry.load_info(_records_yaml(tmp_path / "mine.yaml"))
    whole = loading.open_shards(info, info.splits["train"], tmp_path)
    parts = [whole.part(host, 3) for host in range(3)]
    paths = [shard.path for part in parts for shard in part.shards]
    assert len(paths) == len(set(paths)) == 4
    with pytest.raises(DataError, match=r"4 shards, .* fewer than the 5 hosts"):
        whole.part(0, 5)


def test_tensorflow_datasets(tmp_path, source):
    class Mine(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image = tfds.features.Image(shape=self.shape, encoding_format="png")
            label = tfds.features.ClassLabel(names=CLASSES)
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {"image": image, "label": label}
                )
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            pairs = zip(source.images, source.labels, strict=True)
            for key, (image, label) in enumerate(pairs):
                yield key, {"image": image, "label": int(label)}

    expected = None
    for shape in ((28, 28, 1), (None, None, 1)):
        folder = tmp_path / str(len([n for n in shape if n]))
        Mine.shape = shape
        Mine(data_dir=folder).download_and_prepare()
        name = _write_yaml(
            tmp_path / "mine.yaml",
            source="tfds",
            tfds_name="mine",
            class_names=CLASSES,
            splits={
                "train": {"num_images": 150, "tfds_split": "train[:150]"},
                "minival": {"num_images": 50, "tfds_split": "train[150:]"},
                "eval": {"num_images": 200, "tfds_split": "train"},
            },
        )
        config = _config(name, folder, "train.epochs=1")
        loaded = loading.load_split(config, "eval", log=lambda _: None)
        images, labels = _evaluated(loaded, config)
        if expected is None:
            assert isinstance(loaded, sources.ArraySource)
            expected = images, labels
        else:
            assert isinstance(loaded, sources.EncodedSource)
            np.testing.assert_array_equal(images, expected[0])
            np.testing.assert_array_equal(labels, expected[1])
        assert sorted(labels) == sorted(source.labels)
        part = loading.load_split(config, "minival", log=lambda _: None)
        assert len(part) == 50
        train = loading.load_split(config, "train", log=lambda _: None)
        assert len(_batches(train, config)) == 150 // 32


def test_missing_folder_and_shards(tmp_path):
    with pytest.raises(DataError, match="no folder of images at .*absent"):
        config_lib.load(str(tmp_path / "absent"))
    name = _records_yaml(tmp_path / "mine.yaml", how_to_get="Ask Ann.")
    with pytest.raises(DataError, match=r"no file matches train\*.*Ask Ann"):
        loading.load_split(_config(name, tmp_path), "train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "web"}, ["tfds, tfrecord, folder", "'web'"]),
        ({"sourse": "tfrecord"}, ["'sourse'", "'source'"]),
        ({"class_names": ["a"]}, ["10 names"]),
        ({"num_classes": "ten"}, ["whole number", "'ten'"]),
        ({"splits": {}}, ["needs a split 'train'"]),
        ({"splits": {"train": {"num_images": 0, "files": "x"}}}, ["'train'"]),
        ({"splits": {"train": {"num_images": 3}}}, ["needs 'files: ...'"]),
        (
            {"splits": {"train": {"num_images": 3, "files": "x", "a": 1}}},
            ["'a'"],
        ),
        ({"label_offset": "one"}, ["label_offset", "'one'"]),
        ({"source": "folder"}, ["folder: path"]),
        ({"source": "tfds"}, ["tfds_name"]),
    ],
)
def test_mistakes_in_a_users_yaml(tmp_path, change, words):
    name = _records_yaml(tmp_path / "mine.yaml", **change)
    with raises(config_lib.ConfigError, *words, "mine.yaml"):
        config_lib.load(name)


def test_the_list_of_datasets(tmp_path, source):
    run = functools.partial(run_program, module="efficientnetv2.data")
    table = run(f"--data_dir={tmp_path}").stdout.splitlines()
    names = declarative.names("datasets")
    assert [line.split()[0] for line in table[1 : len(names) + 1]] == names
    assert {"imagenet", "imagenet21k", "imagenet_tfds", "cars"} < set(names)
    _write_shards(tmp_path / "imagenet", source)
    table = run(f"--data_dir={tmp_path}").stdout
    assert "4 shards" in table
    one = run("--dataset=imagenet", f"--data_dir={tmp_path}").stdout
    assert "n01440764" in one and "shards [20, None]" in one
    _write_folder(tmp_path / "photos", source)
    one = run(f"--dataset={tmp_path / 'photos'}").stdout
    assert "class 9" in one
    # Split by a hash of each name, about 8 to 1 to 1.
    counts = dict(re.findall(r"^(\w+) +(\d+) images", one, re.MULTILINE))
    parts = [int(counts[name]) for name in ("train", "minival", "eval")]
    assert sum(parts) == 200 and parts[0] > 140
    result = run("--dataset=imagent")
    assert result.returncode == 2 and "'imagenet'" in result.stderr
