"""Export of a trained network, each format checked against Keras."""

import contextlib
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2 import formatting, progress
from efficientnetv2.data import (
    decoding,
    faults,
    loading,
    pipeline,
    preprocessing,
    sources,
)
from efficientnetv2.data.sources import ArraySource, EncodedSource, Source
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving import converters, formats
from efficientnetv2.serving.spec import ServingSpec, write_record

_BATCH = 50
COMPARED_IMAGES = 1000
LEAST_AGREEMENT = 0.995
# Of int8, whose probabilities are coarse, the accuracy decides.
MOST_LOST = 0.01


class ExportError(UserError):
    """An export that cannot be written, or differs too much from Keras."""

    exit_code = 1


class Batch(NamedTuple):
    """Images in the forms that formats take."""

    normalized: np.ndarray  # float32 [batch, size, size, 3], as in evaluation
    pixels: np.ndarray  # likewise, in [0, 255]
    # As stored: uint8 [batch, height, width, 3], or encoded.
    raw: np.ndarray | list[bytes]
    labels: np.ndarray  # int64 [batch], or float32 [batch, classes]


class Result(NamedTuple):
    """How an export compares with the network."""

    images: int  # how many were compared
    agreement: float  # share with the same likeliest class
    top1: float  # accuracy of the export
    keras_top1: float  # accuracy of the network
    max_difference: float  # largest difference of a probability


# From a batch to probabilities, float32 [batch, classes].
Runner = Callable[[Batch], np.ndarray]


class _Export(NamedTuple):
    """A file or folder that was written."""

    path: str  # where it will be, relative to the run's folder
    runner: Runner  # with the format's own runtime
    facts: Mapping[str, int] = {}  # for metrics.json


def replace_saved_model(
    network: keras.Model, spec: ServingSpec, folder: str | os.PathLike
) -> pathlib.Path:
    """Writes a SavedModel, complete or not at all; returns its folder.

    Raises:
        ExportError: if it cannot be written; one that is there stays.
    """
    folder = pathlib.Path(folder)
    with _staging(folder.parent) as staging:
        converters.write_saved_model(network, spec, staging / folder.name)
        _put(staging, folder.name, folder.parent)
    return folder


def export_formats(
    network: keras.Model,
    config: ml_collections.ConfigDict,
    class_names: Sequence[str],
    folder: str | os.PathLike,
    names: Sequence[str] = ("saved_model",),
    allow_disagreement: bool = False,
    log: Callable[[str], None] = print,
    known: Mapping[str, float] | None = None,
) -> tuple[dict[str, dict], dict[str, str]]:
    """Writes formats, and compares each with the network.

    Each is loaded with its own runtime and run on `COMPARED_IMAGES` images of
    the split `eval.split`. An export that differs too much (agrees on fewer
    than `LEAST_AGREEMENT` of the top classes or, for int8, loses more than
    `MOST_LOST` of accuracy) is not put in place; nor is any if the images are
    not the run's, see `misfit`.

    Args:
        network: from normalized images to logits, in float32.
        config, class_names: of the run.
        folder: whose files are replaced when all formats are complete.
        names: of `formats.FORMATS`.
        allow_disagreement: put in place whatever the comparison says, also
            where there are no images to compare on.
        log: prints one line.
        known: the run's metrics on its test images: 'top1' and 'images'.

    Returns:
        (written, refused): what is in place, export to facts for metrics.json
        ('file', 'bytes', the fields of `Result`, and 'opset' for ONNX); and
        what is not, export to reason.

    Raises:
        ExportError: if one cannot be written.
        DataError: if the images to compare on, or to calibrate with, cannot be
            obtained.
        UserError: see `formats.check_formats`.
    """
    formats.check_formats(names)
    spec = ServingSpec.from_config(config, class_names)
    folder = pathlib.Path(folder)
    # Whether there are images is known before anything is converted.
    source = _images_to_compare(spec, config, allow_disagreement, log)
    with _staging(folder) as staging:
        exports = {}
        wanted = list(dict.fromkeys(names))
        for name in progress.track(wanted, "Converting", unit="formats"):
            log(f"Converting to {name} ...")
            exports.update(_written(name, network, spec, config, staging, log))
        results = {}
        if source is not None:
            results = compare(
                keras_runner(network, spec),
                {name: each.runner for name, each in exports.items()},
                progress.track(
                    batches(source, config, spec.mode),
                    "Comparing",
                    -(-len(source) // _BATCH),
                    "batches",
                ),
            )
        sizes = {k: _size(staging / each.path) for k, each in exports.items()}
        log(_comparison_table(exports, results, sizes))
        written, refused = {}, {}
        for name, each in exports.items():
            result, facts = results.get(name), {}
            if result is not None:
                facts = result._asdict()
                fault = _fault(name, result)
                fault = fault or misfit(result, known, len(class_names))
                if fault and not allow_disagreement:
                    refused[name] = fault
                    continue
                if fault:
                    log(f"{name} is written anyway: {fault}.")
            place = {"file": each.path, "bytes": sizes[name]}
            written[name] = {**place, **each.facts, **facts}
            _put(staging, each.path, folder)
    return written, refused


# --- Formats ----------------------------------------------------------------


def _written(
    name: str, network, spec, config, staging: pathlib.Path, log
) -> Iterator[tuple[str, _Export]]:
    """Writes a format; yields its exports by their names."""
    if name == "saved_model":
        converters.write_saved_model(network, spec, staging / name)
        by_tensorflow = converters.load_saved_model(staging / name)
        yield name, _Export(name, lambda batch: by_tensorflow(batch.raw))
    elif name == "keras":
        path = staging / "model.keras"
        network.save(path)
        write_record(path, spec)
        loaded = keras.models.load_model(path, compile=False)
        yield name, _Export(path.name, keras_runner(loaded, spec))
    elif name == "onnx":
        path = staging / "model.onnx"
        converters.write_onnx(network, spec, path)
        runner = _on_pixels(converters.load_onnx(path))
        yield name, _Export(path.name, runner, {"opset": converters.OPSET})
    else:
        count = converters.CALIBRATION_IMAGES
        source = sample(config, config.train.split, count, log)
        images = [batch.pixels for batch in batches(source, config, spec.mode)]
        (staging / name).mkdir()
        images = np.concatenate(images)
        converters.write_litert(network, spec, staging / name, images)
        for kind in converters.LITERT_KINDS:
            path = f"{name}/{kind}.tflite"
            runner = _on_pixels(converters.load_litert(staging / path))
            yield f"{name}/{kind}", _Export(path, runner)


def _on_pixels(classify: Callable[[np.ndarray], np.ndarray]) -> Runner:
    return lambda batch: classify(batch.pixels)


def keras_runner(network: keras.Model, spec: ServingSpec) -> Runner:
    """Returns the runner of a Keras model: normalized images to logits."""

    @tf.function(reduce_retracing=True)
    def classify(images):
        return spec.probabilities(network(images, training=False))

    return lambda batch: classify(batch.normalized).numpy()


# --- Comparison -------------------------------------------------------------


def sample(
    config: ml_collections.ConfigDict,
    split: str,
    most: int,
    log: Callable[[str], None],
) -> Source:
    """Returns at most so many examples of a split, or raises a DataError.

    They are spread evenly over the split, where it is in memory or in single
    files; of shards they are the first.
    """
    source = loading.load_split(config, split, left_out=loading.LeftOut(log))
    chosen = np.linspace(0, len(source) - 1, min(len(source), most), dtype=int)
    if isinstance(source, ArraySource):
        content = {"images": source.images[chosen]}
    elif isinstance(source, EncodedSource):
        content = {"items": [source.items[k] for k in chosen]}
    else:
        with faults.explained(source):
            examples = list(sources.encoded_examples(source).take(most))
        items = [encoded.numpy() for encoded, _ in examples]
        labels = np.stack([label.numpy() for _, label in examples])
        return EncodedSource(items, False, labels, source.class_names)
    return dataclasses.replace(source, labels=source.labels[chosen], **content)


def batches(
    source: Source, config: ml_collections.ConfigDict, mode: str
) -> Iterator[Batch]:
    """Yields the examples of a `sample`, preprocessed as in evaluation."""
    config = ml_collections.ConfigDict(config.to_dict())
    config.eval.batch_size = _BATCH
    first = 0
    with faults.explained(source):
        for images, labels in pipeline.evaluation_dataset(source, config):
            rows = slice(first, first + len(labels))
            first = rows.stop
            yield Batch(
                images.numpy(),
                preprocessing.to_pixels(images, mode).numpy(),
                _raw(source, rows),
                labels.numpy(),
            )


def _raw(source: Source, rows: slice) -> np.ndarray | list[bytes]:
    if isinstance(source, ArraySource):
        return np.asarray(preprocessing.to_rgb(source.images[rows]))
    items = source.items[rows]
    if source.in_files:
        items = [tf.io.read_file(item).numpy() for item in items]
    return [decoding.to_portable(item) for item in items]


def compare(
    reference: Runner,
    runners: Mapping[str, Runner],
    examples: Iterator[Batch],
) -> dict[str, Result]:
    """Runs all exports, by name, and the network on all examples."""
    images, keras_right = 0, 0
    counts = {name: np.zeros(2, np.int64) for name in runners}
    differences = dict.fromkeys(runners, 0.0)
    for batch in examples:
        expected = reference(batch)
        keras_best = expected.argmax(axis=1)
        images += len(expected)
        keras_right += _right(keras_best, batch.labels)
        for name, run in runners.items():
            found = run(batch)
            best = found.argmax(axis=1)
            agreeing = np.count_nonzero(best == keras_best)
            counts[name] += [agreeing, _right(best, batch.labels)]
            difference = float(np.abs(found - expected).max())
            differences[name] = max(differences[name], difference)
    return {
        name: Result(
            images,
            agreement=int(agreed) / images,
            top1=int(right) / images,
            keras_top1=keras_right / images,
            max_difference=differences[name],
        )
        for name, (agreed, right) in counts.items()
    }


def misfit(
    result: Result, known: Mapping[str, float] | None, classes: int
) -> str | None:
    """Returns why images cannot be those of a run, None if they may be.

    That an export agrees with the network says nothing if both are wrong:
    under wrong names, or on other images. `known`: see `export`.
    """
    if not known:
        return None
    here, there = result.images, known["images"]
    chance = 1.0 / classes
    top1 = result.keras_top1
    if top1 > chance + 2 * math.sqrt(chance * (1 - chance) / here):
        return None
    # Three standard deviations of the difference of two shares.
    mean = (top1 * here + known["top1"] * there) / (here + there)
    spread = 3 * math.sqrt(mean * (1 - mean) * (1 / here + 1 / there))
    if known["top1"] - top1 <= spread:
        return None
    return (
        f"the network's top-1 of {top1:.2%} on the {here:,} images compared is "
        f"at chance, and was {known['top1']:.2%} on the run's {there:,} test "
        "images: these are not the run's images or classes"
    )


def _right(best: np.ndarray, labels: np.ndarray) -> int:
    if labels.ndim == 1:
        return int(np.count_nonzero(best == labels))
    return int(np.count_nonzero(labels[np.arange(len(best)), best] > 0))


def _images_to_compare(spec, config, allow_disagreement, log) -> Source | None:
    """Returns test images with the labels of the run, None without."""
    try:
        source = sample(config, config.eval.split, COMPARED_IMAGES, log)
        return sources.in_order_of(source, spec.class_names)
    except DataError as error:
        if not allow_disagreement:
            raise DataError(
                f"The exports cannot be compared with Keras: {error} "
                "--allow_disagreement writes them without a comparison."
            ) from error
        log(f"Not compared with Keras: {error}")
        return None


def _fault(name: str, result: Result) -> str | None:
    """Returns how an export differs too much, or None."""
    if name == "litert/int8":
        lost = result.keras_top1 - result.top1
        if lost <= MOST_LOST:
            return None
        return (
            f"top-1 of {result.top1:.2%} is {100 * lost:.2f} points below "
            f"Keras, more than {100 * MOST_LOST:g}"
        )
    if result.agreement >= LEAST_AGREEMENT:
        return None
    return (
        f"{result.agreement:.2%} of the top classes agree with Keras, fewer "
        f"than {LEAST_AGREEMENT:.1%}"
    )


def _comparison_table(exports, results: Mapping[str, Result], sizes) -> str:
    rows = [("export", "file", "kB")]
    if results:
        rows[0] += ("images", "agreement", "top-1", "Keras")
    for name, each in exports.items():
        row = (name, each.path, f"{sizes[name] / 1000:,.0f}")
        if results:
            images, *shares, _ = results[name]
            row += (f"{images:,}", *(f"{share:.2%}" for share in shares))
        rows.append(row)
    return formatting.align_table(rows, left=(0, 1))


@contextlib.contextmanager
def _staging(folder: pathlib.Path):
    """Yields a folder inside `folder` that is removed at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as name:
            yield pathlib.Path(name)
    except (OSError, tf.errors.ResourceExhaustedError) as error:
        raise ExportError(
            f"Cannot export to {folder}: {error}. What was there is unharmed; "
            "free space or make the folder writable."
        ) from error


def _put(staging: pathlib.Path, path: str, folder: pathlib.Path) -> None:
    """Moves a file or folder from the staging folder to its place."""
    place = folder / path
    place.parent.mkdir(exist_ok=True)
    if place.is_dir():
        # A folder takes no other's place; removed with the staging folder.
        os.replace(place, staging / "replaced")
    os.replace(staging / path, place)


def _size(path: pathlib.Path) -> int:
    """Returns the bytes of a file, or of all files of a folder."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size
