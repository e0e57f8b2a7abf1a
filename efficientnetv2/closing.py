"""The end of a run: how each class fared, and what to type next."""

import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from efficientnetv2 import formatting, runs
from efficientnetv2.data.sources import ArraySource, EncodedSource

_MOST_CLASSES = 20
_EXAMPLE = "example.png"


def class_table(
    labels: np.ndarray, predicted: np.ndarray, names: Sequence[str]
) -> str:
    """Returns the accuracy of each class as lines, the weakest first.

    Args:
        labels: int64 [images].
        predicted: int64 [images].
        names: one per class; of more than twenty the weakest are shown.
    """
    rows = []
    for label, name in enumerate(names):
        own = labels == label
        if own.any():
            right = int((predicted[own] == label).sum())
            rows.append((right / own.sum(), name, right, int(own.sum())))
    rows.sort(key=lambda row: row[0])
    lines = [("class", "top-1", "correct", "images")]
    for share, name, right, images in rows[:_MOST_CLASSES]:
        lines.append((name, f"{share:.1%}", f"{right:,}", f"{images:,}"))
    text = formatting.table(lines, left=[0])
    left = len(rows) - _MOST_CLASSES
    return text + (
        f"\nand {left:,} classes with a higher top-1" if left > 0 else ""
    )


def example_image(run: runs.Run) -> pathlib.Path | str:
    """Returns a file with an image of the run's test split.

    Images that lie in no file of their own give MODEL_DIR/example.png; what
    cannot be read image by image gives the word IMAGE.
    """
    source = run.split(run.config.eval.split)
    if isinstance(source, EncodedSource) and source.in_files:
        return source.items[0]
    if not isinstance(source, ArraySource):
        return "IMAGE"
    pixels = np.asarray(source.images[0])
    path = run.model_dir / _EXAMPLE
    Image.fromarray(pixels.squeeze()).save(path)
    return path


def next_commands(run: runs.Run) -> str:
    """Returns what to type next: the report, a prediction, the curves."""
    quoted, program = formatting.quote, formatting.program
    folder = run.model_dir
    commands = [
        (program("python"), "-m webbrowser", quoted(folder / "report.html")),
        (
            f"{program()} predict",
            f"--model={quoted(folder)}",
            quoted(formatting.near(example_image(run))),
        ),
        (program("tensorboard"), f"--logdir={quoted(folder)}"),
    ]
    return "\n".join(
        ["Next:", *(formatting.command(*words) for words in commands)]
    )
