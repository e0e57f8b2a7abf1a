"""Schedules of learning rate and EMA decay."""

import math

import keras
import ml_collections

from efficientnetv2.progressive import RunPlan


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
