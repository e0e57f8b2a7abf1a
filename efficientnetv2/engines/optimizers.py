"""Optimizers by name, and the RMSProp of the released code."""

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


def build_optimizer(
    config: ml_collections.ConfigDict, learning_rate
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that the configuration names.

    Under `mixed_float16` it is wrapped into dynamic loss scaling.
    """
    train = config.train
    if train.optimizer == "rmsprop":
        optimizer = RMSProp(
            learning_rate,
            rho=train.rmsprop_decay,
            momentum=train.momentum,
            epsilon=train.rmsprop_epsilon,
        )
    elif train.optimizer == "adam":
        optimizer = keras.optimizers.Adam(learning_rate)
    else:
        optimizer = keras.optimizers.SGD(
            learning_rate,
            momentum=train.momentum if train.optimizer == "momentum" else 0.0,
        )
    if config.runtime.mixed_precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
