"""Models by their configurations: parameters, layers, options."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import config as config_lib
from efficientnetv2 import formatting, normalizations
from efficientnetv2.data import preprocessing
from efficientnetv2.models import architecture, blocks, structure
from efficientnetv2.models.structure import BlockArgs


def _model_config(name, **overrides):
    config = config_lib.load(
        "cifar10",
        model_name=name,
        recipe="imagenet_code",
        hparam_str="train.batch_size=64",
    )
    return {**config.model.to_dict(), "num_classes": 1000, **overrides}


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
    with pytest.raises(ValueError, match="Block string") as error:
        BlockArgs.from_string(text)
    assert word in str(error.value)


def _counts(reference):
    return json.loads((reference / "parameter_counts.json").read_text())


SMALL = ["efficientnetv2-b0", "efficientnet-b0"]


@pytest.mark.parametrize("name", SMALL)
def test_parameter_counts_of_built_models(reference, name):
    expected = _counts(reference)[name]
    model = architecture.build_network(_model_config(name))
    assert model.count_params() == expected["total"]
    trainable = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert trainable == expected["trainable"]
    found = [layer for layer in model.layers if "blocks_" in layer.name]
    assert len(found) == expected["blocks"]


def test_parameter_counts_of_all_models_by_arithmetic(reference):
    for name, expected in _counts(reference).items():
        config = _model_config(name)
        sums = structure.count_model(config, 224)
        assert sums.parameters == expected["total"]
        assert sums.trainable == expected["trainable"]
        assert sums.layers == expected["blocks"] + 3


# As published: millions of parameters and of multiply-adds, the image size, and
# what our counts are of these. Those of Lite count with a profiler that also
# counts what is no product of weights.
V2_COUNTS, LITE_COUNTS = (0.99, 1.01, 0.98, 1.02), (0.985, 1.015, 0.94, 0.97)
PUBLISHED = {
    "efficientnetv2-b0": (7.1, 720, 224, *V2_COUNTS),
    "efficientnetv2-b1": (8.1, 1_200, 240, *V2_COUNTS),
    "efficientnetv2-b2": (10.1, 1_700, 260, *V2_COUNTS),
    "efficientnetv2-b3": (14.4, 3_000, 300, *V2_COUNTS),
    "efficientnetv2-s": (21.5, 8_400, 384, *V2_COUNTS),
    "efficientnetv2-m": (54.1, 24_700, 480, *V2_COUNTS),
    "efficientnetv2-l": (119.5, 56_300, 480, *V2_COUNTS),
    "efficientnet-lite0": (4.7, 407, 224, *LITE_COUNTS),
    "efficientnet-lite1": (5.4, 631, 240, *LITE_COUNTS),
    "efficientnet-lite2": (6.1, 899, 260, *LITE_COUNTS),
    "efficientnet-lite3": (8.2, 1_440, 280, *LITE_COUNTS),
    "efficientnet-lite4": (13.0, 2_640, 300, *LITE_COUNTS),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_the_published_ones(name):
    parameters, products, size, *bounds = PUBLISHED[name]
    rows = structure.count_stages(_model_config(name), size)
    sums = structure.count_model(_model_config(name), size)
    assert bounds[0] < sums.trainable / 1e6 / parameters < bounds[1]
    assert bounds[2] < sums.multiply_adds / 1e6 / products < bounds[3]
    if "lite" in name:
        assert rows[0].channels == 32 and rows[-2].channels == 1280
        assert rows[1].layers == rows[-3].layers == 1


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


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7_139_704, "7.14M"),
        (999_600, "1.00M"),
        (8_365_617_152, "8.37B"),
        (118_515_272, "119M"),
        (956, "956"),
        (53_100, "53.1k"),
    ],
)
def test_counts_in_three_digits(number, text):
    assert formatting.format_count(number) == text


def _tiny(**overrides):
    return _model_config(
        "efficientnetv2-b0",
        **{
            "blocks": [
                "r1_k3_s1_e1_i8_o8_c1",
                "r2_k3_s2_e2_i8_o16_c1",
                "r2_k3_s2_e2_i16_o16_se0.25",
            ],
            "feature_size": 24,
            "num_classes": 5,
            "depth_coefficient": 1.0,
            **overrides,
        },
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [("act_fn", name) for name in (*blocks.ACTIVATIONS, "mishmash")]
    + [
        ("bn_type", name) for name in (None, "bn", "sync_bn", "gn", "layernorm")
    ],
)
def test_every_activation_and_normalization(option, value):
    config = _tiny(**{option: value})
    if value in ("mishmash", "layernorm"):
        with pytest.raises(ValueError, match=value):
            architecture.build_network(config)
        return
    model = architecture.build_network(config)
    logits = model(np.ones((2, 20, 20, 3), np.float32), option == "bn_type")
    assert logits.shape == (2, 5) and np.isfinite(logits).all()


def test_any_image_size_and_no_top():
    model = architecture.build_network(_tiny(), include_top=False)
    for size in (8, 17, 33):
        assert model(np.zeros((1, size, size, 3))).shape == (1, 24)


def test_survival_probability_falls_linearly():
    model = architecture.build_network(_tiny(survival_prob=0.5))
    rates = [
        block.stochastic_depth.survival_probability
        for block in model.layers
        if "blocks_" in block.name and block.stochastic_depth is not None
    ]
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

    @tf.function
    def apply():
        return layer(inputs, training=True)

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
        type(layer).__name__
        for layer in model.layers
        if layer.name.startswith("blocks_")
    ]
    of_stages = ["FusedMBConv"] * (2 if fused is None else fused)
    of_stages += ["MBConv"] * (3 - len(of_stages))
    assert kinds == [of_stages[k] for k in (0, 1, 1, 2, 2)]
    sums = structure.count_model(config, 24)
    assert sums.parameters == model.count_params() - sum(
        np.prod(v.shape) for v in model.weights if "seed" in v.path
    )
    assert sums.trainable == sum(
        np.prod(v.shape) for v in model.trainable_variables
    )


@pytest.mark.parametrize("mode", normalizations.MODES)
def test_preprocessing_is_that_of_the_pipeline(mode):
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3))
    inside = architecture.build_network(_tiny(), preprocessing=mode)
    outside = architecture.build_network(_tiny())
    outside.set_weights(inside.get_weights())
    np.testing.assert_allclose(
        inside(images.astype(np.float32)),
        outside(preprocessing.normalize(tf.cast(images, tf.float32), mode)),
        atol=1e-5,
    )
