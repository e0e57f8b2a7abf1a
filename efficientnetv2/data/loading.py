"""Finds a split of a dataset, and prepares the dataset if needed."""

import contextlib
import dataclasses
import hashlib
import http.client
import pathlib
import re
import threading
import types
import urllib.parse
import urllib.request
from collections.abc import Callable

import ml_collections
import numpy as np
import tensorflow as tf
from absl import logging

from efficientnetv2 import formatting
from efficientnetv2.data import fashion_mnist, faults, registry
from efficientnetv2.data.registry import DatasetInfo, Split
from efficientnetv2.data.sources import (
    MOST_IN_MEMORY,
    ArraySource,
    EncodedSource,
    Shard,
    Source,
    StreamSource,
    records,
    with_images_per_class,
)
from efficientnetv2.errors import DataError

_SHOWN = 5


def parse_slice(text: str) -> tuple[str, slice]:
    """Splits 'train[55000:]' into the split 'train' and a slice.

    Raises:
        ValueError: for any other form.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    if not match:
        raise ValueError(f"{text!r} is not a split such as 'train[:55000]'.")
    first, last = (int(part) if part else None for part in match.groups()[1:])
    return match[1], slice(first, last)


class LeftOut:
    """Counts images that cannot be decoded and are left out."""

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.digests: set[bytes] = set()

    def without_bad(self, source: Source, name: str) -> Source:
        """Returns a split without the images that cannot be decoded.

        A split of encoded images is decoded once, now; one in shards while it
        is read. The log calls it by its name.

        Raises:
            DataError: if no image is left.
        """
        if isinstance(source, ArraySource):
            return source
        if isinstance(source, StreamSource):
            return dataclasses.replace(source, is_good=self._is_good)
        found = list(enumerate(faults.reasons_of_items(source)))
        good = [k for k, reason in found if not reason]
        bad = [f"{source.describe(k)}: {why}" for k, why in found if why]
        if not good:
            raise DataError(
                f"No image of {name} can be decoded; the first is {bad[0]}."
            )
        if bad:
            more = f"; and {len(bad) - _SHOWN:,} more" * (len(bad) > _SHOWN)
            self.log(
                f"{name}: left out {len(bad):,} of {len(found):,} images: "
                f"{'; '.join(bad[:_SHOWN])}{more}"
            )
        items = [source.items[k] for k in good]
        return dataclasses.replace(
            source, items=items, labels=source.labels[good]
        )

    def _is_good(self, data: bytes) -> bool:
        if not faults.fault_of_image(tf.constant(data)):
            return True
        self.digests.add(hashlib.sha256(data).digest())
        return False

    def report(self) -> None:
        """Says how many images of shards were left out so far, if any."""
        if self.digests:
            self.log(
                f"Left out {len(self.digests):,} different images that cannot "
                "be decoded."
            )


def load_split(
    config: ml_collections.ConfigDict,
    split: str,
    log: Callable[[str], None] = lambda _: None,
    left_out: LeftOut | None = None,
) -> Source:
    """Loads a split, without bad images where `data.on_corrupt` is skip.

    Of the training split these are `data.images_per_class` of each class.

    Args:
        log: called with a line that says where the data came from.
        left_out: counts what is left out of several splits.

    Raises:
        DataError: see `load_from`.
    """
    info = registry.load_info(config.data.ds_name)
    folder = registry.data_dir(config.data.data_dir)
    source = load_from(info, split, folder, log)
    if config.data.on_corrupt == "skip":
        source = (left_out or LeftOut(log)).without_bad(source, split)
    per_class = config.data.images_per_class
    if per_class and split == config.train.split:
        source = with_images_per_class(source, per_class)
        log(
            f"{split}: using {len(source):,} of these images, {per_class:,} "
            "per class"
        )
    return source


def load_from(
    info: DatasetInfo,
    split: str,
    folder: pathlib.Path,
    log: Callable[[str], None] = print,
) -> Source:
    """Loads a split, preparing the dataset in a folder if needed.

    `log` is called with one line that says where the data came from.

    Raises:
        DataError: if the data cannot be obtained or are not what the registry
            says.
    """
    expected = info.splits[split]
    for note in registry.notes(info):
        log(note)
    if info.source == registry.ABSENT:
        raise DataError(info.how_to_get)
    if info.source in registry.LISTED:
        return _load_listed(info, split, log)
    if info.source == "tfrecord":
        return open_shards(info, expected, folder)
    if info.source == "idx":
        part, rows = parse_slice(expected.part)
        images, labels = fashion_mnist.load_part(folder, part, log)
        source = ArraySource(images[rows], labels[rows], info.class_names)
        log(f"{info.name}: {len(source):,} images ({split})")
        advice = "Correct its YAML file."
    else:
        source = _load_tfds(info, expected, folder, log)
        advice = "Remove its folder there to prepare it anew."
    if len(source) != expected.num_images:
        raise DataError(
            f"{info.name}: the split {split!r} has {len(source):,} images in "
            f"{folder}, not {expected.num_images:,} as the registry says. "
            f"{advice}"
        )
    return source


# --- Folders and lists of images --------------------------------------------


def _load_listed(
    info: DatasetInfo, split: str, log: Callable[[str], None]
) -> EncodedSource:
    index = registry.list_images(info.folder)
    part = index.splits[split]
    place = formatting.relative_path(info.folder)
    log(f"{registry.title(info.name)}: {len(part):,} images ({split}), {place}")
    if index.multi_label:
        labels = np.zeros((len(part), len(index.class_names)), np.float32)
        for row, found in zip(labels, part.labels, strict=True):
            row[list(found)] = 1.0
    else:
        labels = np.array(part.labels, np.int64)
    return EncodedSource(part.files, True, labels, index.class_names)


# --- TFRecord shards --------------------------------------------------------


def open_shards(
    info: DatasetInfo, split: Split, folder: pathlib.Path
) -> StreamSource:
    """Finds the shards of a split, see `registry.shards`."""
    paths = registry.shards(info, split, folder)
    return StreamSource(
        [Shard(str(path)) for path in paths],
        lambda record: _parse_example(record, info),
        split.num_images,
        info.class_names,
    )


def _parse_example(record: tf.Tensor, info: DatasetInfo):
    one = tf.io.FixedLenFeature([], tf.int64)
    several = tf.io.VarLenFeature(tf.int64)
    features = {
        info.image_key: tf.io.FixedLenFeature([], tf.string),
        info.label_key: several if info.multi_label else one,
    }
    parsed = tf.io.parse_single_example(record, features)
    labels = parsed[info.label_key]
    if info.multi_label:
        labels = labels.values
    labels += info.label_offset
    known = tf.reduce_all((labels >= 0) & (labels < info.num_classes))
    said = ["label out of range", labels, info.num_classes]
    with tf.control_dependencies([tf.debugging.Assert(known, said)]):
        labels = tf.identity(labels)
    if info.multi_label:
        labels = tf.reduce_max(tf.one_hot(labels, info.num_classes), axis=0)
        labels = tf.maximum(labels, 0.0)
    return parsed[info.image_key], labels


# --- TensorFlow Datasets ----------------------------------------------------


def import_tfds() -> types.ModuleType:
    """Imports TensorFlow Datasets.

    Its own import logs what went wrong, and leaves a module without names.

    Raises:
        DataError: says why it cannot be imported, and what to install.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        import tensorflow_datasets as tfds
        import tensorflow_datasets.public_api
    except Exception as error:
        package = "tensorflow-datasets"
        if "protobuf" in str(error).lower():
            # That of Colab is generated by a newer protobuf than is there.
            package = "'tensorflow-metadata<1.18'"
        raise DataError(
            f"TensorFlow Datasets cannot be imported: {error}\nRun `pip "
            f"install {package}` and then the command again."
        ) from error
    finally:
        logging.set_verbosity(verbosity)
    return tfds


def _load_tfds(
    info: DatasetInfo,
    split: Split,
    folder: pathlib.Path,
    log: Callable[[str], None],
) -> Source:
    tfds = import_tfds()
    with _explained_tfds(info, folder):
        builder = tfds.builder(info.tfds_name, data_dir=folder)
        if builder.data_path.exists():
            log(f"{info.tfds_name}: prepared in {builder.data_path}.")
        else:
            _probe(pathlib.Path(tfds.__file__).parent, builder.name)
            log(f"{info.tfds_name}: downloading to {folder} ...")
            builder.download_and_prepare()
        shape = builder.info.features["image"].shape
        if None not in shape:
            examples = builder.as_dataset(split=split.tfds_split, batch_size=-1)
            return ArraySource(
                examples["image"].numpy(),
                examples["label"].numpy(),
                info.class_names,
            )
        stream = _tfds_stream(builder, info, split)
        if split.num_images > MOST_IN_MEMORY:
            return stream
        examples = [
            (item.numpy(), label.numpy())
            for shard in stream.shards
            for item, label in records(shard).map(stream.parse)
        ]
    items, labels = map(list, zip(*examples, strict=True))
    return EncodedSource(
        items, False, np.array(labels, np.int64), info.class_names
    )


def _tfds_stream(builder, info: DatasetInfo, split: Split) -> StreamSource:
    features = builder.info.features
    decoders = {"image": import_tfds().decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=decoders)
        return example["image"], example["label"]

    parts = builder.info.splits[split.tfds_split].file_instructions
    return StreamSource(
        [Shard(str(part.filename), part.skip, part.take) for part in parts],
        parse,
        sum(part.examples_in_shard for part in parts),
        info.class_names,
    )


@contextlib.contextmanager
def _explained_tfds(info: DatasetInfo, folder: pathlib.Path):
    """Turns any error of TFDS, which have no common class, into ours."""
    prepared = registry.tfds_versions(info, folder)
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = (
            f"the data in {folder} cannot be read"
            if prepared
            else f"not found prepared in {folder}, and no download"
        )
        raise DataError(
            f"{info.tfds_name}: {problem} ({reason}). Prepare it on a machine "
            f"with a network with `tfds build {info.tfds_name.split(':')[0]} "
            f"--data_dir={folder}` and copy that folder, or name another one "
            "with --data_dir."
        ) from error


def _probe(package: pathlib.Path, name: str) -> None:
    """Raises an OSError within seconds if a dataset's host does not answer.

    TFDS itself tries for minutes. The host is read from its checksums.
    """
    checksums = package / "url_checksums" / f"{name}.txt"
    if not checksums.exists():
        return
    url = checksums.read_text().split()[0]
    answers: list[Exception | None] = []

    def ask():
        request = urllib.request.Request(url, method="HEAD")
        try:
            urllib.request.urlopen(request, timeout=5).close()
            answers.append(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(error)

    # Looking up a host name knows no time-out; a thread sets the limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(8)
    host = urllib.parse.urlsplit(url).hostname
    if not answers or answers[0] is not None:
        reason = answers[0] if answers else "no reply in 8 s"
        raise OSError(f"{host} does not answer: {reason}")
