"""Runs and files of this package."""

import numpy as np
import pytest

import efficientnetv2
from efficientnetv2 import checkpoints
from efficientnetv2.models.naming import WeightsError
from tests.models.weights.made import logits, randomize, tiny


def test_a_run_and_its_checkpoint(tmp_path, images):
    model, average = tiny(), tiny()
    randomize(average)
    arrays = {}
    for group, network in (("network", model), ("ema", average)):
        for variable in network.weights:
            arrays[f"{group}/{variable.path}"] = np.asarray(variable)
    path = checkpoints.save(tmp_path, arrays, {"step": 3}, keep=1)
    for source in (tmp_path, path):
        loaded = tiny(weights=source)
        np.testing.assert_array_equal(
            logits(loaded, images), logits(average, images)
        )
    raw = tiny(weights=path, ema=False)
    np.testing.assert_array_equal(logits(raw, images), logits(model, images))


@pytest.mark.parametrize("name", ["own.keras", "own.weights.h5"])
def test_files_of_this_package(tmp_path, images, name):
    model = tiny()
    randomize(model)
    path = tmp_path / name
    model.save_weights(path) if "weights" in name else model.save(path)
    again = tiny(weights=path)
    np.testing.assert_array_equal(logits(model, images), logits(again, images))
    other = tiny(blocks=["r1_k3_s1_e1_i8_o8_c1"])
    before = other.get_weights()
    with pytest.raises(WeightsError, match="unchanged"):
        efficientnetv2.load_weights(other, path)
    for one, two in zip(before, other.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
