"""The building blocks of EfficientNet V1 and V2 as Keras layers.

Tensors are channels-last, [batch, height, width, channels]; any spatial size
of at least one pixel is accepted. Source of the blocks: Tan and Le,
arXiv 1905.11946 (MBConv, squeeze-and-excitation) and arXiv 2104.00298, figure
2 (Fused-MBConv).
"""

import keras

from efficientnetv2.models.kernels import (
    BatchNormalization,
    Conv2D,
    DepthwiseConv2D,
    FanOutNormal,
    PointwiseConv2D,
    silu,
    spatial_mean,
)
from efficientnetv2.models.structure import BlockArgs

_ACTIVATIONS = {
    "silu": silu,
    "relu": keras.activations.relu,
    "relu6": keras.activations.relu6,
    "hswish": lambda x: x * keras.ops.relu6(x + 3) / 6,
    "mish": keras.activations.mish,
    "elu": keras.activations.elu,
    "selu": keras.activations.selu,
    # TensorFlow's default slope of 0.2, which the reference uses.
    "leaky_relu": lambda x: keras.ops.leaky_relu(x, negative_slope=0.2),
    "swish": silu,
}
ACTIVATIONS = tuple(_ACTIVATIONS)
_POOLING = {"avg": keras.ops.mean, "max": keras.ops.max, None: None}


def _activation(name: str):
    if name not in _ACTIVATIONS:
        raise ValueError(
            f"Unknown activation {name!r}: use one of {ACTIVATIONS}."
        )
    return _ACTIVATIONS[name]


class _SameShape(keras.layers.Layer):
    """A random layer that leaves the shape as it is."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator()

    def _uniform(self, shape):
        return keras.random.uniform(
            shape, dtype="float32", seed=self.seed_generator
        )

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Dropout(_SameShape):
    """Dropout whose rate, in [0, 1), can be a variable.

    Progressive learning raises the rate from stage to stage; `rate_variable`
    (a scalar variable in [0, 1), None by default) does that without a new
    trace of the training step.
    """

    def __init__(self, rate: float, **kwargs):
        super().__init__(**kwargs)
        self.rate = rate
        self.rate_variable = None

    def call(self, inputs, training=False):
        rate = self.rate if self.rate_variable is None else self.rate_variable
        if not training or (self.rate_variable is None and not rate):
            return inputs
        rate = keras.ops.convert_to_tensor(rate)
        draws = self._uniform(keras.ops.shape(inputs))
        scale = keras.ops.cast(draws >= rate, "float32") / (1.0 - rate)
        return inputs * keras.ops.cast(scale, inputs.dtype)

    def get_config(self):
        return {**super().get_config(), "rate": self.rate}


@keras.saving.register_keras_serializable(package="efficientnetv2")
class StochasticDepth(_SameShape):
    """Drops the residual branch of whole examples while training.

    What survives is divided by the survival probability, in (0, 1], so
    inference needs no change. Source: Huang et al., arXiv 1603.09382.
    """

    def __init__(self, survival_probability: float, **kwargs):
        super().__init__(**kwargs)
        if not 0.0 < survival_probability <= 1.0:
            raise ValueError(
                "survival_probability must be in (0, 1], not "
                f"{survival_probability}."
            )
        self.survival_probability = survival_probability

    def call(self, inputs, training=False):
        if not training or self.survival_probability == 1.0:
            return inputs
        ones = (1,) * (len(inputs.shape) - 1)
        kept = self._uniform((keras.ops.shape(inputs)[0], *ones))
        scale = keras.ops.cast(kept < self.survival_probability, inputs.dtype)
        return inputs * (scale / self.survival_probability)

    def get_config(self):
        return {
            **super().get_config(),
            "survival_probability": self.survival_probability,
        }


def _conv(filters, kernel_size, strides=1, use_bias=False, name=None):
    options = {
        "padding": "same",
        "use_bias": use_bias,
        "kernel_initializer": FanOutNormal(),
        "name": name,
    }
    if kernel_size == strides == 1:
        return PointwiseConv2D(filters, **options)
    return Conv2D(filters, kernel_size, strides=strides, **options)


class _Layer(keras.layers.Layer):
    """A layer whose constructor arguments are its configuration.

    Args:
        own: `locals()` of the subclass' constructor.
        act_fn: name of the activation, one of `ACTIVATIONS`.
        norm_type: None or 'bn' for batch normalization, 'sync_bn' for
            statistics over all replicas, 'gn' for group normalization.
        norm_momentum: decay of the moving statistics, in [0, 1]; the released
            code uses 0.9, the paper 0.99.
        norm_epsilon: added to the variance.
        norm_groups: number of groups of group normalization; where it does
            not divide the number of channels, building the layer is an error.
        **kwargs: of `keras.layers.Layer`.

    Raises:
        ValueError: for an unknown activation or normalization.
    """

    def __init__(
        self,
        own,
        act_fn: str = "silu",
        norm_type: str | None = None,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-3,
        norm_groups: int = 8,
        **kwargs,
    ):
        super().__init__(**kwargs)
        others = ("self", "kwargs", "__class__")
        self._config = {
            **{k: v for k, v in own.items() if k not in others},
            "act_fn": act_fn,
            "norm_type": norm_type,
            "norm_momentum": norm_momentum,
            "norm_epsilon": norm_epsilon,
            "norm_groups": norm_groups,
        }
        self.activation = _activation(act_fn)

    def _norm(self, name):
        kind = self._config["norm_type"]
        options = {"epsilon": self._config["norm_epsilon"], "name": name}
        if kind == "gn":
            groups = self._config["norm_groups"]
            return keras.layers.GroupNormalization(groups, **options)
        if kind not in (None, "bn", "sync_bn"):
            raise ValueError(
                f"Unknown normalization {kind!r}: use 'bn', 'sync_bn' or 'gn'."
            )
        return BatchNormalization(
            momentum=self._config["norm_momentum"],
            synchronized=kind == "sync_bn",
            **options,
        )

    @property
    def _chain(self) -> list[keras.layers.Layer]:
        """The layers that an image passes and that may change its shape."""
        return [self.conv, self.norm]

    def build(self, input_shape):
        for layer in self._chain:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)
        self.built = True

    def compute_output_shape(self, input_shape):
        for layer in self._chain:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self):
        return {**super().get_config(), **self._config}


@keras.saving.register_keras_serializable(package="efficientnetv2")
class SqueezeExcitation(_Layer):
    """Scales each channel by a gate computed from all channels' means.

    The bottleneck between two 1x1 convolutions has `reduced_filters` channels.
    Source: Hu et al., arXiv 1709.01507.
    """

    def __init__(self, reduced_filters: int, output_filters: int, **kwargs):
        super().__init__(locals(), **kwargs)
        self.reduce = _conv(reduced_filters, 1, use_bias=True, name="reduce")
        self.expand = _conv(output_filters, 1, use_bias=True, name="expand")

    def build(self, input_shape):
        self.reduce.build((None, 1, 1, input_shape[-1]))
        self.expand.build((None, 1, 1, self._config["reduced_filters"]))
        self.built = True

    def call(self, inputs):
        gate = spatial_mean(inputs)
        gate = self.expand(self.activation(self.reduce(gate)))
        return inputs * keras.ops.sigmoid(gate)

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Stem(_Layer):
    """3x3 convolution of stride 2, normalization, activation; see `_Layer`."""

    def __init__(self, filters: int, **kwargs):
        super().__init__(locals(), **kwargs)
        self.conv = _conv(filters, 3, strides=2, name="conv")
        self.norm = self._norm("norm")

    def call(self, inputs, training=False):
        return self.activation(self.norm(self.conv(inputs), training=training))


class _ResidualBlock(_Layer):
    """What MBConv and Fused-MBConv share: all but the convolutions.

    Args:
        input_filters, output_filters: channels in and out, already scaled.
        kernel_size: of the convolution over more than one pixel.
        strides: of that convolution.
        expand_ratio: width of the inner tensor in multiples of the input; at
            1 the expanding convolution is left out.
        se_ratio: width of the squeeze in parts of `input_filters`, in (0, 1],
            or None for no squeeze-and-excitation.
        survival_probability: of the residual branch, in (0, 1].
        conv_dropout: dropout rate on the expanded tensor, or None.
        **kwargs: `act_fn`, `norm_*`, see `_Layer`.
    """

    def __init__(
        self,
        input_filters: int,
        output_filters: int,
        kernel_size: int = 3,
        strides: int = 1,
        expand_ratio: int = 1,
        se_ratio: float | None = None,
        survival_probability: float = 1.0,
        conv_dropout: float | None = None,
        **kwargs,
    ):
        super().__init__(locals(), **kwargs)
        self.strides = strides
        self.expand_ratio = expand_ratio
        args = BlockArgs(
            1,
            kernel_size,
            strides,
            expand_ratio,
            input_filters,
            output_filters,
            se_ratio=se_ratio,
        )
        self.expanded_filters = args.expanded_filters
        self.expand_conv = self.expand_norm = None
        self.depthwise_conv = self.depthwise_norm = None
        self.has_residual = strides == 1 and input_filters == output_filters
        self._build_convolutions(output_filters, kernel_size)
        self.se = None
        if args.has_se:
            self.se = SqueezeExcitation(
                args.se_filters,
                args.expanded_filters,
                act_fn=self._config["act_fn"],
                name="se",
            )
        self.dropout = None
        if conv_dropout and expand_ratio > 1:
            self.dropout = keras.layers.Dropout(conv_dropout, name="dropout")
        self.stochastic_depth = None
        if self.has_residual and survival_probability < 1.0:
            self.stochastic_depth = StochasticDepth(
                survival_probability, name="stochastic_depth"
            )

    @property
    def _chain(self):
        layers = (self.expand_conv, self.expand_norm)
        layers += (self.depthwise_conv, self.depthwise_norm, self.dropout)
        layers += (self.se, self.project_conv, self.project_norm)
        # `model.quantize` wants every layer built, whatever it does.
        layers += (self.stochastic_depth,)
        return [layer for layer in layers if layer is not None]

    def call(self, inputs, training=False):
        x = inputs
        if self.expand_conv is not None:
            x = self.expand_norm(self.expand_conv(x), training=training)
            x = self.activation(x)
        if self.depthwise_conv is not None:
            x = self.depthwise_norm(self.depthwise_conv(x), training=training)
            x = self.activation(x)
        if self.dropout is not None:
            x = self.dropout(x, training=training)
        if self.se is not None:
            x = self.se(x)
        x = self.project_norm(self.project_conv(x), training=training)
        if self.expand_conv is None and self.depthwise_conv is None:
            x = self.activation(x)
        if not self.has_residual:
            return x
        if self.stochastic_depth is not None:
            x = self.stochastic_depth(x, training=training)
        return x + inputs


@keras.saving.register_keras_serializable(package="efficientnetv2")
class MBConv(_ResidualBlock):
    """Mobile inverted bottleneck: 1x1 expand, depthwise, SE, 1x1 project."""

    def _build_convolutions(self, output_filters, kernel_size):
        if self.expand_ratio != 1:
            self.expand_conv = _conv(
                self.expanded_filters, 1, name="expand_conv"
            )
            self.expand_norm = self._norm("expand_norm")
        self.depthwise_conv = DepthwiseConv2D(
            kernel_size,
            strides=self.strides,
            padding="same",
            use_bias=False,
            depthwise_initializer=FanOutNormal(),
            name="depthwise_conv",
        )
        self.depthwise_norm = self._norm("depthwise_norm")
        self.project_conv = _conv(output_filters, 1, name="project_conv")
        self.project_norm = self._norm("project_norm")


@keras.saving.register_keras_serializable(package="efficientnetv2")
class FusedMBConv(_ResidualBlock):
    """MBConv with the expanding 1x1 and the depthwise conv fused into one.

    With an `expand_ratio` of 1 a single convolution of `kernel_size` remains,
    followed by the activation.
    """

    def _build_convolutions(self, output_filters, kernel_size):
        last = (kernel_size, self.strides)
        if self.expand_ratio != 1:
            self.expand_conv = _conv(
                self.expanded_filters, *last, name="expand_conv"
            )
            self.expand_norm = self._norm("expand_norm")
            last = (1, 1)
        self.project_conv = _conv(output_filters, *last, name="project_conv")
        self.project_norm = self._norm("project_norm")


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Head(_Layer):
    """1x1 convolution, normalization, activation, pooling, dropout.

    Returns features [batch, filters], or [batch, height, width, filters]
    without pooling.

    Args:
        filters: number of features.
        dropout_rate: float in [0, 1).
        pooling: 'avg', 'max' or None for the map as it is.
        **kwargs: `act_fn`, `norm_*`, see `_Layer`.
    """

    def __init__(
        self,
        filters: int,
        dropout_rate: float = 0.0,
        pooling: str | None = "avg",
        **kwargs,
    ):
        super().__init__(locals(), **kwargs)
        if pooling not in _POOLING:
            raise ValueError(
                f"Unknown pooling {pooling!r}: use 'avg', 'max' or None."
            )
        self.pool = _POOLING[pooling]
        self.conv = _conv(filters, 1, name="conv")
        self.norm = self._norm("norm")
        self.dropout = Dropout(dropout_rate, name="dropout")

    def build(self, input_shape):
        super().build(input_shape)
        self.dropout.build(self.compute_output_shape(input_shape))

    def call(self, inputs, training=False):
        x = self.norm(self.conv(inputs), training=training)
        x = self.activation(x)
        if self.pool is not None:
            x = self.pool(x, axis=(1, 2))
        return self.dropout(x, training=training)

    def compute_output_shape(self, input_shape):
        if self.pool is None:
            return (*input_shape[:-1], self._config["filters"])
        return (input_shape[0], self._config["filters"])
