"""Predict the classes of images.

    python -m efficientnetv2.predict --model=runs/fashion_mnist image.png
    python -m efficientnetv2.predict --model=runs/photos folder/ '*.jpg' --json

Images are files, folders, which are searched with all their sub-folders, and
patterns. Prints the likeliest classes of each with their probabilities. What
cannot be read is named and left out, and the exit status is then 1.
"""

import csv
import json
import sys

from absl import flags

from efficientnetv2 import cli
from efficientnetv2.errors import UserError
from efficientnetv2.serving import locate

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "model",
    None,
    "Folder of a run or of a SavedModel, a .keras file of --mode=export, or "
    "the name of a model with published weights.",
)
flags.DEFINE_string(
    "checkpoint",
    None,
    "Of a run: best, last, a step or a file; default: best.",
)
flags.DEFINE_string(
    "weights",
    None,
    "Of a name: imagenet (default), imagenet21k-ft1k, ..., or a path.",
)
flags.DEFINE_integer("top", 5, "Classes printed of an image.", lower_bound=1)
flags.DEFINE_integer("batch_size", 32, "Images at a time.", lower_bound=1)
flags.DEFINE_boolean("json", False, "Print one JSON object a line and image.")
flags.DEFINE_boolean("csv", False, "Print CSV, one line a class.")


def _write_text(path, predictions) -> None:
    print(path)
    for each in predictions:
        print(f"  {each.probability:7.2%}  {each.name}")


def _write_json(path, predictions) -> None:
    classes = [
        {
            "label": each.label,
            "name": each.name,
            "probability": each.probability,
        }
        for each in predictions
    ]
    print(json.dumps({"file": path, "predictions": classes}))


def _csv_writer():
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(("file", "rank", "label", "name", "probability"))

    def write(path, predictions):
        for rank, each in enumerate(predictions, 1):
            writer.writerow(
                (path, rank, each.label, each.name, each.probability)
            )

    return write


def _run(arguments: list[str]) -> int:
    if not FLAGS.model:
        raise UserError("--model is missing, such as runs/fashion_mnist.")
    if FLAGS.json and FLAGS.csv:
        raise UserError("--json and --csv exclude each other.")
    if not arguments:
        raise UserError("No image is named: give files or folders.")
    locate.find_model(FLAGS.model, FLAGS.checkpoint, FLAGS.weights)
    images = locate.find_images(arguments)
    # TensorFlow is imported only now: mistakes above are shown at once.
    with cli.importing_tensorflow():
        from efficientnetv2.serving import predict
    classifier = predict.load(FLAGS.model, FLAGS.checkpoint, FLAGS.weights)

    skipped = []

    def skip(_, path, reason):
        skipped.append(path)
        print(f"skipped {path}: {reason}", file=sys.stderr)

    # Names of files need not be valid text.
    sys.stdout.reconfigure(errors="surrogateescape")
    sys.stderr.reconfigure(errors="surrogateescape")
    write = _write_text
    if FLAGS.json:
        write = _write_json
    elif FLAGS.csv:
        write = _csv_writer()
    for path, predictions in predict.stream(
        classifier, images, FLAGS.top, FLAGS.batch_size, skip
    ):
        write(path, predictions)
        sys.stdout.flush()
    if skipped:
        print(
            f"{len(skipped)} of {len(images)} images could not be read.",
            file=sys.stderr,
        )
    return 1 if skipped else 0


if __name__ == "__main__":
    # Options may stand behind files.
    FLAGS.set_gnu_getopt(True)
    cli.start(cli.command(_run, positional=True))
