"""Progressive learning: the stages of a run as data.

Source: arXiv 2104.00298, section 4 and algorithm 1. All stages are computed
by one pure function of the configuration.
"""

import dataclasses
import textwrap
from collections.abc import Sequence

import ml_collections
import numpy as np

from efficientnetv2 import formatting
from efficientnetv2.config import RunPlan, resolve_image_size


@dataclasses.dataclass(frozen=True)
class Stage:
    """What holds from `first_step` up to but without `last_step`.

    Attributes:
        first_step, last_step: half-open range of optimizer steps; which steps
            they are where stages are drawn at random, `stage_of_steps` says.
        image_size: pixels, height and width.
        randaugment_magnitude: 0 to 10, or above in the larger models.
        mixup_alpha, cutmix_alpha: of the Beta distribution; 0: off.
        dropout_rate: before the classifier.
        batch_size: images a step, over all devices.
    """

    first_step: int
    last_step: int
    image_size: int
    randaugment_magnitude: float
    mixup_alpha: float
    cutmix_alpha: float
    dropout_rate: float
    batch_size: int


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


def build_stages(
    config: ml_collections.ConfigDict, plan: RunPlan
) -> list[Stage]:
    """Returns the stages of a run, in order, without a gap.

    A ramp that is switched off has its final value in all stages.
    """
    train, data, model = config.train, config.data, config.model
    stages = train.stages
    ends = [plan.total_steps * (k + 1) // stages for k in range(stages)]
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
    return [Stage(*column) for column in columns]


def stage_of_steps(
    config: ml_collections.ConfigDict, stages: Sequence[Stage]
) -> np.ndarray:
    """Returns the stage of every step: int32 [total_steps], from 0.

    Stages follow each other, or with `train.stage_order=random` each step
    draws one, all being equally likely, as Mix & Match (arXiv 1908.08986)
    draws sizes. The draw is a function of (train.seed, step), so that a
    resumed run repeats it.
    """
    total = stages[-1].last_step
    if config.train.stage_order == "ascending":
        ends = [stage.last_step for stage in stages]
        order = np.searchsorted(ends, np.arange(total), side="right")
    else:
        # Raw draws of a bit generator are the same in every numpy.
        draws = np.random.Philox(key=config.train.seed).random_raw(total)
        order = draws % np.uint64(len(stages))
    return order.astype(np.int32)


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
    config: ml_collections.ConfigDict, plan: RunPlan, stages: Sequence[Stage]
) -> list[tuple[str, ...]]:
    """Returns the rows of the stage table, the first one being its header.

    Weight decay is that of a stage's first step, or of the run's first and last
    where stages are drawn. Without a RandAugment policy the column of
    magnitudes is empty.
    """
    drawn = config.train.stage_order == "random"
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
    for index, stage in enumerate(stages):
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
    stages: Sequence[Stage],
    width: int | None = None,
) -> str:
    """Returns the stage table as lines that fit the terminal, or `width`.

    Values that all stages share are in a sentence below the table.
    """
    header, *rows = table(config, plan, stages)
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
        parts.append(formatting.table(rows, width=width))
        same = [each for each in same if not each.endswith(" 0")]
    if same:
        start = "In all stages: " if varied else ""
        text = start + ", ".join(same) + "."
        width = min(80, width or formatting.columns())
        parts.append(textwrap.fill(text, width))
    return "\n".join(parts)
