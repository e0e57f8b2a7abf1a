"""Optimizers by name, and the RMSProp of the released code."""

import re
from collections.abc import Sequence

import keras
import ml_collections


@keras.saving.register_keras_serializable(package="efficientnetv2")
class RMSProp(keras.optimizers.Optimizer):
    """RMSProp as TensorFlow 1 had it, which the published models used.

    It differs from `keras.optimizers.RMSprop` in two places: epsilon is added
    inside the square root, and the mean square starts at one, so the first
    steps are short.

        ms  <- rho * ms + (1 - rho) * g^2
        mom <- momentum * mom + lr * g / sqrt(ms + epsilon)
        var <- var - mom

    On TensorFlow one fused kernel updates a variable and both its slots.

    Args:
        learning_rate: float or schedule.
        rho: decay of the mean square, in [0, 1).
        momentum: in [0, 1).
        epsilon: float.
    """

    def __init__(
        self,
        learning_rate=0.001,
        rho: float = 0.9,
        momentum: float = 0.9,
        epsilon: float = 0.001,
        name: str = "rmsprop",
        **kwargs,
    ):
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.rho = rho
        self.momentum = momentum
        self.epsilon = epsilon

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._mean_squares = [
            self.add_variable_from_reference(
                variable, name="mean_square", initializer="ones"
            )
            for variable in variables
        ]
        self._momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        mean_square = self._mean_squares[index]
        momentum = self._momentums[index]
        ops = keras.ops
        if gradient.dtype != variable.dtype:
            gradient = ops.cast(gradient, variable.dtype)
        learning_rate = ops.cast(learning_rate, variable.dtype)
        if self._fused_apply(
            variable, mean_square, momentum, gradient, learning_rate
        ):
            return
        self.assign(
            mean_square,
            self.rho * mean_square + (1 - self.rho) * ops.square(gradient),
        )
        self.assign(
            momentum,
            self.momentum * momentum
            + learning_rate
            * gradient
            * ops.rsqrt(ops.add(mean_square, self.epsilon)),
        )
        self.assign_sub(variable, momentum)

    def _fused_apply(self, variable, mean_square, momentum, gradient, rate):
        if keras.backend.backend() != "tensorflow":
            return False
        import tensorflow as tf

        if tf.distribute.has_strategy():
            return False
        tf.raw_ops.ResourceApplyRMSProp(
            var=variable.handle,
            ms=mean_square.value.handle,
            mom=momentum.value.handle,
            lr=rate,
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=gradient,
        )
        return True

    def get_config(self):
        return {
            **super().get_config(),
            "rho": self.rho,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


class LayerwiseRates:
    """Mixin of an optimizer: each variable has a part of the learning rate.

    The classifier has all of it; each layer before has `layer_decay` times
    the rate of the one after it. With `unfreeze_steps` the classifier is
    trained from the start, and the layers join it one after the other, from
    the last to the first, which joins after so many steps.

    Attributes:
        layer_decay: in (0, 1]; 1: all have the same rate.
        unfreeze_steps: 0: all are trained from the start.
        weight_decay_rate: each step takes learning rate times this part off
            the variables whose paths do not match `weight_decay_exclude`;
            Loshchilov and Hutter, arXiv 1711.05101.
        weight_decay_exclude: regular expression.
    """

    layer_decay = 1.0
    unfreeze_steps = 0
    weight_decay_rate = 0.0
    weight_decay_exclude = ""

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        places = _places([variable.path for variable in variables])
        last = max(places)
        excluded = re.compile(self.weight_decay_exclude)
        self._parts = [self.layer_decay ** (last - place) for place in places]
        self._starts = [
            self.unfreeze_steps * (last - place) / max(last, 1)
            for place in places
        ]
        self._decays = [
            0.0 if excluded.match(variable.path) else self.weight_decay_rate
            for variable in variables
        ]

    def update_step(self, gradient, variable, learning_rate):
        ops, index = keras.ops, self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._parts[index]
        if self._starts[index]:
            joined = ops.cast(self.iterations, "float32") >= self._starts[index]
            rate = rate * ops.cast(joined, variable.dtype)
        if self._decays[index]:
            self.assign_sub(variable, rate * self._decays[index] * variable)
        super().update_step(gradient, variable, rate)


def _places(paths: Sequence[str]) -> list[int]:
    """Returns the number of each variable's layer: the stem's is 0."""
    layers = [path.partition("/")[0] for path in paths]
    blocks = [
        int(layer.removeprefix("blocks_"))
        for layer in layers
        if layer.startswith("blocks_")
    ]
    last = 1 + max(blocks, default=0)
    ends = {"stem": 0, "head": last + 1, "logits": last + 2}
    return [
        ends[layer] if layer in ends else 1 + int(layer.rpartition("_")[2])
        for layer in layers
    ]


_CLASSES = {
    "rmsprop": RMSProp,
    "momentum": keras.optimizers.SGD,
    "nesterov": keras.optimizers.SGD,
    "sgd": keras.optimizers.SGD,
    "adam": keras.optimizers.Adam,
    # The decay that makes it AdamW is decoupled_weight_decay.
    "adamw": keras.optimizers.Adam,
    "lion": keras.optimizers.Lion,
}


def build_optimizer(
    config: ml_collections.ConfigDict, learning_rate
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that the configuration names.

    Under `mixed_float16` it is wrapped into dynamic loss scaling.

    Args:
        config: of the run.
        learning_rate: see `schedules.learning_rate`.
    """
    train = config.train
    options = {
        "rmsprop": {
            "rho": train.rmsprop_decay,
            "momentum": train.momentum,
            "epsilon": train.rmsprop_epsilon,
        },
        "momentum": {"momentum": train.momentum},
        "nesterov": {"momentum": train.momentum, "nesterov": True},
    }
    kind = _CLASSES[train.optimizer]
    is_layerwise = (
        train.layer_decay < 1
        or train.unfreeze_epochs
        or train.decoupled_weight_decay
    )
    if is_layerwise:
        kind = type(f"Layerwise{kind.__name__}", (LayerwiseRates, kind), {})
    optimizer = kind(learning_rate, **options.get(train.optimizer, {}))
    if is_layerwise:
        epoch = learning_rate.get_config()["steps_per_epoch"]
        optimizer.layer_decay = train.layer_decay
        optimizer.unfreeze_steps = round(train.unfreeze_epochs * epoch)
        optimizer.weight_decay_rate = train.decoupled_weight_decay
        optimizer.weight_decay_exclude = train.weight_decay_exclude
    if config.runtime.mixed_precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
