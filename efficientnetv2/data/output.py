"""What is written of a dataset: contact sheets, folders of images, shards.

A sheet shows what the network sees in a stage of a run. A folder or shards are
themselves a dataset, of source `folder` or `tfrecord`.
"""

import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Sequence

import ml_collections
import numpy as np
import tensorflow as tf
import yaml
from PIL import Image, ImageDraw, ImageFont

from efficientnetv2 import config as config_lib
from efficientnetv2 import progress, progressive
from efficientnetv2.data import (
    faults,
    listing,
    loading,
    pipeline,
    preprocessing,
    registry,
    sources,
)
from efficientnetv2.data.registry import DatasetInfo
from efficientnetv2.data.sources import ArraySource, Source
from efficientnetv2.errors import DataError
from efficientnetv2.progressive import RunPlan, Stage

PREVIEW = "preview"
_COLUMNS = 6
CELL = 160
_GAP = 16
_TEXT, _TITLE = 14, 20
# Labels below this weight are not written.
_LEAST = 0.005
_LINES = 2
_LINE = _TEXT + 4
_YAML = "dataset.yaml"
# The folder of each split; `trainval` is the first two when it is read.
_FOLDERS = {"train": "train", "minival": "val", "eval": "test"}
_SUFFIXES = {
    b"\xff\xd8": ".jpg",
    b"\x89P": ".png",
    b"GI": ".gif",
    b"BM": ".bmp",
    b"RI": ".webp",
}
_SHARD = 5_000

Examples = Iterator[tuple[bytes, np.ndarray]]


def write_preview(
    config: ml_collections.ConfigDict,
    folder: pathlib.Path,
    images: int = 24,
    log: Callable[[str], None] = print,
) -> list[pathlib.Path]:
    """Loads the training split and writes sheets, see `write_sheets`.

    Raises:
        DataError: for data that cannot be obtained or read, or a folder that
            cannot be written.
    """
    config = with_batch_size(config, images)
    source = loading.load_split(config, config.train.split, log)
    title = f"{registry.title(config.data.ds_name)}, {config.train.split}"
    with faults.explained(source):
        return write_sheets(source, config, folder, title)


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
    plan, paths = config_lib.run_plan(config), []
    mode = config.data.normalization
    for number, stage in enumerate(plan.stages, 1):
        first = _first_step(stage, plan)
        dataset = pipeline.training_dataset(source, config, plan, first)
        images, labels = next(iter(dataset))
        sheet = draw(
            preprocessing.denormalize(images, mode).numpy(),
            [caption(row, source.class_names) for row in labels.numpy()],
            f"{title}, stage {number} of {len(plan.stages)}",
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
    lines = []
    for k in order:
        weight = "" if label[k] > 1 - _LEAST else f"{label[k]:.2f} "
        lines.append(weight + class_names[k])
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
    font, large = map(ImageFont.load_default, (_TEXT, _TITLE))
    wide = width - 2 * _GAP
    pen.text((_GAP, _GAP), _fit(title, large, wide), "black", large)
    below = _GAP, _GAP + _TITLE + 8
    pen.text(below, _fit(subtitle, font, wide), "#555555", font)
    pairs = zip(images, captions, strict=True)
    for number, (pixels, lines) in enumerate(pairs):
        left, upper = place(number, columns)
        image, nearest = Image.fromarray(pixels), Image.Resampling.NEAREST
        sheet.paste(image.resize((CELL, CELL), nearest), (left, upper))
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


# --- Folders and shards ------------------------------------------------------


def write_dataset(
    info: DatasetInfo,
    load: Callable[[str], Source],
    folder: pathlib.Path,
    form: str,
    images_per_class: int | None = None,
) -> pathlib.Path:
    """Writes the splits train, minival and eval of a dataset.

    Args:
        load: returns a split by its name.
        folder: empty or missing.
        form: 'folder' or 'tfrecord'.
        images_per_class: the first ones of each split; None for all.

    Returns:
        What `--dataset` takes: the folder, or the YAML file in it.

    Raises:
        DataError: if the folder is not empty or cannot be written, or images
            have several labels, which folders cannot express.
    """
    if info.multi_label and form == "folder":
        raise DataError(
            f"{info.name}: its images have several labels, and folders allow "
            "one per file. Use --format=tfrecord."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise DataError(
                f"{folder} is not empty. Name another --output_dir."
            )
        counts = {}
        for split in (name for name in _FOLDERS if name in info.splits):
            source = load(split)
            total = len(source)
            if images_per_class is not None:
                total = min(total, images_per_class * info.num_classes)
            examples = encoded(source, images_per_class)
            examples = progress.track(examples, f"Writing {split}", total)
            if form == "folder":
                place = folder / _FOLDERS[split]
                _write_folder(examples, info.class_names, place)
            else:
                counts[split] = _write_shards(examples, folder, split)
        if form == "folder":
            (folder / listing.NAMES_FILE).write_text(
                listing.names_to_text(info.class_names), encoding="utf-8"
            )
            return folder
        (folder / _YAML).write_text(_to_yaml(info, counts), encoding="utf-8")
    except OSError as error:
        raise DataError(f"Cannot write {folder}: {error.strerror}.") from None
    return folder / _YAML


def encoded(source: Source, images_per_class: int | None = None) -> Examples:
    """Yields encoded images and labels, in order.

    Images in memory become PNG; others stay as they are. `images_per_class`
    keeps the first ones of each class; an image with several classes counts for
    its first.

    Yields:
        (image, label): bytes; int64 scalar, or float32 [classes] of zeros and
        ones.
    """
    if isinstance(source, ArraySource):
        examples = (
            (tf.io.encode_png(image), label)
            for image, label in zip(source.images, source.labels, strict=True)
        )
    else:
        examples = iter(sources.encoded_examples(source))
    counts: dict[int, int] = {}
    for image, label in examples:
        label = np.asarray(label)
        first = int(label.argmax() if label.ndim else label)
        counts[first] = counts.get(first, 0) + 1
        if images_per_class is None or counts[first] <= images_per_class:
            yield image.numpy(), label


def _write_folder(
    examples: Examples, class_names: Sequence[str], folder: pathlib.Path
) -> None:
    places = [folder / listing.folder_name(name) for name in class_names]
    for place in places:
        place.mkdir(parents=True)
    for number, (image, label) in enumerate(examples):
        suffix = _SUFFIXES.get(image[:2], ".png")
        (places[int(label)] / f"{number:06d}{suffix}").write_bytes(image)


def _write_shards(examples: Examples, folder: pathlib.Path, split: str) -> int:
    """Writes shards and returns the number of examples."""
    count = 0
    for number in itertools.count():
        part = list(itertools.islice(examples, _SHARD))
        if not part:
            return count
        path = folder / f"{split}-{number:05d}.tfrecord"
        with tf.io.TFRecordWriter(str(path)) as writer:
            for image, label in part:
                writer.write(to_example(image, label))
        count += len(part)


def to_example(image: bytes, label: np.ndarray) -> bytes:
    """Returns an encoded image and its label, see `encoded`, as a record."""
    labels = np.flatnonzero(label) if label.ndim else [label]
    content, numbers = tf.train.BytesList, tf.train.Int64List
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=content(value=[image])),
        "image/class/label": tf.train.Feature(int64_list=numbers(value=labels)),
    }
    features = tf.train.Features(feature=feature)
    return tf.train.Example(features=features).SerializeToString()


def _to_yaml(info: DatasetInfo, counts: dict[str, int]) -> str:
    return yaml.safe_dump(
        {
            "source": "tfrecord",
            "class_names": list(info.class_names),
            "multi_label": info.multi_label,
            "recipe": info.recipe,
            "splits": {
                split: {"num_images": count, "files": f"{split}-*"}
                for split, count in counts.items()
            },
            "license": info.license,
            "citation": info.citation,
        },
        sort_keys=False,
        allow_unicode=True,
    )
