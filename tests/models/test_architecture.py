"""Models by their configurations: parameters, layers, options."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import config as config_lib
from efficientnetv2 import formatting
from efficientnetv2.models import architecture, blocks, structure
from efficientnetv2.models.structure import BlockArgs
from tests.conftest import raises


def _model_config(name, **overrides):
    config = config_lib.load_model(name, {"num_classes": 1000})
    return config["model"] | overrides


def _tiny(**overrides):
    texts = ["r1_k3_s1_e1_i8_o8_c1", "r2_k3_s2_e2_i8_o16_c1"]
    options = {
        "blocks": [*texts, "r2_k3_s2_e2_i16_o16_se0.25"],
        "feature_size": 24,
        "num_classes": 5,
        "depth_coefficient": 1.0,
    }
    return _model_config("efficientnetv2-b0", **{**options, **overrides})


def test_block_string():
    args = BlockArgs.from_string("r6_k3_s2_e4_i64_o128_se0.25")
    assert args == BlockArgs(6, 3, 2, 4, 64, 128, 0, 0.25)
    assert BlockArgs.from_string("r1_k3_s1_e1_i24_o24_c1").conv_type == 1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("r1_k3_s1_e1_i8", "'o'"),
        ("r1_k3_s1_e1_i8_o8_x2", "'x2'"),
        ("r1_r2_k3_s1_e1_i8_o8", "'r'"),
        ("r0_k3_s1_e1_i8_o8", "below 1"),
        ("r1.5_k3_s1_e1_i8_o8", "whole number"),
        ("r1_k3_s1_e1_i8_o8_c2", "c must be"),
        ("", "''"),
    ],
)
def test_bad_block_strings_name_the_field(text, word):
    with raises(ValueError, "Block string", word):
        BlockArgs.from_string(text)


def _size(variables):
    return sum(np.prod(v.shape) for v in variables if "seed" not in v.path)


def test_parameter_counts(reference):
    """Of all models by arithmetic, and of two that are built."""
    counts = json.loads((reference / "parameter_counts.json").read_text())
    for name, expected in counts.items():
        sums = structure.count_model(_model_config(name), 224)
        found = (sums.parameters, sums.trainable, sums.layers - 3)
        keys = ("total", "trainable", "blocks")
        assert found == tuple(expected[key] for key in keys), name
    for name in ("efficientnetv2-b0", "efficientnet-b0"):
        model = architecture.build_network(_model_config(name))
        assert _size(model.weights) == counts[name]["total"]
        assert _size(model.trainable_variables) == counts[name]["trainable"]


# As published: millions of parameters and of multiply-adds, and the image
# size. Those of Lite count with a profiler that also counts what is no product
# of weights.
@pytest.mark.parametrize(
    ("name", "parameters", "products", "size"),
    [
        ("efficientnetv2-b0", 7.1, 720, 224),
        ("efficientnetv2-b1", 8.1, 1_200, 240),
        ("efficientnetv2-b2", 10.1, 1_700, 260),
        ("efficientnetv2-b3", 14.4, 3_000, 300),
        ("efficientnetv2-s", 21.5, 8_400, 384),
        ("efficientnetv2-m", 54.1, 24_700, 480),
        ("efficientnetv2-l", 119.5, 56_300, 480),
        ("efficientnet-lite0", 4.7, 407, 224),
        ("efficientnet-lite1", 5.4, 631, 240),
        ("efficientnet-lite2", 6.1, 899, 260),
        ("efficientnet-lite3", 8.2, 1_440, 280),
        ("efficientnet-lite4", 13.0, 2_640, 300),
    ],
)
def test_counts_are_the_published_ones(name, parameters, products, size):
    rows = structure.count_stages(_model_config(name), size)
    sums = structure.count_model(_model_config(name), size)
    spread, low, high = 0.01, 0.98, 1.02
    if "lite" in name:
        spread, low, high = 0.015, 0.94, 0.97
        assert rows[0].channels == 32 and rows[-2].channels == 1280
        assert rows[1].layers == rows[-3].layers == 1
    assert sums.trainable / 1e6 == pytest.approx(parameters, rel=spread)
    assert low < sums.multiply_adds / 1e6 / products < high


def test_multiply_adds_of_one_block_by_hand():
    config = _tiny(blocks=["r1_k5_s2_e3_i8_o16_se0.5"], num_classes=7)
    stem, block, head, dense = structure.count_stages(config, (17, 30))
    assert (stem.size, block.size) == ((9, 15), (5, 8))
    assert stem.multiply_adds == 9 * 3 * 8 * 9 * 15
    assert block.multiply_adds == (
        8 * 24 * 9 * 15 + 25 * 24 * 40 + 2 * 24 * 4 + 24 * 16 * 40
    )
    assert head.multiply_adds == 16 * 24 * 40
    assert dense.multiply_adds == 24 * 7


def test_counts_in_three_digits():
    numbers = (7_139_704, 999_600, 8_365_617_152, 118_515_272, 956, 53_100)
    texts = ["7.14M", "1.00M", "8.37B", "119M", "956", "53.1k"]
    assert list(map(formatting.format_count, numbers)) == texts


@pytest.mark.parametrize(
    ("option", "value"),
    [("act_fn", name) for name in (*blocks.ACTIVATIONS, "mishmash")]
    + [("bn_type", name) for name in ("bn", "sync_bn", "gn", "layernorm")],
)
def test_every_activation_and_normalization(option, value):
    config = _tiny(**{option: value})
    if value in ("mishmash", "layernorm"):
        with pytest.raises(ValueError, match=value):
            architecture.build_network(config)
        return
    model = architecture.build_network(config)
    images = np.ones((2, 20, 20, 3), np.float32)
    logits = model(images, training=option == "bn_type")
    assert logits.shape == (2, 5) and np.isfinite(logits).all()


def test_any_image_size_and_no_top():
    model = architecture.build_network(_tiny(), include_top=False)
    for size in (8, 17, 33):
        assert model(np.zeros((1, size, size, 3))).shape == (1, 24)


def test_survival_probability_falls_linearly():
    model = architecture.build_network(_tiny(survival_prob=0.5))
    depths = [getattr(each, "stochastic_depth", None) for each in model.layers]
    rates = [each.survival_probability for each in depths if each is not None]
    # Blocks 0, 2 and 4 of five have a residual.
    assert rates == pytest.approx([1 - 0.5 * k / 5 for k in (2, 4)])


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    keras.utils.set_random_seed(0)
    layer = blocks.StochasticDepth(0.75)
    inputs = np.ones((4000, 2, 2, 3), np.float32)
    outputs = np.asarray(layer(inputs, training=True))
    per_example = outputs.reshape(4000, -1)
    assert (per_example == per_example[:, :1]).all()
    assert set(np.unique(per_example.round(4))) == {0.0, np.float32(1.3333)}
    assert abs(outputs.mean() - 1.0) < 0.05
    np.testing.assert_array_equal(layer(inputs), inputs)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_dropout_rate_can_be_a_variable(rate):
    keras.utils.set_random_seed(0)
    layer = blocks.Dropout(rate)
    layer.rate_variable = tf.Variable(0.0)
    inputs = np.ones((100, 100), np.float32)
    apply = tf.function(lambda: layer(inputs, training=True))
    np.testing.assert_array_equal(apply(), inputs)
    layer.rate_variable.assign(0.3)
    outputs = apply().numpy()
    assert abs((outputs == 0).mean() - 0.3) < 0.03
    assert abs(outputs.mean() - 1.0) < 0.05


@pytest.mark.parametrize("fused", [0, 1, 2, 3, None])
@pytest.mark.parametrize("bn_type", [None, "gn"])
def test_fused_stages_and_their_counts(fused, bn_type):
    config = _tiny(fused_stages=fused, bn_type=bn_type)
    model = architecture.build_network(config)
    kinds = [
        isinstance(layer, blocks.FusedMBConv)
        for layer in model.layers
        if layer.name.startswith("blocks_")
    ]
    count = 2 if fused is None else fused
    assert kinds == [stage < count for stage in (0, 1, 1, 2, 2)]
    sums = structure.count_model(config, 24)
    assert sums.parameters == _size(model.weights)
    assert sums.trainable == _size(model.trainable_variables)
