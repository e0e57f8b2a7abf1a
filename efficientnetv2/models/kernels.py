"""Layers, functions and an initializer of Keras, made faster.

TensorFlow's CPU kernels for 1x1 convolutions and for the filter gradient of
depthwise convolutions of tiny images spend most of their time on reordering
(benchmarks/ours.py measures both). Elsewhere the layers are Keras' own.
"""

import functools
import math

import keras
import numpy as np

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf


@functools.cache
def runs_on_tensorflow_cpu() -> bool:
    """Whether the backend is TensorFlow and sees neither a GPU nor a TPU."""
    return keras.backend.backend() == "tensorflow" and not (
        tf.config.list_physical_devices("GPU")
        or tf.config.list_physical_devices("TPU")
    )


_products = {"bfloat16": False}


def set_bfloat16_products(on: bool) -> None:
    """Sets how layers called later in this process train on TensorFlow's CPU.

    If on, full and 1x1 convolutions round their operands and results to
    bfloat16; the kernels accumulate in float32. All variables, and all other
    operations, stay float32.
    """
    _products["bfloat16"] = on


def _product(function, *operands):
    """Returns a product of float32 tensors, see `set_bfloat16_products`."""
    if not _products["bfloat16"]:
        return function(*operands)
    rounded = [tf.cast(operand, tf.bfloat16) for operand in operands]
    return tf.cast(function(*rounded), tf.float32)


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Conv2D(keras.layers.Conv2D):
    """Keras' own, but for `set_bfloat16_products`."""

    def call(self, inputs, training=False):
        if not training or not _products["bfloat16"] or self.use_bias:
            return super().call(inputs)
        return _product(
            lambda images, kernel: tf.nn.conv2d(
                images, kernel, self.strides, self.padding.upper()
            ),
            inputs,
            self.kernel,
        )


@keras.saving.register_keras_serializable(package="efficientnetv2")
class PointwiseConv2D(keras.layers.Conv2D):
    """A 1x1 convolution of stride 1, trained as one matrix product on CPU.

    At inference it is Keras' own, so that the logits of a model equal those
    of `keras.applications` to the last bit. Arguments are those of
    `keras.layers.Conv2D`, but for the kernel size.
    """

    def __init__(self, filters: int, **kwargs):
        kwargs.pop("kernel_size", None)
        super().__init__(filters, kernel_size=1, **kwargs)

    def call(self, inputs, training=False):
        if not training or not runs_on_tensorflow_cpu():
            return super().call(inputs)
        kernel = tf.convert_to_tensor(self.kernel)
        shape, channels = tf.shape(inputs), inputs.shape[-1]
        operands = (
            tf.reshape(inputs, [-1, channels]),
            tf.reshape(kernel, [channels, self.filters]),
        )
        if not self.use_bias:
            outputs = _product(tf.matmul, *operands)
        else:
            # Squeeze-and-excitation: too small to gain from bfloat16.
            outputs = tf.matmul(*operands)
            outputs = tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))
        outputs = tf.reshape(
            outputs, tf.concat([shape[:-1], [self.filters]], 0)
        )
        outputs.set_shape(inputs.shape[:-1] + [self.filters])
        return outputs


@keras.saving.register_keras_serializable(package="efficientnetv2")
class DepthwiseConv2D(keras.layers.DepthwiseConv2D):
    """A depthwise convolution whose filter gradient is fast for tiny images.

    For one output pixel or 2x2 of them, the input times each pixel's gradient,
    summed over the batch, is the gradient of the kernel's part that lies over
    the image; above that TensorFlow's kernel is faster.
    """

    def call(self, inputs):
        if (
            not runs_on_tensorflow_cpu()
            or self.padding != "same"
            or self.use_bias
        ):
            return super().call(inputs)
        size, stride = self.kernel_size[0], self.strides[0]
        strides = [1, stride, stride, 1]

        @tf.custom_gradient
        def convolve(inputs, kernel):
            outputs = tf.nn.depthwise_conv2d(inputs, kernel, strides, "SAME")

            def gradient(upstream):
                to_inputs = tf.raw_ops.DepthwiseConv2dNativeBackpropInput(
                    input_sizes=tf.shape(inputs),
                    filter=kernel,
                    out_backprop=upstream,
                    strides=strides,
                    padding="SAME",
                )
                of_kernel = _filter_gradient(size, stride, inputs.dtype)
                to_kernel = of_kernel(inputs, upstream)
                return to_inputs, tf.ensure_shape(to_kernel, kernel.shape)

            return outputs, gradient

        return convolve(inputs, tf.convert_to_tensor(self.kernel))


@functools.cache
def _filter_gradient(size: int, stride: int, dtype):
    """Returns a function from inputs and upstream gradient to the kernel's.

    All layers call the same one, and the graph optimizer leaves it alone,
    which shortens the time to the first step by seconds.
    """
    images = tf.TensorSpec([None, None, None, None], dtype)

    @tf.function(
        input_signature=[images, images],
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
    def filter_gradient(inputs, upstream):
        _, height, width, channels = tf.unstack(tf.shape(upstream))

        def kernel():
            return tf.raw_ops.DepthwiseConv2dNativeBackpropFilter(
                input=inputs,
                filter_sizes=[size, size, channels, 1],
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding="SAME",
            )

        def by_pixels(length):
            return lambda: _filter_gradient_by_pixels(
                inputs, upstream, size, stride, length
            )

        cases = []
        if size >= stride:
            cases.append((height * width == 1, by_pixels(1)))
        if stride == 1 and size > 2:
            cases.append(((height == 2) & (width == 2), by_pixels(2)))
        return tf.case(cases, kernel) if cases else kernel()

    return filter_gradient


def _filter_gradient_by_pixels(inputs, upstream, size, stride, length):
    """Returns [size, size, channels, 1], a product and a sum per output pixel.

    Of `upstream`, [batch, length, length, channels], there are 1 or 2x2, around
    each of which the kernel covers all of `inputs`.
    """
    shape = tf.shape(inputs)[1:3]
    before = ((length - 1) * stride + size - shape) // 2
    pixels = []
    for row in range(length):
        for column in range(length):
            here = upstream[:, row : row + 1, column : column + 1]
            start = before - [row * stride, column * stride]
            paddings = tf.stack([start, size - shape - start], axis=1)
            pixels.append(
                tf.pad(
                    tf.reduce_sum(inputs * here, axis=0),
                    tf.concat([paddings, [[0, 0]]], 0),
                )
            )
    return tf.add_n(pixels)[..., None]


def silu(x):
    """Returns x * sigmoid(x)."""
    if not runs_on_tensorflow_cpu():
        return keras.activations.silu(x)

    @tf.custom_gradient
    def silu(x):
        gate = tf.sigmoid(x)

        def gradient(upstream):
            return upstream * gate * (1.0 + x * (1.0 - gate))

        # ensure_shape does nothing but keep the graph optimizer from another
        # kernel, whose last bits differ from eager execution.
        return x * tf.ensure_shape(gate, gate.shape), gradient

    return silu(tf.convert_to_tensor(x))


def spatial_mean(x):
    """Returns means [batch, 1, 1, channels]."""
    if not runs_on_tensorflow_cpu():
        return keras.ops.mean(x, axis=(1, 2), keepdims=True)

    @tf.custom_gradient
    def mean(x):
        shape = tf.shape(x)

        # TensorFlow's own divides each pixel's share.
        def gradient(upstream):
            pixels = tf.cast(shape[1] * shape[2], upstream.dtype)
            return tf.broadcast_to(upstream / pixels, shape)

        return tf.reduce_mean(x, axis=(1, 2), keepdims=True), gradient

    return mean(tf.convert_to_tensor(x))


@keras.saving.register_keras_serializable(package="efficientnetv2")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization on TensorFlow's fused kernel.

    Arguments, weights and numbers are those of
    `keras.layers.BatchNormalization`, which on TensorFlow computes mean,
    squared difference and a dozen element-wise operations one by one. On
    several replicas the statistics are those of the whole batch. The moving
    variance follows Keras 3 (biased batch variance).

    Inputs that the kernel does not know (other ranks, another axis, masks,
    synchronized statistics, other backends) take the path of the parent class.

    Source: Ioffe and Szegedy, arXiv 1502.03167.
    """

    def call(self, inputs, training=None, mask=None):
        if keras.backend.backend() == "jax":
            # A batch over several devices is one array, whose statistics XLA
            # computes over all of them; Keras refuses the flag.
            self.synchronized = False
            return super().call(inputs, training=training, mask=mask)
        training = bool(training) and self.trainable
        # At inference on CPU a product and a sum do; the graph optimizer then
        # changes no bit of them, as it does to the fused kernel.
        plain = not training and runs_on_tensorflow_cpu()
        if plain or not self._can_fuse(inputs, mask):
            return super().call(inputs, training=training, mask=mask)
        context = tf.distribute.get_replica_context()
        if not training or not context or context.num_replicas_in_sync == 1:
            return self._fused_call(inputs, training)
        self.synchronized = True
        try:
            return super().call(inputs, training=True, mask=mask)
        finally:
            self.synchronized = False

    def _can_fuse(self, inputs, mask) -> bool:
        plain = self.scale and self.center and not self.synchronized
        images = len(inputs.shape) == 4 and self.axis in (-1, 3)
        tensorflow = keras.backend.backend() == "tensorflow"
        return tensorflow and mask is None and plain and images

    def _fused_call(self, inputs, training: bool):
        inputs = tf.convert_to_tensor(inputs)
        mean = variance = tf.zeros([0])
        if not training:
            mean = tf.cast(self.moving_mean, "float32")
            variance = tf.cast(self.moving_variance, "float32")
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, "float32"),
            offset=tf.cast(self.beta, "float32"),
            mean=mean,
            variance=variance,
            epsilon=self.epsilon,
            is_training=training,
        )
        if not training:
            return outputs
        count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], "float32")
        # The kernel returns the unbiased estimate, n / (n - 1) times ours.
        variance *= (count - 1.0) / tf.maximum(count, 2.0)
        kept, new = self.momentum, 1.0 - self.momentum
        self.moving_mean.assign(self.moving_mean * kept + mean * new)
        self.moving_variance.assign(
            self.moving_variance * kept + variance * new
        )
        return outputs


@keras.saving.register_keras_serializable(package="efficientnetv2")
class FanOutNormal(keras.initializers.VarianceScaling):
    """Normal with variance 2 / fan_out, not truncated: the reference's.

    On JAX, NumPy draws the numbers: XLA would compile a program for every
    shape, which takes EfficientNetV2-S more than a minute.
    """

    def __init__(self, seed: int | None = None):
        super().__init__(
            2.0, mode="fan_out", distribution="untruncated_normal", seed=seed
        )

    def __call__(self, shape, dtype=None):
        if keras.backend.backend() != "jax":
            return super().__call__(shape, dtype)
        fan_out = math.prod(shape) / shape[-2]
        draws = np.random.default_rng(self.seed).standard_normal(
            shape, np.float32
        )
        return keras.ops.convert_to_tensor(
            draws * np.float32(math.sqrt(2.0 / fan_out)), dtype
        )

    def get_config(self):
        return {"seed": self.seed}
