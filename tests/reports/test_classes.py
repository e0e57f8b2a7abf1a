"""What the report of a run says of classes, by hand."""

import numpy as np
import pytest

from efficientnetv2.reports import classes


def _observed(probabilities, labels, batch=4):
    observer = classes.Observer()
    images = np.arange(len(labels), dtype=np.float32)
    images = np.broadcast_to(
        images[:, None, None, None], (len(labels), 2, 2, 3)
    )
    for first in range(0, len(labels), batch):
        part = slice(first, first + batch)
        observer(
            images[part],
            np.eye(probabilities.shape[1], dtype=np.float32)[labels[part]],
            np.log(probabilities[part]),
        )
    return observer


def test_an_evaluation_is_kept_whatever_the_batch_size():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(5), 50)
    labels = random.integers(0, 5, 50)
    for batch in (1, 7, 50):
        observer = _observed(probabilities, labels, batch)
        np.testing.assert_array_equal(observer.labels, labels)
        np.testing.assert_array_equal(
            observer.predicted, probabilities.argmax(axis=1)
        )
        np.testing.assert_allclose(
            observer.probability, probabilities.max(axis=1)
        )
        wrong = probabilities.argmax(axis=1) != labels
        worst = np.flatnonzero(wrong)[
            np.argsort(-probabilities.max(axis=1)[wrong])
        ][:24]
        assert [int(m[1][0, 0, 0]) for m in observer.mistakes] == list(worst)
        assert [m[2] for m in observer.mistakes] == list(labels[worst])


def test_confusion_matrix():
    matrix = classes.confusion_matrix(
        np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 0, 7]), 3
    )
    # The last prediction is of an output that is no class.
    np.testing.assert_array_equal(matrix, [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_calibration_against_numbers_by_hand():
    probability = np.array([0.95, 0.97, 0.55, 0.55])
    right = np.array([True, False, True, True])
    bins, error = classes.calibration_bins(right, probability)
    assert [count for _, _, count in bins] == [2, 2]
    assert bins[0][:2] == pytest.approx((0.55, 1.0))
    assert bins[1][:2] == pytest.approx((0.96, 0.5))
    assert error == pytest.approx((0.45 * 2 + 0.46 * 2) / 4)


def test_tables_of_classes():
    matrix = np.array([[8, 2, 0], [0, 10, 0], [5, 0, 5]])
    labels, predicted = (
        np.repeat(places.ravel(), matrix.ravel())
        for places in np.indices(matrix.shape)
    )
    names = ["a", "b", "c"]
    found = classes.confusion_matrix(labels, predicted, 3)
    np.testing.assert_array_equal(found, matrix)
    assert classes.confused_pairs(matrix, names) == [
        ("c", "a", "5"),
        ("a", "b", "2"),
    ]
    rows = classes.class_rows(labels, predicted, names)
    assert [row[0] for row in rows] == ["c", "a", "b"]
    assert rows[1][1:] == ("10", "80.0%", "61.5%", "69.6%")
