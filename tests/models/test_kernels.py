"""The layers on faster kernels equal Keras' own."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from efficientnetv2.models import convolutions, normalization


def _gradients(layer, inputs, upstream, training):
    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = (
            layer(inputs)
            if training is None
            else layer(inputs, training=training)
        )
    variables = [v.value for v in layer.trainable_variables]
    return outputs, tape.gradient(outputs, [inputs, *variables], upstream)


def _assert_equal(ours, keras_layer, shape, training=True):
    random = np.random.default_rng(0)
    inputs = random.normal(size=shape).astype(np.float32)
    ours.build(shape)
    keras_layer.build(shape)
    weights = [random.uniform(0.5, 1.5, v.shape) for v in ours.weights]
    ours.set_weights(weights)
    keras_layer.set_weights(weights)
    upstream = random.normal(size=ours.compute_output_shape(shape))
    upstream = upstream.astype(np.float32)
    first = _gradients(ours, inputs, upstream, training)
    second = _gradients(keras_layer, inputs, upstream, training)
    tf.nest.map_structure(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4),
        first,
        second,
    )
    for a, b in zip(ours.weights, keras_layer.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, 5, 6, 8), (3, 1, 1, 5)])
def test_batch_normalization(shape, training):
    options = {"momentum": 0.9, "epsilon": 1e-3}
    _assert_equal(
        normalization.BatchNormalization(**options),
        keras.layers.BatchNormalization(**options),
        shape,
        training,
    )


@pytest.mark.parametrize("use_bias", [True, False])
def test_pointwise_convolution(use_bias):
    _assert_equal(
        convolutions.PointwiseConv2D(7, use_bias=use_bias),
        keras.layers.Conv2D(7, 1, use_bias=use_bias),
        (3, 4, 5, 6),
        None,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_depthwise_convolution(size, stride, kernel):
    options = {"strides": stride, "padding": "same", "use_bias": False}
    _assert_equal(
        convolutions.DepthwiseConv2D(kernel, **options),
        keras.layers.DepthwiseConv2D(kernel, **options),
        (3, size, size, 4),
        None,
    )
