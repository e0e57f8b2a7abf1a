"""Block strings, parameter counts, layers."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2 import config as config_lib
from efficientnetv2.models import architecture, block_strings, blocks
from efficientnetv2.models.block_strings import BlockArgs


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
    model = architecture.build(_model_config(name))
    assert model.count_params() == expected["total"]
    trainable = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert trainable == expected["trainable"]
    found = [layer for layer in model.layers if "blocks_" in layer.name]
    assert len(found) == expected["blocks"]


def _formula(config):
    """Parameters by arithmetic: total and trainable."""
    total = trainable = 0

    def add(weights, norm=0):
        nonlocal total, trainable
        total += weights + 4 * norm
        trainable += weights + 2 * norm

    expanded = block_strings.expand_blocks(config)
    add(3 * 9 * expanded[0].input_filters, expanded[0].input_filters)
    for args in expanded:
        width = args.input_filters * args.expand_ratio
        taps = args.kernel_size**2
        if args.conv_type:
            if args.expand_ratio != 1:
                add(args.input_filters * width * taps, width)
                taps = 1
            add(width * args.output_filters * taps, args.output_filters)
        else:
            if args.expand_ratio != 1:
                add(args.input_filters * width, width)
            add(width * taps, width)
            add(width * args.output_filters, args.output_filters)
        if args.se_ratio:
            reduced = max(1, int(args.input_filters * args.se_ratio))
            add(2 * reduced * width + reduced + width)
    features = block_strings.round_filters(1280, config["width_coefficient"])
    add(expanded[-1].output_filters * features, features)
    add((features + 1) * config["num_classes"])
    return total, trainable


def test_parameter_counts_of_all_models_by_arithmetic(reference):
    for name, expected in _counts(reference).items():
        config = _model_config(name)
        assert _formula(config) == (expected["total"], expected["trainable"])
        assert len(block_strings.expand_blocks(config)) == expected["blocks"]


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


@pytest.mark.parametrize("act_fn", [*blocks.ACTIVATIONS, "swish"])
def test_every_activation(act_fn):
    model = architecture.build(_tiny(act_fn=act_fn))
    logits = model(np.ones((2, 20, 20, 3), np.float32))
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("bn_type", [None, "bn", "sync_bn", "gn"])
def test_every_normalization(bn_type):
    model = architecture.build(_tiny(bn_type=bn_type))
    logits = model(np.ones((2, 20, 20, 3), np.float32), training=True)
    assert logits.shape == (2, 5)


def test_unknown_names():
    with pytest.raises(ValueError, match="mishmash"):
        architecture.build(_tiny(act_fn="mishmash"))
    with pytest.raises(ValueError, match="layernorm"):
        architecture.build(_tiny(bn_type="layernorm"))


def test_any_image_size_and_no_top():
    model = architecture.build(_tiny(), include_top=False)
    for size in (8, 17, 33):
        assert model(np.zeros((1, size, size, 3))).shape == (1, 24)


def test_survival_probability_falls_linearly():
    model = architecture.build(_tiny(survival_prob=0.5))
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


def test_save_and_load(tmp_path):
    model = architecture.build(_tiny())
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images), again(images))
