"""Where examples come from, and how a split of them is read.

There are three kinds of splits. An `ArraySource` holds images of one size in
memory, an `EncodedSource` holds encoded images or the names of their files,
both in any order; a `StreamSource` reads shards from the first record to the
last.
"""

import contextlib
import dataclasses
import http.client
import pathlib
import re
import threading
import types
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
import tensorflow as tf
from absl import logging

from efficientnetv2 import formatting
from efficientnetv2.data import (
    class_list,
    decoding,
    fashion_mnist,
    registry,
)
from efficientnetv2.data.registry import DatasetInfo, Split
from efficientnetv2.errors import DataError

# A TFDS split of images of several sizes is kept in memory, encoded, up to
# this number of images, and read from its shards above.
MOST_IN_MEMORY = 10_000


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split whose images have one size.

    Attributes:
        images: uint8 [examples, height, width, channels], 1 or 3 channels.
        labels: int64 [examples], in [0, classes).
        class_names: one name a class.
    """

    images: np.ndarray
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True)
class EncodedSource:
    """A split of encoded images of any size.

    Attributes:
        items: bytes or str [examples]: encoded images, or names of files.
        in_files: whether `items` are names of files.
        labels: int64 [examples], in [0, classes).
        class_names: one name a class.
    """

    items: Sequence[bytes | str]
    in_files: bool
    labels: np.ndarray
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def describe(self, index: int) -> str:
        """Returns what an error calls an example."""
        labels = self.labels[index]
        labels = np.flatnonzero(labels) if labels.ndim else [labels]
        names = " and ".join(repr(self.class_names[k]) for k in labels)
        if self.in_files:
            return f"{self.items[index]} (class {names or 'none'})"
        return f"example {index:,} (class {names or 'none'})"


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a TFRecord file: `take` records behind the first `skip`."""

    path: str
    skip: int = 0
    take: int = -1


def in_parallel(
    dataset: tf.data.Dataset, function: Callable
) -> tf.data.Dataset:
    """Maps a function of tensors over a dataset, in order."""
    return dataset.map(
        tf.autograph.experimental.do_not_convert(function),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


@dataclasses.dataclass(frozen=True)
class StreamSource:
    """A split in shards of records.

    Attributes:
        shards: in order.
        parse: maps a serialized record to (encoded image, label): string
            scalar; int64 scalar, or float32 [classes] of zeros and ones.
        num_images: as the registry says.
        class_names: one name a class.
        is_good: tells of an encoded image (bytes) whether it is used; None
            for all.
    """

    shards: Sequence[Shard]
    parse: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    num_images: int
    class_names: list[str]
    is_good: Callable[[bytes], bool] | None = None

    def __len__(self) -> int:
        return self.num_images

    def describe(self, index: int) -> str:
        """Returns what an error calls a shard."""
        return self.shards[index].path

    def part(self, number: int, parts: int) -> "StreamSource":
        """Returns every so many of the shards, for one of several workers.

        Raises:
            DataError: if there are fewer shards than parts.
        """
        if len(self.shards) < parts:
            raise DataError(
                f"{len(self.shards)} shards, {self.shards[0].path} the first, "
                f"are fewer than the {parts} hosts, of which each reads files "
                "of its own. Write more, smaller shards."
            )
        return dataclasses.replace(self, shards=self.shards[number::parts])

    def examples(self, serialized: tf.data.Dataset) -> tf.data.Dataset:
        """Parses records, and leaves out those that are not good."""
        dataset = in_parallel(serialized, self.parse)
        if self.is_good is None:
            return dataset

        def check(data):
            return np.bool_(self.is_good(decoding.as_bytes(data)))

        def is_good(encoded, _):
            good = tf.numpy_function(check, [encoded], tf.bool)
            return tf.ensure_shape(good, [])

        return dataset.filter(tf.autograph.experimental.do_not_convert(is_good))


Source = ArraySource | EncodedSource | StreamSource


def in_order_of(source: Source, class_names: Sequence[str]) -> Source:
    """Returns a split whose labels are places in a list of names.

    Args:
        source: of any number and order of classes.
        class_names: of which each class of the source is one, as a class or
            as the name of its folder.

    Raises:
        DataError: names the classes that are not in the list, and both lists.
    """
    class_names = list(class_names)
    if list(source.class_names) == class_names:
        return source
    order = class_list.places(source.class_names, class_names)
    classes = len(class_names)

    def reorder(labels):
        if not labels.shape.rank:
            return tf.gather(tf.constant(order, tf.int64), labels)
        return tf.scatter_nd(tf.constant(order)[:, None], labels, [classes])

    if isinstance(source, StreamSource):

        def parse(record):
            image, label = source.parse(record)
            return image, reorder(label)

        return dataclasses.replace(source, parse=parse, class_names=class_names)
    if source.labels.ndim == 1:
        labels = np.array(order, np.int64)[source.labels]
    else:
        labels = np.zeros((len(source), classes), np.float32)
        labels[:, order] = source.labels
    return dataclasses.replace(source, labels=labels, class_names=class_names)


def parse_slice(text: str) -> tuple[str, slice]:
    """Splits 'train[55000:]' into the split 'train' and a slice.

    Raises:
        ValueError: for any other form.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d*):(\d*)\])?", text)
    if not match:
        raise ValueError(f"{text!r} is no split such as 'train[:55000]'.")
    first, last = (int(part) if part else None for part in match.groups()[1:])
    return match[1], slice(first, last)


def load_split(
    config: ml_collections.ConfigDict,
    split: str,
    log: Callable[[str], None] = print,
) -> Source:
    """Loads a split of the configured dataset; see `load_from`."""
    return load_from(
        registry.load_info(config.data.ds_name),
        split,
        registry.data_dir(config.data.data_dir),
        log,
    )


def load_from(
    info: DatasetInfo,
    split: str,
    folder: pathlib.Path,
    log: Callable[[str], None] = print,
) -> Source:
    """Loads a split, preparing the dataset if needed.

    Args:
        info: of the dataset.
        split: a name of `info.splits`.
        folder: of the data.
        log: called with one line that says where the data came from.

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
        images, labels = fashion_mnist.load(folder, part, log)
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
    index = registry.listing(info.folder)
    part = index.splits[split]
    place = formatting.near(info.folder)
    log(f"{registry.title(info.name)}: {len(part):,} images ({split}), {place}")
    if index.multi_label:
        labels = np.zeros((len(part), len(index.class_names)), np.float32)
        for row, found in zip(labels, part.labels, strict=True):
            row[found] = 1.0
    else:
        labels = np.array(part.labels, np.int64)
    return EncodedSource(part.files, True, labels, index.class_names)


# --- TFRecord shards --------------------------------------------------------


def open_shards(
    info: DatasetInfo,
    split: Split,
    folder: pathlib.Path,
) -> StreamSource:
    """Finds the shards of a split.

    Args:
        info: of the dataset.
        split: with `files` and `shards`.
        folder: with the shards, or with a folder of the dataset's name that
            holds them.

    Raises:
        DataError: if no file matches.
    """
    paths = registry.shards(info, split, folder)

    def parse(record):
        return _parse_example(record, info)

    return StreamSource(
        [Shard(str(path)) for path in paths],
        parse,
        split.num_images,
        info.class_names,
    )


def _parse_example(record: tf.Tensor, info: DatasetInfo):
    label_shape = tf.io.VarLenFeature(tf.int64)
    if not info.multi_label:
        label_shape = tf.io.FixedLenFeature([], tf.int64)
    parsed = tf.io.parse_single_example(
        record,
        {
            info.image_key: tf.io.FixedLenFeature([], tf.string),
            info.label_key: label_shape,
        },
    )
    labels = parsed[info.label_key]
    if info.multi_label:
        labels = labels.values
    labels += info.label_offset
    known = (labels >= 0) & (labels < info.num_classes)
    check = tf.debugging.Assert(
        tf.reduce_all(known),
        ["label out of range", labels, info.num_classes],
    )
    with tf.control_dependencies([check]):
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
    with _explained_tfds(info, folder) as state:
        builder = _prepare_tfds(info.tfds_name, folder, state, log)
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
        items, labels = [], []
        for shard in stream.shards:
            for item, label in records(shard).map(stream.parse):
                items.append(item.numpy())
                labels.append(label.numpy())
    return EncodedSource(
        items, False, np.array(labels, np.int64), info.class_names
    )


def records(shard: Shard) -> tf.data.Dataset:
    """Returns the serialized records of a shard."""
    dataset = tf.data.TFRecordDataset(shard.path)
    return dataset.skip(shard.skip).take(shard.take)


def _tfds_stream(builder, info: DatasetInfo, split: Split) -> StreamSource:
    tfds = import_tfds()
    features = builder.info.features
    decoders = {"image": tfds.decode.SkipDecoding()}

    def parse(record):
        example = features.deserialize_example(record, decoders=decoders)
        return example["image"], example["label"]

    instructions = builder.info.splits[split.tfds_split].file_instructions
    shards = [
        Shard(str(each.filename), each.skip, each.take) for each in instructions
    ]
    return StreamSource(
        shards,
        parse,
        sum(each.examples_in_shard for each in instructions),
        info.class_names,
    )


def _prepare_tfds(name: str, folder: pathlib.Path, state: dict, log):
    tfds = import_tfds()
    builder = tfds.builder(name, data_dir=folder)
    state["prepared"] = builder.data_path.exists()
    if not state["prepared"]:
        _probe(pathlib.Path(tfds.__file__).parent, builder.name)
        log(f"{name}: downloading to {folder} ...")
        builder.download_and_prepare()
    else:
        log(f"{name}: prepared in {builder.data_path}.")
    return builder


@contextlib.contextmanager
def _explained_tfds(info: DatasetInfo, folder: pathlib.Path):
    """Turns any error of TFDS, which have no common class, into ours."""
    state = {"prepared": False}
    try:
        yield state
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        problem = (
            f"the data in {folder} cannot be read"
            if state["prepared"]
            else f"not found prepared in {folder}, and no download"
        )
        raise DataError(
            f"{info.tfds_name}: {problem} ({reason}). Prepare it on a machine "
            f"with a network by `tfds build {info.tfds_name.split(':')[0]} "
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
