"""Weights in and out: other people's checkpoints and our own.

Each format is a module of this folder, found automatically, with two functions:

    recognizes(path)   whether a path, which need not exist, is of the format;
                       the modules exclude each other
    opened(path, ema)  a context manager that yields a `Source`

`load` reads a source whole and compares it with the model before it changes
anything: it either sets every weight or raises and leaves the model as it was.
"""

import contextlib
import importlib
import os
import pathlib
import pkgutil
from collections.abc import Iterator

import keras as _keras

from efficientnetv2.models import naming
from efficientnetv2.models.naming import WeightsError
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
)
from efficientnetv2.models.weights.tensorflow import to_reference_checkpoint

__all__ = [
    "LoadReport",
    "Source",
    "WeightsError",
    "assign",
    "from_arrays",
    "load",
    "load_averaged",
    "open_source",
    "to_keras_applications",
    "to_reference_checkpoint",
]


def load_averaged(model: _keras.Model, checkpoint) -> None:
    """Sets the averaged weights of a run's checkpoint, else the raw ones.

    Args:
        model: of the run's architecture.
        checkpoint: from `checkpoints.read_checkpoint`: its `arrays` and `path`.

    Raises:
        WeightsError: if the model is another one.
    """
    assign(model, from_arrays(checkpoint.arrays, str(checkpoint.path)))


def load(
    model: _keras.Model,
    source: str | os.PathLike | _keras.Model,
    ema: bool | None = None,
    skip_classifier: bool = False,
) -> LoadReport:
    """Sets every weight of a model from a source, by name.

    Arguments, result and errors are those of `efficientnetv2.load_weights`,
    but that a file or prefix is named: no published weights, no run.
    """
    naming.slots(model)  # Raises if the model is not ours.
    with open_source(source, ema) as opened:
        return assign(model, opened, skip_classifier)


@contextlib.contextmanager
def open_source(
    source: str | os.PathLike | _keras.Model, ema: bool | None = None
) -> Iterator[Source]:
    """Opens a source of weights; see `load` for what can be one."""
    if isinstance(source, _keras.Model):
        yield from_model(source, f"model {source.name!r}")
        return
    path = pathlib.Path(source).expanduser()
    for module in _formats():
        if module.recognizes(path):
            with module.opened(path, ema) as opened:
                yield opened
            return
    if not path.exists():
        raise WeightsError(_not_found(path))
    raise WeightsError(
        f"{path} has an unknown format: a prefix or .index of a TensorFlow "
        "checkpoint, .h5, .keras, .safetensors, .pth or .npz."
    )


def _formats() -> Iterator:
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if hasattr(module, "recognizes"):
            yield module


def _not_found(path: pathlib.Path) -> str:
    text = f"There are no weights at {path}."
    try:
        there = sorted(entry.name for entry in path.parent.iterdir())
    except OSError:
        return f"{text} The folder {path.parent} cannot be read."
    return f"{text} In {path.parent}: {listed(there) or 'nothing'}."
