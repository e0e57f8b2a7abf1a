"""The accuracy of anything that predicts."""

import dataclasses

import numpy as np
import pytest

from efficientnetv2.data.sources import ArraySource
from efficientnetv2.errors import DataError
from efficientnetv2.serving import loading, scoring


def test_a_saved_model_scores_as_its_run(folder_run, source):
    classifier = loading.load(folder_run / "saved_model")
    images = np.repeat(source.images, 3, axis=-1)
    split = ArraySource(images, source.labels, source.class_names)
    result = scoring.evaluate(classifier, split, batch_size=64)
    assert result["images"] == 200 and result["top1"] > 0.9
    assert result["top5"] >= result["top1"]
    # Another order of the classes, and only some of them.
    few = split.labels >= 5
    other = ArraySource(
        images[few], 9 - split.labels[few], source.class_names[:4:-1]
    )
    again = scoring.evaluate(classifier, other)
    assert again["images"] == 100 and again["top1"] > 0.9


def test_a_class_that_the_model_does_not_know(folder_run, source):
    classifier = loading.load(folder_run / "saved_model")
    names = ["zebra", *source.class_names[1:]]
    with pytest.raises(DataError, match="does not know the class 'zebra'"):
        scoring.evaluate(
            classifier, dataclasses.replace(source, class_names=names)
        )
