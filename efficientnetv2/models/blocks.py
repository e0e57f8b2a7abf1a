"""The building blocks of EfficientNet V1 and V2 as Keras layers.

Tensors are channels-last, [batch, height, width, channels]; any spatial size
of at least one pixel is accepted. Source of the blocks: Tan and Le,
arXiv 1905.11946 (MBConv, squeeze-and-excitation) and arXiv 2104.00298, figure
2 (Fused-MBConv).
"""

import keras

from efficientnetv2.models.block_strings import BlockArgs
from efficientnetv2.models.convolutions import (
    Conv2D,
    DepthwiseConv2D,
    PointwiseConv2D,
)
from efficientnetv2.models.layers import (
    Dropout,
    FanOutNormal,
    StochasticDepth,
    activation,
    normalization,
    spatial_mean,
)

_POOLING = {"avg": keras.ops.mean, "max": keras.ops.max, None: None}


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
        arguments: `locals()` of the constructor.
        **kwargs: of `keras.layers.Layer`.
    """

    def __init__(self, arguments, **kwargs):
        super().__init__(**kwargs)
        others = ("self", "kwargs", "__class__")
        self._config = {k: v for k, v in arguments.items() if k not in others}

    def _norm(self, name):
        return normalization(
            self._config["norm_type"],
            momentum=self._config["norm_momentum"],
            epsilon=self._config["norm_epsilon"],
            groups=self._config["norm_groups"],
            name=name,
        )

    def get_config(self):
        return {**super().get_config(), **self._config}


@keras.saving.register_keras_serializable(package="efficientnetv2")
class SqueezeExcitation(_Layer):
    """Scales each channel by a gate computed from all channels' means.

    Args:
        reduced_filters: width of the bottleneck.
        output_filters: number of channels of input and output.
        act_fn: name of the activation between the two 1x1 convolutions.

    Source: Hu et al., arXiv 1709.01507.
    """

    def __init__(
        self,
        reduced_filters: int,
        output_filters: int,
        act_fn: str = "silu",
        **kwargs,
    ):
        super().__init__(locals(), **kwargs)
        self.activation = activation(act_fn)
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
    """3x3 convolution of stride 2, normalization, activation.

    Args:
        filters: number of output channels.
        act_fn: name of the activation, see `activation`.
        norm_type, norm_momentum, norm_epsilon, norm_groups: see
            `normalization`.
    """

    def __init__(
        self,
        filters: int,
        act_fn: str = "silu",
        norm_type: str | None = None,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-3,
        norm_groups: int = 8,
        **kwargs,
    ):
        super().__init__(locals(), **kwargs)
        self.activation = activation(act_fn)
        self.conv = _conv(filters, 3, strides=2, name="conv")
        self.norm = self._norm("norm")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))
        self.built = True

    def call(self, inputs, training=False):
        return self.activation(self.norm(self.conv(inputs), training=training))

    def compute_output_shape(self, input_shape):
        return self.conv.compute_output_shape(input_shape)


class _ResidualBlock(_Layer):
    """What MBConv and Fused-MBConv share: all but the convolutions."""

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
        act_fn: str = "silu",
        norm_type: str | None = None,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-3,
        norm_groups: int = 8,
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
        self.activation = activation(act_fn)
        self.expand_conv = self.expand_norm = None
        self.depthwise_conv = self.depthwise_norm = None
        self.has_residual = strides == 1 and input_filters == output_filters
        self._build_convolutions(output_filters, kernel_size)
        self.se = None
        if args.has_se:
            self.se = SqueezeExcitation(
                args.se_filters,
                args.expanded_filters,
                act_fn,
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

    def build(self, input_shape):
        shape = input_shape
        for layer in self._chain:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        # `model.quantize` wants every layer built.
        for layer in filter(None, (self.dropout, self.stochastic_depth)):
            layer.build(shape)
        self.built = True

    def compute_output_shape(self, input_shape):
        for layer in self._chain:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    @property
    def _chain(self):
        layers = (
            self.expand_conv,
            self.expand_norm,
            self.depthwise_conv,
            self.depthwise_norm,
            self.se,
            self.project_conv,
            self.project_norm,
        )
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
    """Mobile inverted bottleneck: 1x1 expand, depthwise, SE, 1x1 project.

    Args:
        input_filters, output_filters: channels in and out, already scaled.
        kernel_size: of the depthwise convolution.
        strides: of the depthwise convolution.
        expand_ratio: width of the inner tensor in multiples of the input; at
            1 the expanding convolution is left out.
        se_ratio: width of the squeeze in parts of `input_filters`, in (0, 1],
            or None for no squeeze-and-excitation.
        survival_probability: of the residual branch, in (0, 1].
        conv_dropout: dropout rate on the expanded tensor, or None.
        act_fn: name of the activation, see `activation`.
        norm_type, norm_momentum, norm_epsilon, norm_groups: see
            `normalization`.
    """

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
    followed by the activation. Arguments as in `MBConv`.
    """

    def _build_convolutions(self, output_filters, kernel_size):
        project_kernel, project_strides = kernel_size, self.strides
        if self.expand_ratio != 1:
            self.expand_conv = _conv(
                self.expanded_filters,
                kernel_size,
                strides=self.strides,
                name="expand_conv",
            )
            self.expand_norm = self._norm("expand_norm")
            project_kernel = project_strides = 1
        self.project_conv = _conv(
            output_filters,
            project_kernel,
            strides=project_strides,
            name="project_conv",
        )
        self.project_norm = self._norm("project_norm")


@keras.saving.register_keras_serializable(package="efficientnetv2")
class Head(_Layer):
    """1x1 convolution, normalization, activation, pooling, dropout.

    Args:
        filters: number of features.
        dropout_rate: float in [0, 1).
        pooling: 'avg', 'max' or None for the map as it is.
        act_fn: name of the activation, see `activation`.
        norm_type, norm_momentum, norm_epsilon, norm_groups: see
            `normalization`.

    Returns features of shape [batch, filters], or [batch, height, width,
    filters] without pooling.
    """

    def __init__(
        self,
        filters: int,
        dropout_rate: float = 0.0,
        pooling: str | None = "avg",
        act_fn: str = "silu",
        norm_type: str | None = None,
        norm_momentum: float = 0.9,
        norm_epsilon: float = 1e-3,
        norm_groups: int = 8,
        **kwargs,
    ):
        super().__init__(locals(), **kwargs)
        self.activation = activation(act_fn)
        if pooling not in _POOLING:
            raise ValueError(
                f"Unknown pooling {pooling!r}: use 'avg', 'max' or None."
            )
        self.pool = _POOLING[pooling]
        self.conv = _conv(filters, 1, name="conv")
        self.norm = self._norm("norm")
        self.dropout = Dropout(dropout_rate, name="dropout")

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))
        self.dropout.build(self.compute_output_shape(input_shape))
        self.built = True

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
