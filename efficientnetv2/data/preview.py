"""Contact sheets: what the network sees in each stage of a run."""

import math
import pathlib
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from efficientnetv2 import config as config_lib
from efficientnetv2 import progressive
from efficientnetv2.data import (
    faults,
    loading,
    pipeline,
    preprocessing,
    registry,
)
from efficientnetv2.data.sources import Source
from efficientnetv2.errors import DataError
from efficientnetv2.progressive import RunPlan, Stage

FOLDER = "preview"
_COLUMNS = 6
CELL = 160
_GAP = 16
_TEXT, _TITLE = 14, 20
# Labels below this weight are not written.
_LEAST = 0.005
_LINES = 2
_LINE = _TEXT + 4


def write(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    images: int = 24,
    log: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Loads the training split and writes sheets, see `write_sheets`.

    Args:
        folder: where the sheets go.
        images: on a sheet.

    Raises:
        DataError: for data that cannot be obtained or read, or a folder that
            cannot be written.
    """
    config = with_batch_size(config, images)
    split = config.train.split
    source = loading.load_split(config, split, log)
    with faults.named(source):
        return write_sheets(
            source,
            config,
            folder,
            f"{registry.title(config.data.ds_name)}, {split}",
        )


def with_batch_size(
    config: ml_collections.ConfigDict, images: int
) -> ml_collections.ConfigDict:
    """Returns a copy whose batches hold no more images than a sheet shows.

    Stages follow each other in it, so that each has a first batch, and images
    are mixed before they are shown.
    """
    config = ml_collections.ConfigDict(config.to_dict())
    size = min(images, config_lib.run_plan(config).num_images)
    config.train.batch_size = size
    config.train.batch_parts = 1
    config.train.stage_order = "ascending"
    config.data.augment_on = "host"
    return config.lock()


def write_sheets(
    source: Source,
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    title: str,
) -> list[pathlib.Path]:
    """Writes one sheet per stage, with the first batch of the stage.

    Args:
        config: from `with_batch_size`.
        folder: where the sheets go, as stage_1.png, ...; made if needed.
        title: what is shown: dataset and split.

    Returns:
        The files, in the order of the stages.
    """
    plan = config_lib.run_plan(config)
    stages = plan.stages
    mode = config.data.normalization
    paths = []
    for number, stage in enumerate(stages, 1):
        dataset = pipeline.training_dataset(
            source, config, plan, _first_step(stage, plan)
        )
        images, labels = next(iter(dataset))
        sheet = draw(
            preprocessing.denormalize(images, mode).numpy(),
            [caption(row, source.class_names) for row in labels.numpy()],
            f"{title}, stage {number} of {len(stages)}",
            _describe(stage, config),
        )
        path = folder / f"stage_{number}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        except OSError as error:
            raise DataError(f"Cannot write {path}: {error.strerror}.") from None
        paths.append(path)
    return paths


def _first_step(stage: Stage, plan: RunPlan) -> int:
    """Returns a step of the stage, where an epoch begins if there is one.

    Shards are read from the beginning of the epoch up to the step.
    """
    epoch = plan.steps_per_epoch
    start = -(-stage.first_step // epoch) * epoch
    return start if start < stage.last_step else stage.first_step


def _describe(stage: Stage, config: ml_collections.ConfigDict) -> str:
    parts = [f"{stage.image_size} x {stage.image_size} pixels"]
    if progressive.uses_magnitude(config.data.augname):
        parts.append(f"RandAugment {stage.randaugment_magnitude:.3g}")
    if stage.mixup_alpha:
        parts.append(f"Mixup {stage.mixup_alpha:.3g}")
    if stage.cutmix_alpha:
        parts.append(f"CutMix {stage.cutmix_alpha:.3g}")
    return ", ".join(parts)


def caption(label: np.ndarray, class_names: Sequence[str]) -> list[str]:
    """Returns the classes of an image, heaviest first, one per line.

    label: float32 [classes]; the weights of mixed classes are written.
    """
    order = [k for k in np.argsort(-label, kind="stable") if label[k] > _LEAST]
    lines = [
        class_names[k]
        if label[k] > 1 - _LEAST
        else f"{label[k]:.2f} {class_names[k]}"
        for k in order
    ]
    if len(lines) > _LINES:
        rest = len(lines) - _LINES + 1
        lines[_LINES - 1 :] = [f"and {rest} more"]
    return lines


def draw(
    images: np.ndarray,
    captions: Sequence[Sequence[str]],
    title: str,
    subtitle: str,
) -> Image.Image:
    """Returns a sheet of images in rows, with text below each.

    Args:
        images: uint8 [count, size, size, 3]; shown with hard-edged pixels.
        captions: lines below each image, at most two.
        title, subtitle: lines above all.
    """
    columns = min(_COLUMNS, len(images))
    rows = math.ceil(len(images) / columns)
    # The title wants its room where there are few images.
    width = max(_GAP + columns * (CELL + _GAP), 4 * (CELL + _GAP))
    sheet = Image.new(
        "RGB", (width, place(rows * columns, columns)[1]), "white"
    )
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_TEXT)
    large = ImageFont.load_default(_TITLE)
    wide = width - 2 * _GAP
    pen.text((_GAP, _GAP), _fit(title, large, wide), "black", large)
    below = _GAP, _GAP + _TITLE + 8
    pen.text(below, _fit(subtitle, font, wide), "#555555", font)
    for number, (pixels, lines) in enumerate(
        zip(images, captions, strict=True)
    ):
        left, upper = place(number, columns)
        image = Image.fromarray(pixels).resize(
            (CELL, CELL), Image.Resampling.NEAREST
        )
        sheet.paste(image, (left, upper))
        for row, text in enumerate(lines):
            below = left, upper + CELL + 3 + row * _LINE
            pen.text(below, _fit(text, font, CELL), "black", font)
    return sheet


def place(number: int, columns: int) -> tuple[int, int]:
    """Returns the left and upper pixel of an image on a sheet.

    It covers `CELL` pixels in both directions.
    """
    top = _GAP + _TITLE + 8 + _LINE + _GAP
    height = CELL + _LINES * _LINE + _GAP
    row, column = divmod(number, columns)
    return _GAP + column * (CELL + _GAP), top + row * height


def cut(path: pathlib.Path, images: int) -> list[Image.Image]:
    """Returns the first images of a sheet, at most a row of them."""
    with Image.open(path) as sheet:
        found = []
        for number in range(min(images, _COLUMNS)):
            left, upper = place(number, _COLUMNS)
            found.append(sheet.crop((left, upper, left + CELL, upper + CELL)))
    return found


def _fit(text: str, font, width: int) -> str:
    """Shortens a text to a width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
