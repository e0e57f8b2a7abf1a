"""Checkpoints of the released code."""

import numpy as np
import pytest
import tensorflow as tf

import efficientnetv2
from tests.models.weights.made import logits, randomize, slim_model, tiny


@pytest.mark.parametrize(
    ("folder", "ema", "key"),
    [
        ("tf1_slim", False, "logits"),
        ("tf1_slim", True, "logits_ema"),
        ("tf1_slim", None, "logits_ema"),
        ("tf2_slim", None, "logits"),
    ],
)
def test_checkpoints_of_the_reference(reference, slim, folder, ema, key):
    report = efficientnetv2.load_weights(slim, reference / folder, ema=ema)
    assert len(report.loaded) == 361 and not report.skipped
    assert not report.surprises, report
    with np.load(reference / folder / "io.npz") as io:
        np.testing.assert_allclose(
            logits(slim, io["images"]), io[key], atol=1e-5
        )


def test_a_checkpoint_by_prefix_index_and_folder(reference, slim):
    prefix = reference / "tf2_slim" / "ckpt-1"
    for path in (prefix, f"{prefix}.index", prefix.parent):
        assert len(efficientnetv2.load_weights(slim, path).loaded) == 361


def test_reference_checkpoint_round_trip(reference, slim, tmp_path):
    efficientnetv2.load_weights(slim, reference / "tf1_slim")
    prefix = efficientnetv2.to_reference_checkpoint(
        slim, tmp_path / "out" / "model.ckpt"
    )
    theirs, ours = (
        dict(tf.train.list_variables(str(path)))
        for path in (reference / "tf1_slim" / "model.ckpt-0", prefix)
    )
    # By two names: main.py reads one, get_model and converters the other.
    scope = "efficientnetv2-b0/head"
    for name in [name for name in theirs if "head_1/dense" in name]:
        theirs[name.replace("head_1", "head")] = theirs[name]
    assert len([name for name in theirs if f"{scope}/dense" in name]) == 4
    assert ours == theirs
    again = slim_model(weights=prefix.parent, ema=False)
    for one, other in zip(slim.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one, other)


def _tensors(prefix):
    reader = tf.train.load_checkpoint(str(prefix))
    names = reader.get_variable_to_shape_map()
    return {name: reader.get_tensor(name) for name in names}


def _write_tensors(prefix, tensors):
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[tf.constant(value) for value in tensors.values()],
    )
    return prefix


def test_group_normalization_both_ways(tmp_path, images):
    """Names that the released code gave on TensorFlow 2.15.1.

    main.py, `get_model` and `restore_tf2_ckpt` read them there.
    """
    model = tiny(bn_type="gn")
    randomize(model)
    prefix = efficientnetv2.to_reference_checkpoint(model, tmp_path / "ours")
    tensors = _tensors(prefix)
    names = {f"stem/group_normalization/{k}" for k in ("gamma", "beta")}
    names |= {f"head/group_normalization_1/{k}" for k in ("gamma", "beta")}
    names |= {f"blocks_1/tpu_batch_normalization_1/{k}" for k in ("gamma",)}
    assert {f"efficientnetv2-b0/{name}" for name in names} <= tensors.keys()
    assert not any("moving" in name for name in tensors)
    # As main.py writes them: each once, the head's numbered.
    theirs = {
        name: value
        for name, value in tensors.items()
        if "head/dense" not in name and "head/group_normalization/" not in name
    }
    again = tiny(bn_type="gn")
    report = efficientnetv2.load_weights(
        again, _write_tensors(tmp_path / "theirs", theirs)
    )
    assert not report.surprises
    np.testing.assert_array_equal(logits(again, images), logits(model, images))
    # An earlier version of this project wrote another name.
    earlier = {
        name.replace(
            "group_normalization_1", "tpu_batch_normalization"
        ).replace("group_normalization", "tpu_batch_normalization"): value
        for name, value in theirs.items()
    }
    again = tiny(
        bn_type="gn", weights=_write_tensors(tmp_path / "earlier", earlier)
    )
    np.testing.assert_array_equal(logits(again, images), logits(model, images))


def test_an_optimizer_is_no_surprise(reference, slim, tmp_path):
    """Names as Keras' RMSProp of TensorFlow 2.15.1 left them."""
    tensors = _tensors(reference / "tf2_slim" / "ckpt-1")
    tensors = {k: v for k, v in tensors.items() if "_CHECKPOINTABLE" not in k}
    for name in (*(f"_variables/{k}" for k in range(486)), "_iterations"):
        name = f"optimizer/{name}/.ATTRIBUTES/VARIABLE_VALUE"
        tensors[name] = np.zeros(3, np.float32)
    tensors["optimizer/_learning_rate/.ATTRIBUTES/VARIABLE_VALUE"] = 0.1
    tensors["_CHECKPOINTABLE_OBJECT_GRAPH"] = b""
    report = efficientnetv2.load_weights(
        slim, _write_tensors(tmp_path / "ckpt-1", tensors)
    )
    assert not report.surprises
    assert "not used: 488 variables of the optimizer" in str(report)
    tensors["extra/kernel/.ATTRIBUTES/VARIABLE_VALUE"] = np.zeros(2)
    report = efficientnetv2.load_weights(
        slim, _write_tensors(tmp_path / "ckpt-2", tensors)
    )
    assert report.surprises and "extra/kernel" in str(report)
