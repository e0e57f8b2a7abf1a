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
from collections.abc import Callable, Iterator

import ml_collections
import tensorflow as tf

from efficientnetv2.data import decoding, sources, subset
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
)
from efficientnetv2.errors import DataError

_SHOWN = 5
_AT_ONCE = 1_000
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

    Of the training split these are `data.images_per_class` of each class.

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
        source = left_out.without_bad(source, split)
    per_class = config.data.images_per_class
    if per_class and split == config.train.split:
        source = subset.with_images_per_class(source, per_class)
        log(
            f"{split}: {len(source):,} of these images, {per_class:,} per class"
        )
    return source


def _fault_of_item(source: EncodedSource, item) -> str | None:
    try:
        data = tf.io.read_file(item) if source.in_files else item
        return fault_of_image(tf.constant(data))
    except READ_ERRORS as error:
        return _reason(error)


def find(source: Source) -> str | None:
    """Returns what is wrong with the first bad example, None if all are good.

    Reads and decodes examples until then.
    """
    return next(every(source), None)


def every(
    source: Source, advance: Callable[[int], object] = lambda _: None
) -> Iterator[str]:
    """Yields what is wrong with each bad example, in order.

    Reads and decodes every example, several at once.

    Args:
        source: a split.
        advance: called with a number of examples when they are done.
    """
    if isinstance(source, ArraySource):
        advance(len(source))
        return
    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        if isinstance(source, EncodedSource):
            yield from _in_examples(source, pool, advance)
        else:
            yield from _in_shards(source, pool, advance)


def _in_examples(source: EncodedSource, pool, advance) -> Iterator[str]:
    fault_of = functools.partial(_fault_of_item, source)
    # Whoever wants one fault alone need not wait for the others.
    for first in range(0, len(source), _AT_ONCE):
        part = source.items[first : first + _AT_ONCE]
        for index, reason in enumerate(pool.map(fault_of, part), first):
            advance(1)
            if reason:
                yield (
                    f"{source.describe(index)} cannot be read: {reason}. "
                    "Repair or remove it."
                )


def _in_shards(source: StreamSource, pool, advance) -> Iterator[str]:
    total = 0
    threads = os.cpu_count() or 1
    for first in range(0, len(source.shards), threads):
        part = source.shards[first : first + threads]
        for count, faults in pool.map(
            lambda shard: _in_shard(source, shard, advance), part
        ):
            total += count
            yield from faults
    if total < source.num_images:
        yield (
            f"The shards hold {total:,} examples, fewer than the "
            f"{source.num_images:,} that the dataset's YAML says: "
            f"{source.shards[0].path} and {len(source.shards) - 1} more."
        )


def _in_shard(
    source: StreamSource, shard: sources.Shard, advance
) -> tuple[int, list[str]]:
    """Returns the number of a shard's records, and what is wrong."""
    number, faults = shard.skip, []
    records = iter(sources.records(shard))
    while True:
        place = f"{shard.path}, record {number:,}"
        try:
            record = next(records)
        except StopIteration:
            break
        except tf.errors.DataLossError:
            faults.append(
                f"{shard.path} is corrupt or cut short at record {number:,}. "
                "Write or copy it anew."
            )
            break
        except READ_ERRORS as error:
            faults.append(f"{shard.path}: {_reason(error)}.")
            break
        try:
            reason = fault_of_image(source.parse(record)[0])
            if reason:
                faults.append(f"{place}: the image cannot be read: {reason}.")
        except READ_ERRORS as error:
            faults.append(f"{place}: {_reason(error)}.")
        number += 1
        advance(1)
    return number - shard.skip, faults


@functools.cache
def _decode():
    """Returns `decoding.decode`, traced once: threads can run it at once."""
    return tf.function(
        decoding.decode,
        input_signature=[tf.TensorSpec([], tf.string)],
        autograph=False,
    )


def fault_of_image(data: tf.Tensor) -> str | None:
    """Returns why an encoded image cannot be decoded, None if it can be."""
    if not tf.strings.length(data):
        return "it is empty"
    try:
        _decode()(data)
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
    if "\n\t [[" in text:
        # What happened comes last, below where it was defined.
        lines = text.partition("\n\t [[")[0].strip().splitlines()
        return lines[-1].removeprefix("OSError: ").rstrip(".")
    text = text.splitlines()[0].partition("}} ")[2] or text.splitlines()[0]
    return text.partition(" [Op:")[0].rstrip(".")
