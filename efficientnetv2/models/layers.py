"""What blocks are made of, besides convolutions."""

import math

import keras
import numpy as np

from efficientnetv2.models.convolutions import runs_on_tensorflow_cpu

ACTIVATIONS = (
    "silu",
    "relu",
    "relu6",
    "hswish",
    "mish",
    "elu",
    "selu",
    "leaky_relu",
)


def _hard_swish(x):
    return x * keras.ops.relu6(x + 3) / 6


def _silu(x):
    if not runs_on_tensorflow_cpu():
        return keras.activations.silu(x)
    import tensorflow as tf

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
    import tensorflow as tf

    @tf.custom_gradient
    def mean(x):
        shape = tf.shape(x)

        # TensorFlow's own divides each pixel's share.
        def gradient(upstream):
            pixels = tf.cast(shape[1] * shape[2], upstream.dtype)
            return tf.broadcast_to(upstream / pixels, shape)

        return tf.reduce_mean(x, axis=(1, 2), keepdims=True), gradient

    return mean(tf.convert_to_tensor(x))


def activation(name: str):
    """Returns the activation function called `name`.

    Args:
        name: one of `ACTIVATIONS`; 'swish' is another name of 'silu'.

    Raises:
        ValueError: for any other name.
    """
    if name in ("silu", "swish"):
        return _silu
    if name == "hswish":
        return _hard_swish
    if name == "leaky_relu":
        # TensorFlow's default slope of 0.2, which the reference uses.
        return lambda x: keras.ops.leaky_relu(x, negative_slope=0.2)
    if name in ACTIVATIONS:
        return keras.activations.get(name)
    raise ValueError(f"Unknown activation {name!r}: use one of {ACTIVATIONS}.")


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


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Dropout(keras.layers.Layer):
    """Dropout whose rate can be a variable.

    Progressive learning raises the rate from stage to stage; `rate_variable`
    (a scalar variable in [0, 1), None by default) does that without a new
    trace of the training step.

    Args:
        rate: float in [0, 1).
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.rate_variable = None
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        rate = self.rate if self.rate_variable is None else self.rate_variable
        if not training or (self.rate_variable is None and not rate):
            return inputs
        rate = keras.ops.convert_to_tensor(rate)
        draws = keras.random.uniform(
            keras.ops.shape(inputs), dtype="float32", seed=self.seed_generator
        )
        scale = keras.ops.cast(draws >= rate, "float32") / (1.0 - rate)
        return inputs * keras.ops.cast(scale, inputs.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="efficientnetv2")
class StochasticDepth(keras.layers.Layer):
    """Drops the residual branch of whole examples while training.

    What survives is divided by the survival probability, so inference needs
    no change. Source: Huang et al., arXiv 1603.09382.

    Args:
        survival_probability: float in (0, 1].
    """

    def __init__(self, survival_probability: float, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 < survival_probability <= 1.0:
            raise ValueError(
                "survival_probability must be in (0, 1], not "
                f"{survival_probability}."
            )
        self.survival_probability = survival_probability
        self.seed_generator = keras.random.SeedGenerator()

    def call(self, inputs, training=False):
        if not training or self.survival_probability == 1.0:
            return inputs
        shape = (keras.ops.shape(inputs)[0],) + (1,) * (len(inputs.shape) - 1)
        kept = keras.random.uniform(
            shape, dtype="float32", seed=self.seed_generator
        )
        scale = keras.ops.cast(kept < self.survival_probability, inputs.dtype)
        return inputs * (scale / self.survival_probability)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "survival_probability": self.survival_probability,
        }


@keras.saving.register_keras_serializable(package="efficientnetv2")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalization on TensorFlow's fused kernel.

    On several replicas the statistics are those of the whole batch.

    Same weights, same arguments and same numbers as
    `keras.layers.BatchNormalization`, which on the TensorFlow backend computes
    mean, squared difference and a dozen element-wise operations one by one.
    The moving variance follows Keras 3 (biased batch variance), so the sample
    correction that the fused kernel applies is taken back.

    Inputs that the kernel does not know (other ranks, another axis, masks,
    synchronized statistics, a backend other than TensorFlow) take the path of
    the parent class.

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
        if training and _number_of_replicas() > 1:
            return self._synchronized_call(inputs, mask)
        return self._fused_call(inputs, training)

    def _synchronized_call(self, inputs, mask):
        self.synchronized = True
        try:
            return super().call(inputs, training=True, mask=mask)
        finally:
            self.synchronized = False

    def _can_fuse(self, inputs, mask) -> bool:
        return (
            keras.backend.backend() == "tensorflow"
            and mask is None
            and not self.synchronized
            and self.scale
            and self.center
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
        )

    def _fused_call(self, inputs, training: bool):
        import tensorflow as tf

        inputs = tf.convert_to_tensor(inputs)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, "float32"),
            offset=tf.cast(self.beta, "float32"),
            mean=tf.zeros([0])
            if training
            else tf.cast(self.moving_mean, "float32"),
            variance=(
                tf.zeros([0])
                if training
                else tf.cast(self.moving_variance, "float32")
            ),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            count = tf.cast(tf.size(inputs) / tf.shape(inputs)[-1], "float32")
            # The kernel returns the unbiased estimate, n / (n - 1) times ours.
            variance *= (count - 1.0) / tf.maximum(count, 2.0)
            for moving, batch in (
                (self.moving_mean, mean),
                (self.moving_variance, variance),
            ):
                moving.assign(
                    moving * self.momentum + batch * (1.0 - self.momentum)
                )
        return outputs


def _number_of_replicas() -> int:
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def normalization(
    norm_type: str | None,
    momentum: float = 0.9,
    epsilon: float = 1e-3,
    groups: int = 8,
    name: str | None = None,
) -> keras.layers.Layer:
    """Returns the normalization layer that follows a convolution.

    Args:
        norm_type: None or 'bn' for batch normalization, 'sync_bn' for
            statistics over all replicas, 'gn' for group normalization.
        momentum: decay of the moving statistics, in [0, 1]; the released code
            uses 0.9, the paper 0.99.
        epsilon: added to the variance.
        groups: number of groups of group normalization; where it does not
            divide the number of channels, building the layer is an error.
        name: name of the layer.

    Raises:
        ValueError: for an unknown `norm_type`.
    """
    if norm_type in (None, "bn"):
        return BatchNormalization(momentum=momentum, epsilon=epsilon, name=name)
    if norm_type == "sync_bn":
        return BatchNormalization(
            momentum=momentum, epsilon=epsilon, synchronized=True, name=name
        )
    if norm_type == "gn":
        return keras.layers.GroupNormalization(
            groups=groups, epsilon=epsilon, name=name
        )
    raise ValueError(
        f"Unknown normalization {norm_type!r}: use 'bn', 'sync_bn' or 'gn'."
    )
