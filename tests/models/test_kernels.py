"""The layers on faster kernels equal Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2.models import blocks, kernels


def _gradients(function, inputs, upstream, *variables):
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = function(inputs)
    return outputs, tape.gradient(outputs, [inputs, *variables], upstream)


def _of_layer(layer, inputs, upstream, **options):
    variables = [v.value for v in layer.trainable_variables]
    return _gradients(
        lambda x: layer(x, **options), inputs, upstream, *variables
    )


def _assert_equal(ours, keras_layer, shape, **options):
    random = np.random.default_rng(0)
    inputs = random.normal(size=shape).astype(np.float32)
    ours.build(shape)
    keras_layer.build(shape)
    weights = [random.uniform(0.5, 1.5, v.shape) for v in ours.weights]
    upstream = random.normal(size=ours.compute_output_shape(shape))
    found = []
    for layer in (ours, keras_layer):
        layer.set_weights(weights)
        found.append(
            _of_layer(layer, inputs, upstream.astype(np.float32), **options)
        )
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        *found,
    )
    for a, b in zip(ours.weights, keras_layer.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 8), (3, 1, 1, 5)])
def test_batch_normalization(shape, training):
    options = {"momentum": 0.9, "epsilon": 1e-3}
    _assert_equal(
        kernels.BatchNormalization(**options),
        keras.layers.BatchNormalization(**options),
        shape,
        training=training,
    )


class _TrainedConv2D(keras.layers.Conv2D):
    """Takes the argument `training`, as ours does."""

    def call(self, inputs, training=False):
        return super().call(inputs)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_pointwise_convolution(use_bias, training):
    _assert_equal(
        kernels.PointwiseConv2D(7, use_bias=use_bias),
        _TrainedConv2D(7, 1, use_bias=use_bias),
        (3, 4, 5, 6),
        training=training,
    )


def test_training_reaches_convolutions_in_blocks(monkeypatch):
    """The flag is passed on by Keras, as layers in layers do not name it."""
    seen = []
    call = kernels.PointwiseConv2D.call

    def spy(self, inputs, training=False):
        seen.append(training)
        return call(self, inputs, training=training)

    monkeypatch.setattr(kernels.PointwiseConv2D, "call", spy)
    block = blocks.MBConv(4, 4, expand_ratio=2, se_ratio=0.5)
    inputs = np.ones((1, 3, 3, 4), np.float32)
    block(inputs, training=True)
    block(inputs)
    assert seen == [True] * 4 + [False] * 4


def test_silu_and_its_gradient():
    inputs = tf.linspace(-20.0, 20.0, 101)
    found, expected = (
        _gradients(function, inputs, tf.ones_like(inputs))
        for function in (kernels.silu, tf.nn.silu)
    )
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1][0], expected[1][0], atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolution(size, stride, kernel):
    options = {"strides": stride, "padding": "same", "use_bias": False}
    _assert_equal(
        kernels.DepthwiseConv2D(kernel, **options),
        keras.layers.DepthwiseConv2D(kernel, **options),
        (3, size, size, 4),
    )


@pytest.mark.parametrize("size", [1, 3])
def test_bfloat16_products_round_only_while_training(size):
    layer = kernels.PointwiseConv2D(7, use_bias=False)
    if size == 3:
        layer = kernels.Conv2D(7, 3, 2, padding="same", use_bias=False)
    random = np.random.default_rng(0)
    inputs = random.normal(size=(3, 5, 6, 16)).astype(np.float32)
    upstream = np.ones(layer.compute_output_shape(inputs.shape), np.float32)
    layer.build(inputs.shape)
    outputs, exact = _of_layer(layer, inputs, upstream, training=True)
    kernels.set_bfloat16_products(True)
    try:
        rounded, gradients = _of_layer(layer, inputs, upstream, training=True)
        inferred = layer(inputs)
    finally:
        kernels.set_bfloat16_products(False)
    assert rounded.dtype == layer.kernel.dtype == tf.float32
    np.testing.assert_array_equal(
        rounded, tf.cast(tf.cast(rounded, tf.bfloat16), tf.float32)
    )
    np.testing.assert_allclose(rounded, outputs, atol=0.1)
    np.testing.assert_allclose(inferred, outputs, atol=1e-5)
    assert not np.array_equal(rounded, outputs)
    np.testing.assert_allclose(gradients[0], exact[0], atol=0.1)
    np.testing.assert_allclose(gradients[1], exact[1], rtol=0.05, atol=0.2)
