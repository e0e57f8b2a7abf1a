"""Predict the classes of images."""

import csv
import importlib.util
import json
import os
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence

from absl import flags

from efficientnetv2 import backend, cli, files, progress
from efficientnetv2.cli import Flag
from efficientnetv2.data import listing
from efficientnetv2.errors import DataError, UserError
from efficientnetv2.serving import formats

UNSURE = "unsure"
_NO_MODEL = "Set --model, for example --model=runs/fashion_mnist."


_RARE = "image_size normalization class_names"
_MODEL = (
    Flag(
        "model",
        "A run, a SavedModel, a .keras file, or a published model. The folder "
        "of a run or of a SavedModel, a .keras file that was exported, or the "
        "name of a model with published weights.",
    ),
    Flag(
        "checkpoint",
        "For a run: best, last, a step or a file; default: best.",
    ),
    Flag(
        "weights",
        "For a published model: imagenet (default), or others. Names that "
        "efficientnetv2.build_model takes, such as imagenet21k-ft1k, or a "
        "path.",
    ),
    Flag(
        "image_size",
        "Side of the network's images in pixels; default: the model's own.",
        int,
        low=8,
    ),
    Flag(
        "normalization",
        "How pixels are scaled, if the model does not say so: v2, v1, lite, "
        "ft or none.",
    ),
    Flag(
        "class_names",
        "Dataset with the model's classes, if the model does not name them.",
    ),
)


@cli.command(
    *_MODEL,
    Flag("top", "Classes printed per image; default: 5.", int, 5, low=1),
    Flag(
        "threshold",
        "Omit less probable classes. Images with no class left go into the "
        f"folder {UNSURE}.",
        float,
        default=0.0,
        low=0.0,
        high=1.0,
    ),
    Flag("batch_size", "Images at a time; default: 32.", int, 32, low=1),
    Flag("json", "Print one JSON object per image.", bool, False),
    Flag("csv", "Print CSV, one row per class.", bool, False),
    Flag(
        "tta",
        "Average over mirror images (flip), crops, or both (all). Crops are "
        "the corners and the centre, 7/8 of each side, beside the whole image.",
        choices=("flip", "crop", "all"),
    ),
    Flag(
        "features",
        "Write the features of the images to this .npz file. It holds `files` "
        "and `features`, float32 [images, features].",
    ),
    Flag("sort_to", "Copy the images into one sub-folder per class here."),
    Flag("annotate_to", "Write copies captioned with the class here."),
    Flag(
        "grad_cam_to",
        "Write pictures of where the network looked here. This is Grad-CAM "
        "for the most likely class.",
    ),
    rare=_RARE,
)
def predict(given: flags.FlagValues, words: Sequence[str]) -> int:
    """Predict the classes of images: files, folders and patterns.

        efficientnetv2 predict --model=runs/fashion_mnist image.png
        efficientnetv2 predict --model=runs/photos folder/ '*.jpg' --json
        efficientnetv2 predict --model=runs/photos folder/ --sort_to=sorted

    Folders are searched recursively. Prints the most likely classes of each
    image with their probabilities. Missing and unreadable images are skipped
    with a message, and the exit status is then 1.
    """
    if not given.model:
        raise UserError(_NO_MODEL)
    if given.json and given.csv:
        raise UserError("--json and --csv cannot be combined.")
    if not words:
        raise UserError("No images given: name files or folders.")
    found = formats.find_model(given.model, given.checkpoint, given.weights)
    inspects = given.features or given.grad_cam_to
    if inspects and found.kind == "saved_model":
        raise UserError(
            "--features and --grad_cam_to need the network, which a "
            "SavedModel does not expose: name the folder of the run."
        )
    # Names of files need not be valid text.
    sys.stdout.reconfigure(errors="surrogateescape")
    sys.stderr.reconfigure(errors="surrogateescape")
    skipped = []

    def skip(path, reason):
        skipped.append(path)
        with progress.lines_above():
            print(f"skipped {path}: {reason}", file=sys.stderr)

    images = formats.find_images(words, skip)
    count = len(images) + len(skipped)
    if images:
        _predict(given, images, skip)
    if skipped:
        print(f"{len(skipped)} of {count} could not be read.", file=sys.stderr)
    return 1 if skipped else 0


def _load(given: flags.FlagValues):
    """Returns the classifier that the flags name."""
    from efficientnetv2.serving.loading import load_classifier

    return load_classifier(
        given.model,
        given.checkpoint,
        given.weights,
        given.image_size,
        given.normalization,
        given.class_names,
    )


def _predict(
    given: flags.FlagValues,
    images: Sequence[str],
    skip: Callable[[str, str], None],
) -> None:
    # TensorFlow is imported only now: mistakes above are shown at once.
    with backend.importing_tensorflow():
        from efficientnetv2.serving import loading
        from efficientnetv2.serving import predict as prediction
    classifier = _load(given)
    averaged = classifier
    if given.tta:
        averaged = prediction.Classifier(
            classifier.class_names,
            loading.averaging(classifier.classify, given.tta),
        )
    write = _write_json if given.json else _write_text
    write = _csv_writer() if given.csv else write
    done = []
    found = prediction.predict_stream(
        averaged,
        images,
        given.top,
        given.batch_size,
        lambda _, path, reason: skip(path, reason),
    )
    for path, predictions in progress.track(found, "Predicting", len(images)):
        done.append(path)
        best = predictions[0]
        likely = [p for p in predictions if p.probability >= given.threshold]
        with progress.lines_above():
            write(path, likely)
        try:
            _write_files(given, classifier, path, best, bool(likely))
        except OSError as error:
            raise DataError(
                f"Cannot write {error.filename}: {error.strerror}."
            ) from None
    if given.features:
        _write_features(given.features, classifier, done, given.batch_size)


def _write_files(given, classifier, path: str, best, is_sure: bool) -> None:
    if not (given.sort_to or given.annotate_to or given.grad_cam_to):
        return
    from efficientnetv2.serving import inspection

    if given.sort_to:
        name = listing.folder_name(best.name) if is_sure else UNSURE
        folder = pathlib.Path(given.sort_to) / name
        shutil.copy(path, inspection.free_place(folder, path))
    if given.annotate_to:
        picture = inspection.annotate(path, best)
        picture.save(inspection.free_place(given.annotate_to, path, ".png"))
    if given.grad_cam_to:
        picture = inspection.draw_grad_cam(classifier, path, best)
        picture.save(inspection.free_place(given.grad_cam_to, path, ".png"))


def _write_features(path: str, classifier, paths, batch_size: int) -> None:
    import numpy as np

    from efficientnetv2.serving import inspection

    rows = inspection.features(classifier, paths, batch_size)
    files.write_atomically(
        path, lambda out: np.savez(out, files=np.array(paths), features=rows)
    )
    print(
        f"Features {list(rows.shape)} of {len(paths)} images: {path}",
        file=sys.stderr,
    )


_FIELDS = ("label", "name", "probability")


def _write_text(path, predictions) -> None:
    print(path)
    for each in predictions:
        print(f"  {each.probability:7.2%}  {each.name}")
    if not predictions:
        print(f"  {UNSURE}")


def _write_json(path, predictions) -> None:
    classes = [{k: getattr(each, k) for k in _FIELDS} for each in predictions]
    print(json.dumps({"file": path, "predictions": classes}))


def _csv_writer() -> Callable:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "rank", *_FIELDS))

    def write(path, predictions):
        for rank, each in enumerate(predictions, 1):
            values = (getattr(each, k) for k in _FIELDS)
            writer.writerow((path, rank, *values))

    return write


@cli.command(
    *_MODEL,
    Flag(
        "host",
        "Address to listen on; 0.0.0.0 for all; default: 127.0.0.1.",
        default="127.0.0.1",
    ),
    Flag(
        "port",
        "Port to listen on; default: the first free one from 7860.",
        int,
        low=1,
        high=65535,
    ),
    Flag(
        "share",
        "Also publish the page through Gradio, for a week.",
        bool,
        default=False,
    ),
    rare=_RARE,
)
def demo(given: flags.FlagValues, words: Sequence[str]) -> None:
    """Try a model in the browser: drop images, see classes and why.

        efficientnetv2 demo --model=runs/fashion_mnist
        efficientnetv2 demo --model=efficientnetv2-b0 --port=8080

    Takes any model that `efficientnetv2 predict` takes. Only this machine can
    reach the page, unless --host or --share says otherwise.
    """
    cli.no_words(words)
    if not given.model:
        raise UserError(_NO_MODEL)
    formats.find_model(given.model, given.checkpoint, given.weights)
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "The demo needs gradio, which is not installed: pip install gradio"
        )
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # TensorFlow is imported only now: mistakes above are shown at once.
    with backend.importing_tensorflow():
        from efficientnetv2 import demo as page
    classifier = _load(given)
    page.serve_page(
        classifier, given.model, given.host, given.port, given.share
    )
