"""The learning-rate range test: finds a good peak learning rate for a run.

Source: Smith, arXiv 1506.01186, section 3.3. The learning rate rises
exponentially from step to step; where the loss falls fastest is a good peak.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable

import ml_collections
import numpy as np

from efficientnetv2 import engines, files, progress, runs
from efficientnetv2.config import run_plan
from efficientnetv2.data import pipeline
from efficientnetv2.errors import UserError

_LOWEST, _HIGHEST = 1e-5, 10.0
_SMOOTHING = 0.9
# A smoothed loss of more than this many times the lowest has diverged.
_DIVERGED = 2.0


@dataclasses.dataclass(frozen=True)
class RangeTest:
    """A learning-rate range test."""

    rates: np.ndarray  # of `train.lr_base`, per 256 images, ascending
    losses: np.ndarray  # smoothed over steps, in the unit of the loss
    suggestion: float  # the rate at which the loss falls fastest


def find_learning_rate(
    config: ml_collections.ConfigDict,
    steps: int = 100,
    log: Callable[[str], None] = print,
) -> RangeTest:
    """Trains for some steps with a learning rate that rises from step to step.

    Keeps neither weights nor files.

    Args:
        config: of the run that needs the rate; its last stage is used.
        steps: at most; the test ends where the loss diverges.
        log: prints one line.

    Raises:
        UserError: if the data cannot be loaded, or the loss never falls.
    """
    config = config.copy_and_resolve_references().unlock()
    config.train.stages = 1
    config.train.stage_order = "ascending"
    per_epoch = run_plan(config).steps_per_epoch
    factor = (_HIGHEST / _LOWEST) ** (1.0 / steps)
    config.train.update(
        lr_sched="exponential",
        lr_base=_LOWEST,
        lr_min=0.0,
        lr_decay_factor=factor,
        lr_decay_epoch=1.0 / per_epoch,
        lr_warmup_epoch=0.0,
        ema_decay=0.0,
    )
    engines.set_up(config)
    plan = run_plan(config.lock())
    stage = plan.stages[0]
    plan = plan.only(stage, steps)
    source = runs.Splits(config, log)[config.train.split]
    engine = engines.create(config, plan)

    make_dataset = functools.partial(
        pipeline.training_dataset,
        source,
        config,
        plan,
        on_device=engine.augments,
    )
    losses, mean = [], 0.0
    batches = engine.dataset(make_dataset)
    shown = progress.track(batches, "Trying rates", steps, "steps")
    for step, batch in enumerate(shown):
        loss = float(engine.step(batch, stage.dropout_rate)["loss"])
        mean = _SMOOTHING * mean + (1.0 - _SMOOTHING) * loss
        smooth = mean / (1.0 - _SMOOTHING ** (step + 1))
        if not math.isfinite(loss) or (
            losses and smooth > _DIVERGED * min(losses)
        ):
            break
        losses.append(smooth)
    rates = _LOWEST * factor ** np.arange(len(losses))
    return RangeTest(rates, np.array(losses), _steepest(rates, losses))


def _steepest(rates: np.ndarray, losses) -> float:
    if len(losses) < 5:
        raise UserError(
            "The loss diverges within five steps. Check the data and "
            "train.batch_size."
        )
    slopes = np.gradient(np.asarray(losses), np.log(rates))
    if slopes.min() >= 0:
        raise UserError(
            "The loss does not fall at any learning rate. Try more steps, or "
            "check the labels."
        )
    return float(rates[slopes.argmin()])


def draw_range_test(result: RangeTest, path: str | pathlib.Path) -> None:
    """Draws loss over learning rate as a PNG; see `write_atomically`."""
    from matplotlib.figure import Figure

    figure = Figure((6.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    axes.semilogx(result.rates, result.losses)
    axes.axvline(result.suggestion, color="tab:orange")
    axes.set_xlabel("learning rate per 256 images (train.lr_base)")
    axes.set_ylabel("loss, smoothed")
    axes.set_title(f"Steepest at {result.suggestion:.2g}")
    files.write_atomically(
        path, lambda file: figure.savefig(file, format="png", dpi=150)
    )
