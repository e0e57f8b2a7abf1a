"""Models and files of `keras.applications`, and those of this package."""

import keras
import numpy as np
import pytest

import efficientnetv2
from efficientnetv2 import checkpoints
from efficientnetv2.errors import WeightsError
from tests.models.weights.made import logits, randomize, tiny, unchanged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("theirs", "ours", "preprocessing"),
    [
        ("EfficientNetV2B0", "efficientnetv2-b0", True),
        ("EfficientNetB0", "efficientnet-b0", None),
    ],
)
def test_keras_applications_both_ways(
    theirs, ours, preprocessing, images, tmp_path
):
    theirs = getattr(keras.applications, theirs)(
        weights=None,
        classes=7,
        classifier_activation=None,
        input_shape=(64, 64, 3),
    )
    randomize(theirs)
    # V1's Normalization layer is without data here, so only its division by
    # 255 is left.
    inputs = images if preprocessing else images / 255
    expected = logits(theirs, images)
    bound = 1e-4 * np.abs(expected).max()
    model = efficientnetv2.build_model(
        ours,
        num_classes=7,
        weights=theirs,
        include_preprocessing=preprocessing or False,
    )
    np.testing.assert_allclose(logits(model, inputs), expected, atol=bound)

    for name in ("new.weights.h5", "old.h5", "whole.keras"):
        path = tmp_path / name
        if name == "new.weights.h5":
            theirs.save_weights(path)
        else:
            theirs.save(path)
        for variable in model.weights:
            variable.assign(keras.ops.zeros_like(variable))
        report = efficientnetv2.load_weights(model, path)
        assert len(report.loaded) == len(model.weights) - sum(
            "seed" in variable.path for variable in model.weights
        )
        np.testing.assert_allclose(logits(model, inputs), expected, atol=bound)

    randomize(theirs, seed=5)
    assert np.abs(logits(theirs, images) - expected).max() > bound
    efficientnetv2.to_keras_applications(model, theirs)
    np.testing.assert_array_equal(logits(theirs, images), expected)


@pytest.mark.slow
def test_v1_b3_takes_either_rounding():
    """Its first stage has 16 channels in the released code, 24 in Keras."""
    shallow = {"depth_coefficient": 0.1, "num_classes": 3}
    ours = efficientnetv2.build_model("efficientnet-b3", **shallow)
    theirs = efficientnetv2.build_model(
        "efficientnet-b3", round_limit=0.9, **shallow
    )
    for source, channels in ((ours, 16), (theirs, 24)):
        model = efficientnetv2.build_model(
            "efficientnet-b3", weights=source, **shallow
        )
        assert model.get_layer("blocks_0").output.shape[-1] == channels
    with pytest.raises(WeightsError, match=r"\(1, 1, 40, 24\)"):
        efficientnetv2.build_model(
            "efficientnet-b3", weights=theirs, round_limit=None, **shallow
        )


@pytest.mark.slow
def test_keras_2_weights_file(tmp_path):
    """Their published files: one group a layer, 'kernel:0', old names."""
    import h5py

    theirs = keras.applications.EfficientNetV2B0(weights=None, classes=3)
    randomize(theirs)
    with h5py.File(tmp_path / "b0.h5", "w") as file:
        layers = [layer for layer in theirs.layers if layer.weights]
        file.attrs["layer_names"] = [layer.name.encode() for layer in layers]
        for layer in layers:
            group = file.create_group(layer.name)
            names = []
            for variable in layer.weights:
                attribute = variable.name
                if "dwconv" in layer.name:
                    attribute = "depthwise_kernel"
                names.append(f"{layer.name}/{attribute}:0")
                group[names[-1]] = np.asarray(variable)
            group.attrs["weight_names"] = [name.encode() for name in names]
    model = efficientnetv2.build_model(
        "efficientnetv2-b0", num_classes=3, weights=tmp_path / "b0.h5"
    )
    again = keras.applications.EfficientNetV2B0(weights=None, classes=3)
    efficientnetv2.to_keras_applications(model, again)
    for one, other in zip(theirs.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)


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
    with unchanged(other), pytest.raises(WeightsError, match="unchanged"):
        efficientnetv2.load_weights(other, path)
