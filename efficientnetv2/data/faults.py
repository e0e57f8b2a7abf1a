"""Which example it was: looked for only after reading one has failed.

A pipeline reads and decodes in TensorFlow's graph, whose errors name an
operation and no file.
"""

import contextlib

import tensorflow as tf

from efficientnetv2.data import preprocessing, sources
from efficientnetv2.data.sources import (
    ArraySource,
    EncodedSource,
    Source,
    StreamSource,
)
from efficientnetv2.errors import DataError


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
    except tf.errors.OpError as error:
        for source in read_from:
            fault = find(source)
            if fault:
                raise DataError(fault) from error
        raise


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
        try:
            data = tf.io.read_file(item) if source.in_files else item
            reason = _fault_of_image(tf.constant(data))
        except tf.errors.OpError as error:
            reason = _reason(error)
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
                reason = _fault_of_image(encoded)
                if reason:
                    return f"{place}: the image cannot be read: {reason}."
                number += 1
            place = shard.path
        except tf.errors.DataLossError:
            return (
                f"{shard.path} is corrupt or cut short at record {number:,}. "
                "Write or copy it anew."
            )
        except tf.errors.OpError as error:
            return f"{place}: {_reason(error)}."
        total += number - shard.skip
    if total < source.num_images:
        return (
            f"The shards hold {total:,} examples, fewer than the "
            f"{source.num_images:,} that the dataset's YAML says: "
            f"{source.shards[0].path} and {len(source.shards) - 1} more."
        )
    return None


def _fault_of_image(data: tf.Tensor) -> str | None:
    if not tf.strings.length(data):
        return "it is empty"
    try:
        preprocessing.decode(data)
    except tf.errors.OpError as error:
        return _reason(error)
    return None


def _reason(error: tf.errors.OpError) -> str:
    text = error.message
    if "label out of range" in text:
        # The assertion shows the label and the number of classes.
        values = text.partition("label out of range")[2]
        label, classes = values.replace("'", " ").split()[:2]
        return f"the label {label.strip('[]')} is not below {classes}"
    text = text.splitlines()[0].partition("}} ")[2] or text.splitlines()[0]
    return text.partition(" [Op:")[0].rstrip(".")
