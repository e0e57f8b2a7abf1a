"""Which example it was: looked for only after reading one has failed.

A pipeline reads and decodes in TensorFlow's graph, whose errors name an
operation and no file.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable

import ml_collections
import tensorflow as tf

from efficientnetv2.data import decoding, sources
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
)
from efficientnetv2.errors import DataError

_SHOWN = 5
# TensorFlow quotes a record that it cannot parse in its message; where the
# record is no UTF-8, raising the error fails itself.
_NO_EXAMPLE = "Could not parse example input"
READ_ERRORS = (tf.errors.OpError, UnicodeDecodeError)


@contextlib.contextmanager
def named(*read_from: Source):
    """Turns TensorFlow's errors about data into a `DataError`.

    Args:
        *read_from: the splits that are read inside.

    Raises:
        DataError: names the file, or the shard and record, and the class. An
            error that no example explains is raised as it is.
    """
    try:
        yield
    except READ_ERRORS as error:
        for source in read_from:
            fault = find(source)
            if fault:
                raise DataError(fault) from error
        raise


class LeftOut:
    """Counts images that cannot be decoded and are left out.

    Args:
        log: prints one line.
    """

    def __init__(self, log: Callable[[str], None]):
        self.log = log
        self.digests: set[bytes] = set()

    def without_bad(self, source: Source, name: str) -> Source:
        """Returns a split without the images that cannot be decoded.

        A split of encoded images is decoded once, now; one in shards while it
        is read.

        Args:
            source: the split.
            name: what the log calls it.

        Raises:
            DataError: if no image is left.
        """
        if isinstance(source, ArraySource):
            return source
        if isinstance(source, StreamSource):
            return dataclasses.replace(source, is_good=self._is_good)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            faults = list(
                pool.map(
                    functools.partial(_fault_of_item, source), source.items
                )
            )
        good = [k for k, fault in enumerate(faults) if not fault]
        bad = [k for k, fault in enumerate(faults) if fault]
        if not good:
            raise DataError(
                f"No image of {name} can be decoded; the first is "
                f"{source.describe(0)}: {faults[0]}."
            )
        if bad:
            shown = "; ".join(
                f"{source.describe(k)}: {faults[k]}" for k in bad[:_SHOWN]
            )
            more = f"; and {len(bad) - _SHOWN:,} more" * (len(bad) > _SHOWN)
            self.log(
                f"{name}: left out {len(bad):,} of {len(faults):,} images: "
                f"{shown}{more}"
            )
        return dataclasses.replace(
            source,
            items=[source.items[k] for k in good],
            labels=source.labels[good],
        )

    def _is_good(self, data: bytes) -> bool:
        if not fault_of_image(tf.constant(data)):
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
    left_out: LeftOut,
    log: Callable[[str], None] = lambda _: None,
) -> Source:
    """Loads a split, without bad images where `data.on_corrupt` is skip.

    Args:
        config: of the run.
        split: a name of the dataset.
        left_out: counts what is left out.
        log: called with a line that says where the data came from.

    Raises:
        DataError: see `sources.load_from`.
    """
    source = sources.load_split(config, split, log)
    if config.data.on_corrupt == "skip":
        return left_out.without_bad(source, split)
    return source


def _fault_of_item(source: EncodedSource, item) -> str | None:
    try:
        data = tf.io.read_file(item) if source.in_files else item
        return fault_of_image(tf.constant(data))
    except READ_ERRORS as error:
        return _reason(error)


def find(source: Source) -> str | None:
    """Returns what is wrong with the first bad example, None if all are good.

    Reads and decodes every example in turn.
    """
    if isinstance(source, ArraySource):
        return None
    if isinstance(source, EncodedSource):
        return _in_examples(source)
    return _in_shards(source)


def _in_examples(source: EncodedSource) -> str | None:
    for index, item in enumerate(source.items):
        reason = _fault_of_item(source, item)
        if reason:
            return (
                f"{source.describe(index)} cannot be read: {reason}. Repair "
                "or remove it."
            )
    return None


def _in_shards(source: StreamSource) -> str | None:
    total = 0
    for shard in source.shards:
        number = shard.skip
        place = shard.path
        try:
            for record in sources.records(shard):
                place = f"{shard.path}, record {number:,}"
                encoded, _ = source.parse(record)
                reason = fault_of_image(encoded)
                if reason:
                    return f"{place}: the image cannot be read: {reason}."
                number += 1
            place = shard.path
        except tf.errors.DataLossError:
            return (
                f"{shard.path} is corrupt or cut short at record {number:,}. "
                "Write or copy it anew."
            )
        except READ_ERRORS as error:
            return f"{place}: {_reason(error)}."
        total += number - shard.skip
    if total < source.num_images:
        return (
            f"The shards hold {total:,} examples, fewer than the "
            f"{source.num_images:,} that the dataset's YAML says: "
            f"{source.shards[0].path} and {len(source.shards) - 1} more."
        )
    return None


def fault_of_image(data: tf.Tensor) -> str | None:
    """Returns why an encoded image cannot be decoded, None if it can be."""
    if not tf.strings.length(data):
        return "it is empty"
    try:
        decoding.decode(data)
    except READ_ERRORS as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    text = getattr(error, "message", "")
    if isinstance(error, UnicodeDecodeError) or _NO_EXAMPLE in text:
        return "it is no tf.train.Example"
    if "label out of range" in text:
        # The assertion shows the label and the number of classes.
        values = text.partition("label out of range")[2]
        label, classes = values.replace("'", " ").split()[:2]
        return f"the label {label.strip('[]')} is not below {classes}"
    text = text.splitlines()[0].partition("}} ")[2] or text.splitlines()[0]
    return text.partition(" [Op:")[0].rstrip(".")
