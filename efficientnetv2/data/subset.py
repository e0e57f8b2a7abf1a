"""A part of the training images: so many of each class."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from efficientnetv2.data.sources import (
    MOST_IN_MEMORY,
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
    records,
)
from efficientnetv2.errors import DataError


def with_images_per_class(
    source: Source, per_class: int
) -> ArraySource | EncodedSource:
    """Returns so many images of each class, in the order of the split.

    They are chosen at random, always the same, and each choice contains all
    smaller ones. Shards are read whole for it, and what is chosen of them is
    kept in memory.

    Args:
        source: whose images have one class each.
        per_class: number of images of each class, at least 1.

    Raises:
        DataError: if a class has fewer, if images have several classes, or if
            of shards more than 10,000 images are chosen.
    """
    option = f"data.images_per_class={per_class}"
    if isinstance(source, StreamSource):
        images = per_class * len(source.class_names)
        if images > MOST_IN_MEMORY:
            raise DataError(
                f"{option} chooses {images:,} images, and of a split in shards "
                f"at most {MOST_IN_MEMORY:,} are kept in memory. Choose at "
                f"most {MOST_IN_MEMORY // len(source.class_names)} per class, "
                "or write the images to a folder."
            )
        labels = np.array([label for _, label in _in_shards(source)])
    else:
        labels = source.labels
    if labels.ndim > 1:
        raise DataError(
            f"{option}: images have several classes, so that no number of "
            "images per class is exact. Leave it out."
        )
    # No labels at all are an array of floats.
    labels = labels.astype(np.int64)
    counts = np.bincount(labels, minlength=len(source.class_names))
    least = int(counts.argmin())
    if counts[least] < per_class:
        raise DataError(
            f"{option}: the class {source.class_names[least]!r} has only "
            f"{counts[least]:,} training images. Choose at most so many."
        )
    # Unlike that of a Generator, this stream is the same in every NumPy.
    order = np.random.RandomState(0).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    firsts = np.cumsum(counts) - counts
    chosen = np.sort(np.concatenate([order[k : k + per_class] for k in firsts]))
    if isinstance(source, ArraySource):
        return dataclasses.replace(
            source, images=source.images[chosen], labels=labels[chosen]
        )
    if isinstance(source, EncodedSource):
        items, in_files = [source.items[k] for k in chosen], source.in_files
    else:
        places = set(chosen.tolist())
        examples = enumerate(_in_shards(source))
        items = [image for k, (image, _) in examples if k in places]
        in_files = False
    return EncodedSource(items, in_files, labels[chosen], source.class_names)


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
