"""What a split of a dataset is, once it is found; `loading` finds it.

There are three kinds of splits. An `ArraySource` holds images of one size in
memory, an `EncodedSource` holds encoded images or the names of their files,
both in any order; a `StreamSource` reads shards from the first record to the
last.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from efficientnetv2.data import decoding, listing
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import DataError

# Encoded images of a sharded split that are kept in memory, at most.
MOST_IN_MEMORY = 10_000


@dataclasses.dataclass(frozen=True)
class ArraySource:
    """A split whose images have one size.

    Attributes:
        images: uint8 [examples, height, width, channels], 1 or 3 channels.
        labels: int64 [examples], in [0, classes).
        class_names: one per class.
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
        class_names: one per class.
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


def records(shard: Shard) -> tf.data.Dataset:
    """Returns the serialized records of a shard."""
    dataset = tf.data.TFRecordDataset(shard.path)
    return dataset.skip(shard.skip).take(shard.take)


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
        class_names: one per class.
        is_good: says whether an encoded image (bytes) is used; None: all are.
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
        """Returns the shards for one of several workers.

        Raises:
            DataError: if there are fewer shards than parts.
        """
        if len(self.shards) < parts:
            raise DataError(
                f"{len(self.shards)} shards, from {self.shards[0].path} on, "
                f"are fewer than the {parts} hosts, but each host reads its "
                "own files. Write more, smaller shards."
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


def reader(source: EncodedSource):
    """Returns a function from an index to (encoded image, label)."""
    items = tf.constant(np.asarray(source.items, dtype=object))
    labels = tf.constant(source.labels)

    def read(index):
        # Where bad images are left out there are fewer than the plan says.
        index %= len(source)
        item = items[index]
        return tf.io.read_file(item) if source.in_files else item, labels[index]

    return read


def encoded_examples(source: EncodedSource | StreamSource) -> tf.data.Dataset:
    """Returns (encoded image, label) of every example, in order."""
    if isinstance(source, EncodedSource):
        return in_parallel(tf.data.Dataset.range(len(source)), reader(source))
    shards = tf.data.Dataset.range(len(source.shards))
    return source.examples(shards.flat_map(shard_reader(source)))


def shard_reader(source: StreamSource):
    """Returns a function from the number of a shard to its records."""
    paths = tf.constant([shard.path for shard in source.shards])
    skips = tf.constant([shard.skip for shard in source.shards], tf.int64)
    takes = tf.constant([shard.take for shard in source.shards], tf.int64)

    def read(index):
        return records(Shard(paths[index], skips[index], takes[index]))

    return read


def in_order_of(source: Source, class_names: Sequence[str]) -> Source:
    """Returns a split whose labels are places in a list of names.

    Raises:
        DataError: names the classes that are not in the list, as classes or
            as names of folders, and both lists.
    """
    class_names = list(class_names)
    if list(source.class_names) == class_names:
        return source
    order = listing.match_names(source.class_names, class_names)
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


def with_images_per_class(
    source: Source, per_class: int
) -> ArraySource | EncodedSource:
    """Returns a number of images of each class, in the order of the split.

    The choice is random but fixed, and contains all smaller ones. Shards are
    read completely for it, and the chosen images are kept in memory.

    Raises:
        DataError: if a class has fewer, if images have several labels, or if
            more than 10,000 images are chosen from shards.
    """
    option = f"data.images_per_class={per_class}"
    if isinstance(source, StreamSource):
        images = per_class * len(source.class_names)
        if images > MOST_IN_MEMORY:
            raise DataError(
                f"{option} chooses {images:,} images, but at most "
                f"{MOST_IN_MEMORY:,} images of a split in shards are kept in "
                "memory. Choose at most "
                f"{MOST_IN_MEMORY // len(source.class_names)} per class, or "
                "write the images to a folder."
            )
        labels = np.array([label for _, label in _in_shards(source)])
    else:
        labels = source.labels
    if labels.ndim > 1:
        raise DataError(
            f"{option}: images have several labels, so an exact number of "
            "images per class is impossible. Leave it out."
        )
    # No labels at all are an array of floats.
    labels = labels.astype(np.int64)
    counts = np.bincount(labels, minlength=len(source.class_names))
    least = int(counts.argmin())
    if counts[least] < per_class:
        raise DataError(
            f"{option}: the class {source.class_names[least]!r} has only "
            f"{counts[least]:,} training images. Choose at most that many."
        )
    # Unlike a Generator's, this stream is the same in every NumPy version.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    firsts = np.cumsum(counts) - counts
    chosen = np.sort(np.concatenate([order[k : k + per_class] for k in firsts]))
    if isinstance(source, ArraySource):
        return dataclasses.replace(
            source, images=source.images[chosen], labels=labels[chosen]
        )
    if isinstance(source, EncodedSource):
        items = [source.items[k] for k in chosen]
        return dataclasses.replace(source, items=items, labels=labels[chosen])
    places = set(chosen.tolist())
    examples = enumerate(_in_shards(source))
    items = [image for k, (image, _) in examples if k in places]
    return EncodedSource(items, False, labels[chosen], source.class_names)


def _in_shards(source: StreamSource) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yields encoded images and labels, in order."""
    for shard in source.shards:
        try:
            yield from source.examples(records(shard)).as_numpy_iterator()
        except tf.errors.OpError as error:
            raise DataError(
                f"data.images_per_class reads all shards, and {shard.path} "
                f"cannot be read: {error.message}"
            ) from error


def class_weights(
    option: Sequence[str] | None, source: Source
) -> np.ndarray | None:
    """Returns a weight in the loss for each class of a split.

    Args:
        option: `train.class_weights`: ['balanced'] for images / (classes *
            images of the class), whose mean over the images is 1; or 'NAME:2'
            for some classes, all others having 1. None or empty: no weights.

    Returns:
        float32 [classes], or None.

    Raises:
        DataError: for a name that is no class, a weight that is no positive
            number, or a split in shards, whose classes are not counted.
    """
    if not option:
        return None
    names = list(source.class_names)
    weights = np.ones(len(names), np.float32)
    if list(option) == ["balanced"]:
        if isinstance(source, StreamSource):
            raise DataError(
                "train.class_weights=balanced counts the images of each class, "
                "which are not known for data in shards. Give numbers instead, "
                f"such as train.class_weights={names[0]}:2."
            )
        labels = np.asarray(source.labels)
        counts = labels.sum(axis=0)
        if labels.ndim == 1:
            counts = np.bincount(labels, minlength=len(names))
        weights = len(labels) / (len(names) * np.maximum(counts, 1))
        return weights.astype(np.float32)
    for entry in option:
        name, _, text = str(entry).rpartition(":")
        if name not in names:
            raise DataError(
                f"train.class_weights: {entry!r} is neither 'balanced' nor "
                f"'CLASS:NUMBER' of a class.{suggest(name or text, names)}"
            )
        try:
            weights[names.index(name)] = weight = float(text)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < np.inf:
            raise DataError(
                f"train.class_weights: {entry!r} has no positive number."
            )
    return weights
