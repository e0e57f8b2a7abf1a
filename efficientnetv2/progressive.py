"""The plan of a run: its steps, and the stages of progressive learning.

Source: arXiv 2104.00298, section 4 and algorithm 1. A plan is computed by one
pure function of the configuration.
"""

import dataclasses
import functools
import textwrap

import ml_collections

from efficientnetv2 import formatting


@dataclasses.dataclass(frozen=True)
class Stage:
    """What holds from `first_step` up to, but not including, `last_step`.

    Attributes:
        first_step, last_step: half-open range of optimizer steps; if stages are
            drawn at random, `RunPlan.stage_of_steps` says which steps are
            meant.
        image_size: pixels, height and width.
        randaugment_magnitude: 0 to 10, or above in the larger models.
        mixup_alpha, cutmix_alpha: of the Beta distribution; 0: off.
        dropout_rate: before the classifier.
        batch_size: images per step, over all devices.
    """

    first_step: int
    last_step: int
    image_size: int
    randaugment_magnitude: float
    mixup_alpha: float
    cutmix_alpha: float
    dropout_rate: float
    batch_size: int


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The schedule of a run.

    Attributes:
        num_images: images of the training split.
        steps_per_epoch: whole batches of an epoch.
        total_steps: optimizer steps of the run.
        stages: of progressive learning, in order.
        evaluate_every: steps between evaluations; 0: there are none.
        save_every: steps between checkpoints besides those of epochs and
            stages; 0: there are none.
        draw_seed: of the stage that each step draws; None: stages follow each
            other.
    """

    num_images: int
    steps_per_epoch: int
    total_steps: int
    stages: tuple[Stage, ...] = ()
    evaluate_every: int = 0
    save_every: int = 0
    draw_seed: int | None = None

    @functools.cached_property
    def stage_of_steps(self):
        """The stage of every step: int32 [total_steps], from 0.

        Stages follow each other, or each step draws one, all being equally
        likely, as Mix & Match (arXiv 1908.08986) draws sizes. The draw is a
        function of (`draw_seed`, step), so that a resumed run repeats it.
        """
        # Commands that read a configuration do not wait for NumPy.
        import numpy as np

        if self.draw_seed is None:
            ends = [stage.last_step for stage in self.stages]
            order = np.searchsorted(
                ends, np.arange(self.total_steps), side="right"
            )
        else:
            # Raw draws of a bit generator are the same in every numpy.
            generator = np.random.Philox(key=self.draw_seed)
            draws = generator.random_raw(self.total_steps)
            order = draws % np.uint64(len(self.stages))
        return order.astype(np.int32)

    def stage(self, step: int) -> Stage:
        """Returns the stage of a step."""
        return self.stages[self.stage_of_steps[step]]

    def only(self, stage: Stage, steps: int) -> "RunPlan":
        """Returns a plan of so many steps, all of one stage."""
        stage = dataclasses.replace(stage, first_step=0, last_step=steps)
        return dataclasses.replace(
            self, stages=(stage,), total_steps=steps, draw_seed=None
        )

    def evaluates(self, step: int) -> bool:
        """Whether the model is evaluated after so many steps."""
        return bool(self.evaluate_every) and (
            step % self.evaluate_every == 0 or step == self.total_steps
        )

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        return (
            step == self.total_steps
            or step % self.steps_per_epoch == 0
            or bool(self.save_every and step % self.save_every == 0)
            or self.draw_seed is None
            and any(step == stage.last_step for stage in self.stages)
        )


def plan_run(
    config: ml_collections.ConfigDict,
    num_images: int,
    total_steps: int | None = None,
) -> RunPlan:
    """Returns the plan of a run; `train.epochs` may be fractional.

    Args:
        config: of the run.
        num_images: of the training split.
        total_steps: optimizer steps; None: those of `train.epochs`.
    """
    train, evaluation = config.train, config.eval
    epoch = num_images // train.batch_size
    if total_steps is None:
        total_steps = max(train.min_steps, int(round(train.epochs * epoch)), 1)
    every = max(1, round(evaluation.every_epochs * epoch))
    return RunPlan(
        num_images,
        epoch,
        total_steps,
        stages=_stages(config, total_steps),
        evaluate_every=every if evaluation.val_split is not None else 0,
        save_every=config.checkpoint.every_steps,
        draw_seed=train.seed if train.stage_order == "random" else None,
    )


def resolve_image_size(config: ml_collections.ConfigDict) -> int:
    """Returns the training image size of the last stage in pixels.

    A value of at most 2 is a fraction of `eval.isize`, rounded down to a
    multiple of 16, as in the released code.
    """
    size = config.train.isize
    if size <= 2:
        return int(config.eval.isize * size) // 16 * 16
    return int(size)


def _ramp(first: float, last: float, stages: int, adaptive: bool):
    if not adaptive or stages == 1:
        return [last] * stages
    step = (last - first) / (stages - 1)
    return [first + step * index for index in range(stages - 1)] + [last]


def _image_sizes(config: ml_collections.ConfigDict) -> list[int]:
    stages, last = config.train.stages, resolve_image_size(config)
    if not config.train.progressive_image_size or stages == 1:
        return [last] * stages
    first = config.data.ibase
    if config.train.isize_rule == "paper":
        return [int(size) for size in _ramp(first, last, stages, True)]
    # The released code: the first stage is already above ibase.
    return [
        int(first + (last - first) * (index + 1) / stages)
        for index in range(stages)
    ]


def _stages(
    config: ml_collections.ConfigDict, total_steps: int
) -> tuple[Stage, ...]:
    """Returns the stages of a run, in order, without a gap.

    A ramp that is switched off has its final value in all stages.
    """
    train, data, model = config.train, config.data, config.model
    stages = train.stages
    ends = [total_steps * (k + 1) // stages for k in range(stages)]
    dropout_rate = model.dropout_rate or 0.0
    dropout_base = model.dropout_base
    if dropout_base is None:
        dropout_base = dropout_rate
    columns = zip(
        [0] + ends[:-1],
        ends,
        _image_sizes(config),
        _ramp(data.ram_base, data.ram, stages, train.adaptive_randaugment),
        _ramp(
            data.mixup_alpha_base,
            data.mixup_alpha,
            stages,
            train.adaptive_mixing,
        ),
        _ramp(
            data.cutmix_alpha_base,
            data.cutmix_alpha,
            stages,
            train.adaptive_mixing,
        ),
        _ramp(dropout_base, dropout_rate, stages, train.adaptive_dropout),
        [train.batch_size] * stages,
        strict=True,
    )
    return tuple(Stage(*column) for column in columns)


def weight_decay(config: ml_collections.ConfigDict, plan: RunPlan, step):
    """Returns the L2 coefficient at a step, as a float or a tensor.

    (1 + weight_decay_inc * step / total_steps) * weight_decay; with
    `train.adaptive_weight_decay` off, the base value throughout.
    """
    base = config.train.weight_decay
    if not config.train.adaptive_weight_decay:
        return base + 0.0 * step
    progress = step / plan.total_steps
    return (1.0 + config.train.weight_decay_inc * progress) * base


def uses_magnitude(augname: str | None) -> bool:
    """Whether an augmentation policy has RandAugment's magnitude."""
    return bool(augname) and ("rand" in augname or "ra_" in augname)


def table(
    config: ml_collections.ConfigDict, plan: RunPlan
) -> list[tuple[str, ...]]:
    """Returns the rows of the stage table, the header first.

    Weight decay is that of a stage's first step, or of the run's first and last
    where stages are drawn. Without a RandAugment policy the column of
    magnitudes is empty.
    """
    drawn = plan.draw_seed is not None
    has_magnitude = uses_magnitude(config.data.augname)
    rows = [
        (
            "stage",
            "epochs",
            "from step",
            "image size",
            "RandAugment",
            "Mixup",
            "CutMix",
            "dropout",
            "weight decay",
            "batch size",
        )
    ]
    for index, stage in enumerate(plan.stages):
        first, last = stage.first_step, stage.last_step
        if drawn:
            first, last = 0, plan.total_steps
        epochs = (step / plan.steps_per_epoch for step in (first, last))
        decays = {
            f"{float(weight_decay(config, plan, step)):.3g}": None
            for step in ((first, last) if drawn else (first,))
        }
        rows.append(
            (
                f"{index + 1}",
                "-".join(f"{epoch:.3g}" for epoch in epochs),
                "drawn" if drawn else f"{first:,}",
                f"{stage.image_size}",
                f"{stage.randaugment_magnitude:.3g}" if has_magnitude else "-",
                f"{stage.mixup_alpha:.3g}",
                f"{stage.cutmix_alpha:.3g}",
                f"{stage.dropout_rate:.3g}",
                " to ".join(decays),
                f"{stage.batch_size}",
            )
        )
    return rows


def describe(
    config: ml_collections.ConfigDict,
    plan: RunPlan,
    width: int | None = None,
) -> str:
    """Returns the stage table as lines that fit the terminal, or `width`.

    Values that all stages share follow in a sentence below the table.
    """
    header, *rows = table(config, plan)
    columns = list(zip(header, *rows, strict=True))
    same = [
        f"{name} {values[0]}"
        for name, *values in columns
        if len(set(values)) == 1 and values[0] != "-"
    ]
    varied = [column for column in columns if len(set(column[1:])) > 1]
    parts = []
    if varied:
        rows = list(zip(*varied, strict=True))
        parts.append(formatting.align_table(rows, width=width))
        same = [each for each in same if not each.endswith(" 0")]
    if same:
        start = "In all stages: " if varied else ""
        text = start + ", ".join(same) + "."
        width = min(80, width or formatting.terminal_width())
        parts.append(textwrap.fill(text, width))
    return "\n".join(parts)
