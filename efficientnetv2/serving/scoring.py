"""The accuracy of anything that predicts, on a dataset."""

import numpy as np
import tensorflow as tf

from efficientnetv2 import progress
from efficientnetv2.data import class_list, faults, sources
from efficientnetv2.data.sources import ArraySource, Source
from efficientnetv2.errors import DataError
from efficientnetv2.serving.loading import Classifier


def evaluate(
    classifier: Classifier, source: Source, batch_size: int = 32
) -> dict[str, float]:
    """Evaluates a classifier on every image of a split.

    The classes of the split are found among the model's by name; ImageNet's
    may be called n02123159 or tiger cat.

    Args:
        classifier: from `loading.load`.
        source: of one class per image.
        batch_size: images at a time.

    Returns:
        'top1' and 'top5' in [0, 1], among all classes of the model, and
        'images'.

    Raises:
        DataError: for a class that the model does not know, or an image that
            cannot be read.
    """
    known = list(classifier.class_names)
    names = class_list.in_words(source.class_names)
    places = np.arange(len(known))
    if names != known:
        # Of two classes of ImageNet called crane only the order tells which.
        places = np.array(class_list.places(names, known))
    top1 = top5 = images = 0
    batches = _encoded(source).batch(batch_size)
    total = -(-len(source) // batch_size)
    with faults.named(source):
        for encoded, labels in progress.track(
            batches.as_numpy_iterator(), "Evaluating", total, "batches"
        ):
            if labels.ndim > 1:
                raise DataError(
                    "Weights are evaluated on images of one class each, and "
                    "these have several."
                )
            rows = classifier.classify(list(encoded))
            best = np.argsort(-rows, axis=1, kind="stable")[:, :5]
            found = best == places[labels][:, None]
            top1 += int(found[:, 0].sum())
            top5 += int(found.sum())
            images += len(labels)
    return {"top1": top1 / images, "top5": top5 / images, "images": images}


def _encoded(source: Source) -> tf.data.Dataset:
    """Returns (encoded image, label) of every example."""
    if not isinstance(source, ArraySource):
        return sources.encoded_examples(source)
    dataset = tf.data.Dataset.from_tensor_slices((source.images, source.labels))
    return dataset.map(
        lambda image, label: (tf.io.encode_png(image), label),
        num_parallel_calls=tf.data.AUTOTUNE,
    )
