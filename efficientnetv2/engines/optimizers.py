"""Optimizers and schedules; RMSProp and warm-up are the released code's."""

import math
import re
from collections.abc import Sequence

import keras
import ml_collections

from efficientnetv2.progressive import RunPlan


@keras.saving.register_keras_serializable(package="efficientnetv2")
class RMSProp(keras.optimizers.Optimizer):
    """RMSProp as in TensorFlow 1, which the published models were trained with.

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
        slot = {"name": "mean_square", "initializer": "ones"}
        self._mean_squares = [
            self.add_variable_from_reference(variable, **slot)
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
        own = {"rho": self.rho, "momentum": self.momentum}
        return {**super().get_config(), **own, "epsilon": self.epsilon}


class LayerwiseRates:
    """Optimizer mixin: each layer has its own part of the learning rate.

    The classifier has the full rate; each layer has `layer_decay` times the
    rate of the next. With `unfreeze_steps` the classifier trains from the
    start, and the layers join one by one, from last to first; the first one
    joins after that many steps.

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
    places = {
        layer: 1 + int(layer.removeprefix("blocks_"))
        for layer in layers
        if layer.startswith("blocks_")
    }
    last = max(places.values(), default=1)
    places |= {"stem": 0, "head": last + 1, "logits": last + 2}
    return [places[layer] for layer in layers]


# --- Schedules --------------------------------------------------------------


@keras.saving.register_keras_serializable(package="efficientnetv2")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A decay with linear warm-up, as in the released code.

    Args:
        initial_lr: peak learning rate.
        total_steps: steps of the run, for 'cosine' and 'linear'.
        steps_per_epoch: unit of `decay_epochs` and `warmup_epochs`.
        decay: 'exponential' (a staircase of `decay_factor` each
            `decay_epochs`), 'cosine', 'linear' or 'constant'. The decay runs
            from step 0, under the warm-up.
        decay_factor, decay_epochs: of 'exponential'.
        warmup_epochs: length of the linear warm-up from 0 to `initial_lr`.
        minimal_lr: floor of the decay; the warm-up may be below it.

    Called with a step (scalar integer), returns a float32 scalar.

    Raises:
        ValueError: for an unknown decay.
    """

    def __init__(
        self,
        initial_lr: float,
        total_steps: int,
        steps_per_epoch: int,
        decay: str = "exponential",
        decay_factor: float = 0.97,
        decay_epochs: float = 2.4,
        warmup_epochs: float = 5.0,
        minimal_lr: float = 0.0,
    ):
        if decay not in ("exponential", "cosine", "linear", "constant"):
            raise ValueError(f"Unknown learning rate decay {decay!r}.")
        self._config = {
            "initial_lr": initial_lr,
            "total_steps": total_steps,
            "steps_per_epoch": steps_per_epoch,
            "decay": decay,
            "decay_factor": decay_factor,
            "decay_epochs": decay_epochs,
            "warmup_epochs": warmup_epochs,
            "minimal_lr": minimal_lr,
        }

    def __call__(self, step):
        ops, config = keras.ops, self._config
        step = ops.cast(step, "float32")
        peak = config["initial_lr"]
        if config["decay"] == "exponential":
            decay_steps = config["steps_per_epoch"] * config["decay_epochs"]
            rate = peak * ops.power(
                ops.cast(config["decay_factor"], "float32"),
                ops.floor(step / decay_steps),
            )
        elif config["decay"] == "cosine":
            angle = math.pi * step / config["total_steps"]
            rate = 0.5 * peak * (1.0 + ops.cos(angle))
        elif config["decay"] == "linear":
            rate = (1.0 - step / config["total_steps"]) * peak
        else:
            rate = ops.cast(peak, "float32")
        if config["minimal_lr"]:
            rate = ops.maximum(rate, config["minimal_lr"])
        warmup_steps = int(config["warmup_epochs"] * config["steps_per_epoch"])
        if warmup_steps:
            rate = ops.where(
                step < warmup_steps, peak * step / warmup_steps, rate
            )
        return rate

    def get_config(self):
        return dict(self._config)


def learning_rate(
    config: ml_collections.ConfigDict, plan: RunPlan
) -> WarmupSchedule:
    """Returns the run's learning rate, scaled by batch size / 256."""
    scale = config.train.batch_size / 256.0
    return WarmupSchedule(
        config.train.lr_base * scale,
        total_steps=plan.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        decay=config.train.lr_sched,
        decay_factor=config.train.lr_decay_factor,
        decay_epochs=config.train.lr_decay_epoch,
        warmup_epochs=config.train.lr_warmup_epoch,
        minimal_lr=config.train.lr_min * scale,
    )


def ema_decay(config: ml_collections.ConfigDict, step):
    """Returns min(ema_decay, (2 + step) / (11 + step)).

    TensorFlow's average rises by (1 + n) / (10 + n), and the released code
    reads n after the step that it averages.

    Args:
        step: number of steps done before this one, a float or a tensor.
    """
    rising = (2.0 + step) / (11.0 + step)
    if isinstance(step, (int, float)):
        return min(config.train.ema_decay, rising)
    return keras.ops.minimum(config.train.ema_decay, rising)


# --- Of a run ---------------------------------------------------------------

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
    config: ml_collections.ConfigDict, plan: RunPlan
) -> keras.optimizers.Optimizer:
    """Returns the optimizer that the configuration names, with its schedule.

    Under `mixed_float16` it is wrapped in dynamic loss scaling.
    """
    train = config.train
    momentum = {"momentum": train.momentum}
    decay = {"rho": train.rmsprop_decay, "epsilon": train.rmsprop_epsilon}
    options = {
        "rmsprop": momentum | decay,
        "momentum": momentum,
        "nesterov": momentum | {"nesterov": True},
    }
    kind = _CLASSES[train.optimizer]
    is_layerwise = (
        train.layer_decay < 1
        or train.unfreeze_epochs
        or train.decoupled_weight_decay
    )
    # In checkpoints. By themselves, Keras' would be numbered in a process.
    name = kind.__name__.lower()
    if is_layerwise:
        kind = type(f"Layerwise{kind.__name__}", (LayerwiseRates, kind), {})
        name = name if name == "rmsprop" else f"layerwise_{name}"
    optimizer = kind(
        learning_rate(config, plan),
        name=name,
        **options.get(train.optimizer, {}),
    )
    if is_layerwise:
        optimizer.layer_decay = train.layer_decay
        steps = train.unfreeze_epochs * plan.steps_per_epoch
        optimizer.unfreeze_steps = round(steps)
        optimizer.weight_decay_rate = train.decoupled_weight_decay
        optimizer.weight_decay_exclude = train.weight_decay_exclude
    if config.runtime.mixed_precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, name="loss_scale_optimizer"
        )
    return optimizer
