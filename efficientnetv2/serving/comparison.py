"""Exports against the network that they come from, on the same images."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2.data import (
    decoding,
    faults,
    loading,
    pipeline,
    preprocessing,
    sources,
)
from efficientnetv2.data.sources import ArraySource, EncodedSource, Source
from efficientnetv2.serving.spec import ServingSpec

BATCH = 50


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images in the forms that formats take.

    Attributes:
        normalized: float32 [batch, size, size, 3], as in evaluation.
        pixels: likewise, in [0, 255].
        raw: as stored: uint8 [batch, height, width, 3], or encoded.
        labels: int64 [batch], or float32 [batch, classes].
    """

    normalized: np.ndarray
    pixels: np.ndarray
    raw: np.ndarray | list[bytes]
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
    """How an export compares with the network.

    Attributes:
        images: how many were compared.
        agreement: share with the same likeliest class.
        top1: accuracy of the export.
        keras_top1: accuracy of the network.
        max_difference: largest difference of a probability.
    """

    images: int
    agreement: float
    top1: float
    keras_top1: float
    max_difference: float


Runner = Callable[[Batch], np.ndarray]


def sample(
    config: ml_collections.ConfigDict,
    split: str,
    most: int,
    log: Callable[[str], None],
) -> Source:
    """Returns some examples of a split.

    They are spread evenly over the split, where it is in memory or in single
    files; of shards they are the first.

    Args:
        config: of the run.
        split: name of the split.
        most: number of examples, if there are so many.
        log: prints one line.

    Raises:
        DataError: if the data cannot be obtained.
    """
    source = loading.load_split(config, split, left_out=loading.LeftOut(log))
    chosen = np.linspace(0, len(source) - 1, min(len(source), most))
    chosen = chosen.astype(np.int64)
    if isinstance(source, ArraySource):
        return dataclasses.replace(
            source, images=source.images[chosen], labels=source.labels[chosen]
        )
    if isinstance(source, EncodedSource):
        return dataclasses.replace(
            source,
            items=[source.items[k] for k in chosen],
            labels=source.labels[chosen],
        )
    with faults.named(source):
        examples = list(sources.encoded_examples(source).take(most))
    return EncodedSource(
        [encoded.numpy() for encoded, _ in examples],
        False,
        np.stack([label.numpy() for _, label in examples]),
        source.class_names,
    )


def batches(
    source: Source, config: ml_collections.ConfigDict, mode: str
) -> Iterator[Batch]:
    """Yields the examples of a `sample`, preprocessed as in evaluation.

    Args:
        source: from `sample`.
        config: of the run.
        mode: one of `preprocessing.MODES`.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    config.eval.batch_size = BATCH
    first = 0
    with faults.named(source):
        for images, labels in pipeline.evaluation_dataset(source, config):
            last = first + len(labels)
            yield Batch(
                images.numpy(),
                preprocessing.to_pixels(images, mode).numpy(),
                _raw(source, slice(first, last)),
                labels.numpy(),
            )
            first = last


def _raw(source: Source, rows: slice) -> np.ndarray | list[bytes]:
    if isinstance(source, ArraySource):
        return np.asarray(preprocessing.to_rgb(source.images[rows]))
    items = source.items[rows]
    if source.in_files:
        items = [tf.io.read_file(item).numpy() for item in items]
    return [decoding.to_portable(item) for item in items]


def run_keras(network: keras.Model, spec: ServingSpec) -> Runner:
    """Returns the runner of a Keras model: normalized images to logits."""

    @tf.function(reduce_retracing=True)
    def classify(images):
        return spec.probabilities(network(images, training=False))

    return lambda batch: classify(batch.normalized).numpy()


def compare(
    keras_runner: Runner,
    runners: Mapping[str, Runner],
    examples: Iterator[Batch],
) -> dict[str, Result]:
    """Runs all exports and the network on all examples.

    Args:
        keras_runner: of the network.
        runners: name of an export to its runner, each from a batch to
            probabilities, float32 [batch, classes].
        examples: from `batches`.

    Returns:
        A result for each export.
    """
    images, keras_right = 0, 0
    counts = {name: np.zeros(2, np.int64) for name in runners}
    differences = dict.fromkeys(runners, 0.0)
    for batch in examples:
        expected = keras_runner(batch)
        keras_best = expected.argmax(axis=1)
        images += len(expected)
        keras_right += _right(keras_best, batch.labels)
        for name, run in runners.items():
            found = run(batch)
            best = found.argmax(axis=1)
            counts[name] += [
                np.count_nonzero(best == keras_best),
                _right(best, batch.labels),
            ]
            differences[name] = max(
                differences[name], float(np.abs(found - expected).max())
            )
    return {
        name: Result(
            images,
            agreement=int(agreed) / images,
            top1=int(right) / images,
            keras_top1=keras_right / images,
            max_difference=differences[name],
        )
        for name, (agreed, right) in counts.items()
    }


def misfit(
    result: Result, known: Mapping[str, float] | None, classes: int
) -> str | None:
    """Returns why images cannot be those of a run, None if they may be.

    That an export agrees with the network says nothing if both are wrong:
    under wrong names, or on other images.

    Args:
        result: of an export.
        known: the run's metrics on its test images: 'top1', 'images'.
        classes: number of classes.
    """
    if not known:
        return None
    here, there = result.images, known["images"]
    chance = 1.0 / classes
    top1 = result.keras_top1
    if top1 > chance + 2 * math.sqrt(chance * (1 - chance) / here):
        return None
    # Three standard deviations of the difference of two shares.
    mean = (top1 * here + known["top1"] * there) / (here + there)
    spread = 3 * math.sqrt(mean * (1 - mean) * (1 / here + 1 / there))
    if known["top1"] - top1 <= spread:
        return None
    return (
        f"the network's top-1 of {result.keras_top1:.2%} on the "
        f"{result.images:,} images compared is at chance, and was "
        f"{known['top1']:.2%} on the run's {known['images']:,} test images: "
        "the images or the names of their classes are others"
    )


def _right(best: np.ndarray, labels: np.ndarray) -> int:
    if labels.ndim == 1:
        return int(np.count_nonzero(best == labels))
    return int(np.count_nonzero(labels[np.arange(len(best)), best] > 0))
