"""Export of a trained network, each format checked against Keras."""

import contextlib
import dataclasses
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence

import keras
import ml_collections
import numpy as np
import tensorflow as tf

from efficientnetv2 import formatting, progress
from efficientnetv2.data import sources
from efficientnetv2.data.sources import Source
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving import (
    comparison,
    formats,
    litert,
    saved_model,
    to_onnx,
)
from efficientnetv2.serving import spec as spec_lib
from efficientnetv2.serving.comparison import Batch, Result, Runner
from efficientnetv2.serving.spec import ServingSpec

COMPARED_IMAGES = 1000
LEAST_AGREEMENT = 0.995
# Of int8, whose probabilities are coarse, the accuracy decides.
MOST_LOST = 0.01


class ExportError(UserError):
    """An export that cannot be written, or differs too much from Keras."""

    exit_code = 1


@dataclasses.dataclass(frozen=True)
class _Export:
    """A file or folder that was written.

    Attributes:
        path: where it will be, relative to the run's folder.
        runner: from a batch to probabilities, with the format's own runtime.
        facts: for metrics.json.
    """

    path: str
    runner: Runner
    facts: Mapping[str, int] = dataclasses.field(default_factory=dict)


def export_saved_model(
    network: keras.Model, spec: ServingSpec, folder: str | os.PathLike
) -> pathlib.Path:
    """Writes a SavedModel beside its place and renames it.

    An interrupted export leaves no half of one.

    Args:
        network: from normalized images to logits, in float32.
        spec: of the network.
        folder: to write; replaced if it is there.

    Returns:
        The folder.

    Raises:
        ExportError: if it cannot be written.
    """
    folder = pathlib.Path(folder)
    with _staging(folder.parent) as staging:
        saved_model.write(network, spec, staging / folder.name)
        _put(staging, folder.name, folder.parent)
    return folder


def export(
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
    the split `eval.split`. What differs too much (less than
    `LEAST_AGREEMENT` of the likeliest classes, or for int8 an accuracy lower
    by more than `MOST_LOST`) is not put in place, nor is anything where the
    images are not those that the run knows, see `comparison.misfit`.

    Args:
        network: from normalized images to logits, in float32.
        config: of the run.
        class_names: of the run.
        folder: to write into; what is there is replaced when all formats are
            complete.
        names: of `formats.FORMATS`.
        allow_disagreement: put in place whatever the comparison says, also
            where there are no images to compare on.
        log: prints one line.
        known: the metrics that the run had on its test images, with 'top1'
            and 'images'; None if there are none.

    Returns:
        (written, faults): what is in place, export to facts for metrics.json
        ('file', 'bytes', the fields of `Result`, and 'opset' for ONNX); and
        what is not, export to reason.

    Raises:
        ExportError: if one cannot be written.
        DataError: if the images to compare on, or to calibrate with, cannot
            be had.
        UserError: see `formats.check`.
    """
    formats.check(names)
    spec = ServingSpec.from_config(config, class_names)
    folder = pathlib.Path(folder)
    source = _images_to_compare(spec, config, allow_disagreement, log)
    with _staging(folder) as staging:
        exports = {}
        wanted = list(dict.fromkeys(names))
        for name in progress.track(wanted, "Converting", unit="formats"):
            log(f"Converting to {name} ...")
            exports |= _WRITERS[name](network, spec, config, staging, log)
        results = {}
        if source is not None:
            results = comparison.compare(
                comparison.run_keras(network, spec),
                {name: each.runner for name, each in exports.items()},
                progress.track(
                    comparison.batches(source, config, spec.mode),
                    "Comparing",
                    -(-len(source) // comparison.BATCH),
                    "batches",
                ),
            )
        log(_table(exports, results, staging))
        faults = {
            name: fault
            for name, result in results.items()
            if (
                fault := _fault(name, result)
                or comparison.misfit(result, known, len(class_names))
            )
        }
        if allow_disagreement:
            for name, fault in faults.items():
                log(f"{name} is written anyway: {fault}.")
            faults = {}
        written = {}
        for name, each in exports.items():
            if name in faults:
                continue
            written[name] = {
                "file": each.path,
                "bytes": _size(staging / each.path),
                **each.facts,
                **(dataclasses.asdict(results[name]) if results else {}),
            }
            _put(staging, each.path, folder)
    return written, faults


# --- Formats ----------------------------------------------------------------


def _write_saved_model(network, spec, config, staging, log):
    path = "saved_model"
    saved_model.write(network, spec, staging / path)
    classify = saved_model.load(staging / path)
    return {path: _Export(path, lambda batch: classify(batch.raw))}


def _write_keras(network, spec, config, staging, log):
    path = "model.keras"
    network.save(staging / path)
    spec_lib.write_to_keras(staging / path, spec)
    loaded = keras.models.load_model(staging / path, compile=False)
    return {"keras": _Export(path, comparison.run_keras(loaded, spec))}


def _write_litert(network, spec, config, staging, log):
    source = comparison.sample(
        config, config.train.split, litert.CALIBRATION_IMAGES, log
    )
    images = [
        batch.pixels for batch in comparison.batches(source, config, spec.mode)
    ]
    (staging / "litert").mkdir()
    litert.convert(network, spec, staging / "litert", np.concatenate(images))
    return {
        f"litert/{kind}": _Export(
            f"litert/{kind}.tflite",
            _on_pixels(litert.load(staging / "litert" / f"{kind}.tflite")),
        )
        for kind in litert.KINDS
    }


def _write_onnx(network, spec, config, staging, log):
    path = "model.onnx"
    to_onnx.convert(network, spec, staging / path)
    runner = _on_pixels(to_onnx.load(staging / path))
    return {"onnx": _Export(path, runner, {"opset": to_onnx.OPSET})}


_WRITERS = {
    "saved_model": _write_saved_model,
    "keras": _write_keras,
    "litert": _write_litert,
    "onnx": _write_onnx,
}


def _on_pixels(classify: Callable[[np.ndarray], np.ndarray]) -> Runner:
    def run(batch: Batch) -> np.ndarray:
        return classify(batch.pixels)

    return run


# --- Comparison -------------------------------------------------------------


def _images_to_compare(spec, config, allow_disagreement, log) -> Source | None:
    """Returns test images with the labels of the run; None if there are none.

    They are looked for before anything is converted.
    """
    split = config.eval.split
    try:
        source = comparison.sample(config, split, COMPARED_IMAGES, log)
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
    """Returns in what an export differs too much, None if in nothing."""
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
        f"{result.agreement:.2%} of the likeliest classes agree with Keras, "
        f"fewer than {LEAST_AGREEMENT:.1%}"
    )


def _table(exports, results: Mapping[str, Result], staging) -> str:
    rows = [("export", "file", "kB")]
    if results:
        rows[0] += ("images", "agreement", "top-1", "Keras")
    for name, each in exports.items():
        size = _size(staging / each.path)
        row = (name, each.path, f"{size / 1000:,.0f}")
        if results:
            result = results[name]
            row += (
                f"{result.images:,}",
                f"{result.agreement:.2%}",
                f"{result.top1:.2%}",
                f"{result.keras_top1:.2%}",
            )
        rows.append(row)
    return formatting.table(rows, left=(0, 1))


# --- Files ------------------------------------------------------------------


@contextlib.contextmanager
def _staging(folder: pathlib.Path):
    """Yields a folder inside `folder` that is removed at the end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".export-", dir=folder
        ) as staging:
            yield pathlib.Path(staging)
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
