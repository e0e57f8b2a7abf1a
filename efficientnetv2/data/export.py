"""A dataset of the registry as a folder of images, or as TFRecord shards.

What is written is itself a dataset: of source `folder` or `tfrecord`.
"""

import itertools
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf
import yaml

from efficientnetv2 import progress
from efficientnetv2.data import class_list, sources
from efficientnetv2.data.registry import DatasetInfo
from efficientnetv2.data.sources import ArraySource, Source
from efficientnetv2.errors import DataError

FORMATS = ("folder", "tfrecord")
_YAML = "dataset.yaml"
# The folder of each split; `trainval` is the first two when it is read.
_FOLDERS = {"train": "train", "minival": "val", "eval": "test"}
_SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"GI": ".gif",
    b"BM": ".bmp",
    b"RI": ".webp",
}
_SHARD = 5_000

Examples = Iterator[tuple[bytes, np.ndarray]]


def write(
    info: DatasetInfo,
    load: Callable[[str], Source],
    folder: pathlib.Path,
    form: str,
    images_per_class: int | None = None,
) -> pathlib.Path:
    """Writes the splits train, minival and eval of a dataset.

    Args:
        load: returns a split by its name.
        folder: empty or missing.
        form: one of `FORMATS`.
        images_per_class: the first ones of each split; None for all.

    Returns:
        What `--dataset` takes: the folder, or the YAML file in it.

    Raises:
        DataError: if the folder is not empty or cannot be written, or images
            have several labels, which folders cannot express.
    """
    if info.multi_label and form == "folder":
        raise DataError(
            f"{info.name}: its images have several labels, and folders allow "
            "one per file. Use --format=tfrecord."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError(
                f"{folder} is not empty. Name another --output_dir."
            )
        counts = {}
        for split in (name for name in _FOLDERS if name in info.splits):
            source = load(split)
            total = len(source)
            if images_per_class is not None:
                total = min(total, images_per_class * info.num_classes)
            examples = encoded(source, images_per_class)
            examples = progress.track(examples, f"Writing {split}", total)
            if form == "folder":
                place = folder / _FOLDERS[split]
                _write_folder(examples, info.class_names, place)
            else:
                counts[split] = _write_shards(examples, folder, split)
        if form == "folder":
            (folder / class_list.FILE).write_text(
                class_list.to_text(info.class_names), encoding="utf-8"
            )
            return folder
        (folder / _YAML).write_text(_describe(info, counts), encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot write {folder}: {error.strerror}.") from None
    return folder / _YAML


def encoded(source: Source, images_per_class: int | None = None) -> Examples:
    """Yields encoded images and labels, in order.

    Images in memory become PNG; others stay as they are. `images_per_class`
    keeps the first ones of each class; an image with several classes counts for
    its first.

    Yields:
        (image, label): bytes; int64 scalar, or float32 [classes] of zeros and
        ones.
    """
    if isinstance(source, ArraySource):
        examples = (
            (tf.io.encode_png(image), label)
            for image, label in zip(source.images, source.labels, strict=True)
        )
    else:
        examples = iter(sources.encoded_examples(source))
    counts: dict[int, int] = {}
    for image, label in examples:
        label = np.asarray(label)
        first = int(label.argmax() if label.ndim else label)
        counts[first] = counts.get(first, 0) + 1
        if images_per_class is None or counts[first] <= images_per_class:
            yield image.numpy(), label


def _write_folder(
    examples: Examples, class_names: Sequence[str], folder: pathlib.Path
) -> None:
    places = [folder / class_list.folder_name(name) for name in class_names]
    for place in places:
        place.mkdir(parents=True)
    for number, (image, label) in enumerate(examples):
        suffix = _SUFFIXES.get(image[:2], ".png")
        (places[int(label)] / f"{number:06d}{suffix}").write_bytes(image)


def _write_shards(examples: Examples, folder: pathlib.Path, split: str) -> int:
    """Writes shards and returns the number of examples."""
    count = 0
    for number in itertools.count():
        part = list(itertools.islice(examples, _SHARD))
        if not part:
            return count
        path = folder / f"{split}-{number:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for image, label in part:
                writer.write(_example(image, label))
        count += len(part)


def _example(image: bytes, label: np.ndarray) -> bytes:
    labels = np.flatnonzero(label) if label.ndim else [label]
    content, numbers = tf.train.BytesList, tf.train.Int64List
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=content(value=[image])),
        "image/class/label": tf.train.Feature(int64_list=numbers(value=labels)),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def _describe(info: DatasetInfo, counts: dict[str, int]) -> str:
    return yaml.safe_dump(
        {
            "source": "tfrecord",
            "class_names": list(info.class_names),
            "multi_label": info.multi_label,
            "recipe": info.recipe,
            "splits": {
                split: {"num_images": count, "files": f"{split}-*"}
                for split, count in counts.items()
            },
            "license": info.license,
            "citation": info.citation,
        },
        sort_keys=False,
        allow_unicode=True,
    )
