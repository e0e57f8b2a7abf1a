"""Weights of classes in the loss, for data with rare classes."""

from collections.abc import Sequence

import numpy as np

from efficientnetv2.data.sources import Source
from efficientnetv2.declarative import suggest
from efficientnetv2.errors import DataError

BALANCED = "balanced"


def resolve(option: Sequence[str] | None, source: Source) -> np.ndarray | None:
    """Returns a weight for each class of a split.

    Args:
        option: `train.class_weights`: ['balanced'] for images / (classes *
            images of the class), whose mean over the images is 1; or 'NAME:2'
            for some classes, all others having 1. None or empty: no weights.
        source: the training split.

    Returns:
        float32 [classes], or None.

    Raises:
        DataError: for a name that is no class, a weight that is no positive
            number, or a split in shards, whose classes are not counted.
    """
    if not option:
        return None
    names = list(source.class_names)
    if list(option) == [BALANCED]:
        return _balanced(source, names)
    weights = np.ones(len(names), np.float32)
    for entry in option:
        name, _, text = str(entry).rpartition(":")
        if name not in names:
            raise DataError(
                f"train.class_weights: {entry!r} is neither 'balanced' nor "
                f"'CLASS:NUMBER' of a class.{suggest(name or text, names)}"
            )
        try:
            weight = float(text)
        except ValueError:
            weight = 0.0
        if not 0.0 < weight < np.inf:
            raise DataError(
                f"train.class_weights: {entry!r} has no positive number."
            )
        weights[names.index(name)] = weight
    return weights


def _balanced(source: Source, names: Sequence[str]) -> np.ndarray:
    labels = getattr(source, "labels", None)
    if labels is None:
        raise DataError(
            "train.class_weights=balanced counts the images of each class, "
            "which are not known for data in shards. Give numbers instead, "
            f"such as train.class_weights={names[0]}:2."
        )
    labels = np.asarray(labels)
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=len(names))
    else:
        counts = labels.sum(axis=0)
    weights = len(labels) / (len(names) * np.maximum(counts, 1))
    return weights.astype(np.float32)
