"""Weights in and out: other people's checkpoints and our own.

Each format is a module of this folder, found automatically, with two functions:

    recognizes(path)   whether a path, which need not exist, is of the format;
                       the modules exclude each other
    opened(path, ema)  a context manager that yields a `Source`

A source is compared with the model as a whole before anything is changed:
either every weight is set, or an error leaves the model as it was.
"""

import contextlib
import importlib
import os
import pathlib
import pkgutil
from collections.abc import Iterator

import keras as _keras

from efficientnetv2.errors import WeightsError
from efficientnetv2.models.weights.keras import (
    from_arrays,
    from_model,
    to_keras_applications,
)
from efficientnetv2.models.weights.matching import (
    LoadReport,
    Source,
    assign,
    listed,
    slots,
)
from efficientnetv2.models.weights.tensorflow import to_reference_checkpoint

__all__ = [
    "LoadReport",
    "Source",
    "assign",
    "from_arrays",
    "load_averaged",
    "load_into",
    "open_source",
    "slots",
    "to_keras_applications",
    "to_reference_checkpoint",
]


def load_averaged(model: _keras.Model, checkpoint) -> None:
    """Sets the averaged weights of a run's checkpoint, else the raw ones.

    The checkpoint is one of `checkpoints.read_checkpoint`.

    Raises:
        WeightsError: if the model is of another architecture.
    """
    assign(model, from_arrays(checkpoint.arrays, str(checkpoint.path)))


def load_into(
    model: _keras.Model,
    source: str | os.PathLike | _keras.Model,
    ema: bool | None = None,
    skip_classifier: bool = False,
) -> LoadReport:
    """Sets every weight of a model from a file, a prefix or a model.

    Other arguments, result and errors are those of
    `efficientnetv2.load_weights`.
    """
    slots(model)  # Raises if the model is not ours.
    with open_source(source, ema) as opened:
        return assign(model, opened, skip_classifier)


@contextlib.contextmanager
def open_source(
    source: str | os.PathLike | _keras.Model, ema: bool | None = None
) -> Iterator[Source]:
    """Opens a source of weights; see `load_into` for what can be one."""
    if isinstance(source, _keras.Model):
        yield from_model(source, f"model {source.name!r}")
        return
    path = pathlib.Path(source).expanduser()
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "recognizes") and module.recognizes(path):
            with module.opened(path, ema) as opened:
                yield opened
            return
    if path.exists():
        raise WeightsError(
            f"{path} has an unknown format: a prefix or .index of a TensorFlow "
            "checkpoint, .h5, .keras, .safetensors, .pth or .npz."
        )
    text = f"There are no weights at {path}."
    try:
        there = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        raise WeightsError(
            f"{text} The folder {path.parent} cannot be read."
        ) from None
    raise WeightsError(
        f"{text} In {path.parent}: {listed(there) or 'nothing'}."
    )
