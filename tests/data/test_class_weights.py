"""Weights of rare classes."""

import numpy as np
import pytest

from efficientnetv2.data.sources import ArraySource, StreamSource, class_weights
from efficientnetv2.errors import DataError

NAMES = ["cat", "dog: large"]
SOURCE = ArraySource(
    np.zeros([4, 2, 2, 3], np.uint8), np.array([0, 1, 1, 1]), NAMES
)


def test_balanced_weights_have_a_mean_of_one():
    weights = class_weights(["balanced"], SOURCE)
    np.testing.assert_allclose(weights, [2.0, 2 / 3])
    assert np.mean(weights[SOURCE.labels]) == pytest.approx(1.0)


def test_weights_by_name():
    weights = class_weights(["dog: large:3"], SOURCE)
    np.testing.assert_array_equal(weights, [1.0, 3.0])
    assert class_weights(None, SOURCE) is None


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("cta:2", "Did you mean 'cat'"),
        ("cat:many", "no positive number"),
        ("cat:-1", "no positive number"),
        ("balance", "neither"),
    ],
)
def test_wrong_weights(entry, words):
    with pytest.raises(DataError, match=words):
        class_weights([entry], SOURCE)


def test_shards_are_not_counted():
    source = StreamSource([], lambda record: record, 4, NAMES)
    with pytest.raises(DataError, match="shards"):
        class_weights(["balanced"], source)
